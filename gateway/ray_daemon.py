"""A Ray head of Tandem's own, as a daemon: what must outlive the gateway (engines, jobs) lives in it.

A cluster that `ray.init()` starts dies with its driver; `ray start --block` in a session of its own does not. Its
address, its token and its pid stand in `<data>/run/ray.json`, so that the next gateway finds it. Token authentication
is on: whoever may submit a job to Ray may run code here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter.files import write_atomic
from engines.errors import Unavailable

if TYPE_CHECKING:
    import psutil

DRIVER_ENVIRONMENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(10 * 365 * 86400)}
"""For a process that is to outlive Ray's head, before it imports Ray: by default Ray ends it after a minute without.
A head that starts must not inherit it: its own processes end by that time limit."""

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 5.0
# A job that is asked to end finishes its step and writes a checkpoint; then Ray kills it.
_JOB_STOP_WAIT_S = 60


@dataclass(frozen=True, slots=True)
class RayDaemon:
    """Where a Ray head answers. `dashboard` is what `ray job submit --address` takes."""

    address: str
    dashboard: str
    token_path: str
    pid: int
    created: float

    def is_alive(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.created) < 1.0
        except psutil.NoSuchProcess:
            return False

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to speak to this head."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
        }


def find(run_dir: Path) -> RayDaemon | None:
    """The head that an earlier process of ours started, if it lives."""
    daemon = _read(run_dir)
    return daemon if daemon is not None and daemon.is_alive() else None


def _read(run_dir: Path) -> RayDaemon | None:
    path = run_dir / "ray.json"
    return RayDaemon(**json.loads(path.read_text())) if path.exists() else None


def start(run_dir: Path, log_dir: Path, jobs_root: Path) -> RayDaemon:
    """Starts a head and returns once it accepts connections. Raises `Unavailable` with its log's end.

    Jobs inherit `TANDEM_JOBS__ROOT`, by which one that `ray job submit` runs in a copy of a directory finds its files,
    and a PATH on which `python` is this interpreter. `ray.env` beside `ray.json` is for a shell that submits them.
    """
    import psutil

    stop(run_dir)  # what a head that died left behind
    token_path = _write_token(run_dir)
    gcs, dashboard, agent, client = _free_ports(4)
    log_path = log_dir / "ray.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
                *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={gcs}"),
                *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
                *(f"--ray-client-server-port={client}", f"--temp-dir={_session_dir(run_dir)}", "--log-color=false"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token_path),
                "TANDEM_JOBS__ROOT": str(jobs_root),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
                "PYTHONWARNINGS": "ignore",
                "RAY_JOB_STOP_WAIT_TIME_S": str(_JOB_STOP_WAIT_S),
            },
        )
    daemon = RayDaemon(
        address=f"127.0.0.1:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        token_path=str(token_path),
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
    )
    write_atomic(run_dir / "ray.json", json.dumps(asdict(daemon), indent=2).encode())
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in daemon.environment().items())
    write_atomic(run_dir / "ray.env", exports.encode())
    try:
        for port in (gcs, dashboard):
            _wait_for_port(port, process, log_path)
    except BaseException:
        stop(run_dir)
        raise
    return daemon


def stop(run_dir: Path) -> bool:
    """Ends the head and everything below it, and what a head that died left behind; False if there was nothing.

    Engines are stopped before, by their actors.
    """
    import psutil

    daemon = _read(run_dir)
    for name in ("ray.json", "ray.env"):
        (run_dir / name).unlink(missing_ok=True)
    family = [] if daemon is None else _family(daemon)
    for process in family:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=_STOP_TIMEOUT_S)
    for process in alive:
        _signal(process.kill)
    psutil.wait_procs(alive, timeout=_STOP_TIMEOUT_S)
    return bool(family)


def _family(daemon: RayDaemon) -> list[psutil.Process]:
    """What descends from the head, or is in its session: Ray's agents outlive a head that was killed."""
    import psutil

    is_alive = daemon.is_alive()
    if not is_alive and psutil.pid_exists(daemon.pid):
        return []  # the number is another's by now, so nothing was left of the session
    family = {process for process in psutil.process_iter() if _session_of(process.pid) == daemon.pid}
    if is_alive:
        head = psutil.Process(daemon.pid)
        family |= {head, *head.children(recursive=True)}
    return list(family)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _signal(send: Callable[[], None]) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        send()


def _session_dir(run_dir: Path) -> Path:
    """Short, since a unix socket's path may have 107 characters; one for each data directory."""
    name = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"tandem-ray-{name}"


def _write_token(run_dir: Path) -> Path:
    path = run_dir.absolute() / "ray.token"  # jobs read it from other working directories
    if not path.exists():
        run_dir.chmod(0o700)
        write_atomic(path, secrets.token_hex(32).encode())
    return path


def _free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(s.getsockname()[1] for s in sockets)
    for s in sockets:
        s.close()
    return ports


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.1)
    end = "\n".join(log_path.read_text(errors="replace").splitlines()[-10:])
    raise Unavailable(f"Ray did not start; the end of {log_path}:\n{end}")
