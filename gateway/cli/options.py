"""Options that several verbs share, and the configuration they lead to."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engines.errors import BadRequest

if TYPE_CHECKING:
    from gateway.client import GatewayClient
    from gateway.config import TandemConfig

DEFAULT_FILE = Path("tandem.toml")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration (TOML). Default: tandem.toml here, if it exists.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="path.to.key=value, over file and environment. May be repeated.")
]
UrlOption = Annotated[str | None, typer.Option("--url", help="The gateway's URL. Default: that of the configuration.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def load(config: Path | None, settings: Sequence[str] | None = None) -> TandemConfig:
    """The resolved configuration; raises `ConfigError` (exit 2) naming every bad key."""
    from gateway.config import load_config

    path = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    return load_config(path, overrides(settings or ()))


def client(url: str | None, config: Path | None) -> GatewayClient:
    """Speaks to `--url`, or to the gateway of the configuration."""
    from gateway.client import GatewayClient

    return GatewayClient(url or gateway_url(load(config)))


def gateway_url(config: TandemConfig) -> str:
    return config.gateway.url


def overrides(settings: Sequence[str]) -> dict[str, Any]:
    """`["gateway.port=8100"]` becomes `{"gateway": {"port": 8100}}`; raises `BadRequest` for another shape."""
    tree: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise BadRequest(f"--set {setting}: expected path.to.key=value, like gateway.port=8100", param="set")
        *parents, key = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise BadRequest(f"--set {setting}: {parent} was set to a value before", param="set")
        node[key] = _value(value)
    return tree


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
