"""A whole Tandem as a user starts it: `tandem serve` on a Ray of its own, in a directory of the test's."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "learners" / "toy" / "weights"
COMMAND_TIMEOUT_S = 240
READY_TIMEOUT_S = 180.0
SERVERS = frozenset({"engines.fake.server", "vllm.entrypoints.openai.api_server", "tandem_sglang_plugin"})
"""The modules that engines' server processes are started by."""

Setting = str | int | float | bool
_LAUNCHED: list[subprocess.Popen[bytes]] = []
"""Gateways that `launch` started: they end by signals, and must not be collected before."""


@dataclass(frozen=True)
class Stack:
    """`alias` over the replicas of one engine."""

    config: Path
    data: Path
    port: int
    alias: str = "vqa"
    engine: str = "small"
    replicas: int = 1

    @classmethod
    def make(
        cls, root: Path, kind: str, model: Path, *, replicas: int = 1, settings: Mapping[str, Setting] | None = None
    ) -> "Stack":
        """`settings` are dotted keys over the defaults here: `{"engines.small.args.tokens-per-s": 50}`."""
        port = free_port()
        config = root / "tandem.toml"
        values: dict[str, Setting] = {
            "data": f"{root}/data",
            "engines.small.kind": kind,
            "engines.small.model": str(model),
            "engines.small.dtype": "float32",
            "engines.small.max_model_len": 512,
            "engines.small.replicas": replicas,
            "models.vqa.engine": "small",
            "gateway.port": port,
            "ray.address": "",
        }
        lines = (f"{key} = {json.dumps(value)}\n" for key, value in (values | dict(settings or {})).items())
        config.write_text("".join(lines))
        return cls(config, root / "data", port, replicas=replicas)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.tandem("serve", "--detach", "-c", str(self.config))

    def stop(self) -> None:
        """Ends everything, and asserts that no engine is left."""
        engines = self.engine_pids()
        self.tandem("stop", "-c", str(self.config))
        assert not [pid for pid in engines if psutil.pid_exists(pid)]

    def launch(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the gateway by another command than `tandem serve` (`serve -c CONFIG` is appended); waits for it."""
        log_path = self.data / "logs" / "gateway.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            gateway = subprocess.Popen(
                [*command, "serve", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
        _LAUNCHED.append(gateway)
        wait_until(lambda: gateway.poll() is not None or self.is_ready(), "the gateway answers", READY_TIMEOUT_S)
        assert gateway.poll() is None, f"the gateway ended; the end of its log:\n{self.gateway_log()[-3000:]}"
        return gateway

    def gateway_log(self) -> str:
        return (self.data / "logs" / "gateway.log").read_text(errors="replace")

    def ready_replicas(self) -> frozenset[str]:
        """Names of the replicas in service, as the gateway says; none while it does not answer."""
        try:
            with httpx2.Client(base_url=self.url, timeout=5.0, trust_env=False) as http:
                said = http.get("/readyz").json()
        except httpx2.TransportError:
            return frozenset()
        return frozenset(name for name, is_ready in said.get("replicas", {}).items() if is_ready)

    def is_ready(self) -> bool:
        return bool(self.ready_replicas())

    def wait_in_service(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits until every configured replica takes traffic."""
        wait_until(lambda: len(self.ready_replicas()) == self.replicas, "all replicas are in service", timeout_s)

    def tandem(self, *arguments: str) -> str:
        """Runs a command to its end; an assertion with what it said if it failed."""
        done = self.try_tandem(*arguments)
        assert done.returncode == 0, f"tandem {arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def try_tandem(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=ROOT,
            check=False,
        )

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def gateway_pid(self) -> int:
        return int((self.data / "run" / "gateway.pid").read_text().split()[0])

    def kill_gateway(self) -> None:
        os.kill(self.gateway_pid(), signal.SIGKILL)

    def end_gateway_at_once(self) -> None:
        """SIGKILL, and returns once the process is gone."""
        gateway = psutil.Process(self.gateway_pid())
        gateway.kill()
        psutil.wait_procs([gateway], timeout=30)
        assert not gateway.is_running() or gateway.status() == psutil.STATUS_ZOMBIE

    def engine_pids(self) -> set[int]:
        """The engines' server processes: those that log into this stack's directory, whoever their parent is now."""
        return {p.pid for p in psutil.process_iter() if _is_server(p) and _logs_into(p, self.data)}


def _logs_into(process: psutil.Process, directory: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{process.pid}/fd/1")).is_relative_to(directory)
    except OSError:  # it ended while we looked
        return False


def _is_server(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    is_lifeline = any(word.endswith("lifeline.py") or word == "engines.lifeline" for word in words)
    return not is_lifeline and not SERVERS.isdisjoint(words)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Polls until `condition` holds; an assertion that names `what` if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def train_sft(root: Path, base: Path = WEIGHTS / "base", *, num_rows: int = 160, max_steps: int = 20) -> Path:
    """A real adapter of a small base, as a user trains it; returns the checkpoint."""
    rows, job = root / "rows.jsonl", root / "job.toml"
    run_learner("toy", "rows", "--set", "corrections", "--num", str(num_rows), "--out", str(rows))
    job.write_text(f'name = "sft"\nroot = "{root}/jobs"\nmodel = "{base}"\ndata = "{rows}"\nmax_steps = {max_steps}\n')
    result = json.loads(run_learner("sft", "--config", str(job), "--json"))
    return root / "jobs" / "sft" / str(result["best_checkpoint"])


def run_learner(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "learners", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"learners {arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout
