"""The check of Ray: the head of our own lives, or the configured cluster answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok
from gateway.ray_daemon import RayDaemon

_CONNECT_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 20.0


def check_ray(context: Context) -> Finding:
    return _check_configured(context) if context.config.ray.address else _check_own(context)


def _check_own(context: Context) -> Finding:
    path = context.config.run_root / "ray.json"
    if not path.exists():
        return ok("no head of ours runs; `tandem serve` starts one")
    try:
        head = RayDaemon(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        return fail(f"{path} cannot be read: nobody finds the head that it names", context.restart)
    if not head.is_alive():
        return fail(f"{path} names process {head.pid}, which is gone, and the engines with it", context.restart)
    fault = why_silent(head.address, head.environment())
    if fault:
        return fail(f"our head (process {head.pid}, {head.address}) {fault}", context.restart)
    return ok(f"our head (process {head.pid}) answers at {head.address}")


def _check_configured(context: Context) -> Finding:
    address = _resolve(context)
    if not address:
        return fail("address is 'auto', and no Ray cluster runs on this machine", "ray start --head")
    fault = why_silent(address, {})
    if fault:
        return fail(f"the cluster at {address} {fault}", f"ray status --address {address}")
    return ok(f"the cluster at {address} answers")


def _resolve(context: Context) -> str:
    """`auto` as Ray reads it: its variable, or the file in which it notes the cluster of this machine."""
    address = context.config.ray.address
    if address != "auto":
        return address
    with contextlib.suppress(FileNotFoundError):
        return os.environ.get("RAY_ADDRESS") or context.machine.ray_address_file.read_text().strip()
    return ""


def why_silent(address: str, environment: Mapping[str, str]) -> str:
    """Empty if the cluster answers a question in time; else what it does instead."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]").rsplit("/", 1)[-1], int(port)), _CONNECT_TIMEOUT_S).close()
        except OSError as error:
            return f"refuses connections ({error.strerror or type(error).__name__})"
    return _why_no_answer(address, environment)


def _why_no_answer(address: str, environment: Mapping[str, str]) -> str:
    # In a process of its own: a call to a head that hangs cannot be given up from within.
    command = (sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment, "PYTHONWARNINGS": "ignore"},
    )
    try:
        said, _ = process.communicate(timeout=_ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"accepts connections but gives no answer within {_ANSWER_TIMEOUT_S:.0f} s"
    finally:
        _end(process)
    last = said.strip().splitlines()[-1:] or ["nothing"]
    return f"is asked and says: {last[0][:200]}" if process.returncode else ""


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
