"""A server that somebody else runs, as a process: the fake's, or a stock vLLM started plainly, without our plugin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from stack import ROOT, WEIGHTS, free_port, wait_until

from engines.served import TOKEN_VARIABLE
from engines.vllm import CPU_ENV

KEY = "key-of-elsewhere"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0


@dataclass
class Elsewhere:
    """`model` is the name that it knows its model by."""

    kind: str
    log_path: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def model(self) -> str:
        return "theirs@0" if self.kind == "fake" else "org/theirs"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Returns once it lists its model."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, cwd=ROOT, env=self._environment(), start_new_session=True
            )
        wait_until(self.is_up, f"the server answers; see {self.log_path}", START_TIMEOUT_S)

    def stop(self) -> None:
        """SIGKILL to it and its children: it goes away as a machine does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text(errors="replace")[-3000:]
        try:
            return httpx2.get(f"{self.url}/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        except httpx2.TransportError:
            return False

    def _command(self) -> tuple[str, ...]:
        if self.kind == "fake":
            return (sys.executable, "-m", "engines.fake.server", "--name", "theirs", "--port", str(self.port))
        return (
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(WEIGHTS / "base")),
            *("--served-model-name", self.model, "--host", "127.0.0.1", "--port", str(self.port), "--api-key", KEY),
            *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **CPU_ENV, TOKEN_VARIABLE: KEY, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
