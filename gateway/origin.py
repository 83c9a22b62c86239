"""Web pages kept out: without keys, the browser of whoever runs the gateway is a way to it for every page it shows.

A page that sends a request names its own origin; a name that an attacker points at 127.0.0.1 (DNS rebinding) is still
in the Host header. So while no key is configured, hosts are loopback and origins are the gateway's own.
"""

from __future__ import annotations

import re

from starlette.types import Scope

from engines.errors import BadRequest, TandemError

_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?")


class ForeignOrigin(TandemError):
    """A request that a web page of another origin sent."""

    status = 403
    code = "foreign_origin"


def check_origin(scope: Scope) -> None:
    """Raises `BadRequest` for a Host that is not loopback, or `ForeignOrigin`."""
    hosts = _values(scope, b"host")
    if len(hosts) != 1 or not _LOOPBACK.fullmatch(hosts[0]):
        error = BadRequest(
            "Host: only 127.0.0.1, localhost and [::1] are answered while no key is configured.", param="Host"
        )
        error.code = "foreign_host"
        raise error
    if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in _values(scope, b"origin")):
        raise ForeignOrigin("Web pages of other origins are not answered; call from a program.", param="Origin")


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key.lower() == name]
