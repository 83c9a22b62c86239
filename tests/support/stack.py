"""A whole Tandem as a user starts it: `tandem serve` on a Ray of its own, in a directory of the test's."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "learners" / "toy" / "weights"
COMMAND_TIMEOUT_S = 240


@dataclass(frozen=True)
class Stack:
    """`alias` over one replica of one engine."""

    config: Path
    data: Path
    port: int
    alias: str = "vqa"

    @classmethod
    def make(cls, root: Path, kind: str, model: Path) -> "Stack":
        port = free_port()
        config = root / "tandem.toml"
        config.write_text(
            f'data = "{root}/data"\n'
            f'[engines.small]\nkind = "{kind}"\nmodel = "{model}"\ndtype = "float32"\nmax_model_len = 512\n'
            f'[models.vqa]\nengine = "small"\n[gateway]\nport = {port}\n[ray]\naddress = ""\n'
        )
        return cls(config, root / "data", port)

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

    def engine_pids(self) -> set[int]:
        """The engine's server processes, which descend from the Ray head of this stack."""
        head = json.loads((self.data / "run" / "ray.json").read_text())["pid"]
        return {p.pid for p in psutil.Process(head).children(recursive=True) if _is_server(p)}


def _is_server(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    is_lifeline = any(word.endswith("lifeline.py") or word == "engines.lifeline" for word in words)
    return not is_lifeline and bool({"engines.fake.server", "vllm.entrypoints.openai.api_server"} & set(words))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def train_sft(root: Path, *, num_rows: int = 160, max_steps: int = 20) -> Path:
    """A real adapter of the small base, as a user trains it; returns the checkpoint."""
    rows, job = root / "rows.jsonl", root / "job.toml"
    run_learner("toy", "rows", "--set", "corrections", "--num", str(num_rows), "--out", str(rows))
    job.write_text(
        f'name = "sft"\nroot = "{root}/jobs"\nmodel = "{WEIGHTS}/base"\ndata = "{rows}"\nmax_steps = {max_steps}\n'
    )
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
