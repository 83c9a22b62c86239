"""Which parts of one configuration are there while its gateway does not answer: its process, its Ray head."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.cli.traces import log_file, pid_file

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config import TandemConfig


@dataclass(frozen=True, slots=True)
class Parts:
    """`gateway_pid` and `ray_pid` are None for what does not run; `file` is the configuration's, for commands."""

    gateway_pid: int | None
    ray_pid: int | None
    has_ray_file: bool
    log: Path
    file: Path | None

    @property
    def words(self) -> str:
        gateway = f"its process {self.gateway_pid} runs" if self.gateway_pid is not None else "no process of it runs"
        return f"{gateway}, {self._ray_words}"

    @property
    def do(self) -> str:
        """A gateway that runs but is silent starts its engines, as a rule; a dead head needs both ended first."""
        if self._is_ray_dead:
            return f"{self._tandem('stop')} && {self._tandem('serve', '--detach')}"
        if self.gateway_pid is not None:
            return f"tail -f {shlex.quote(str(self.log))}"
        return self._tandem("serve", "--detach")

    def document(self) -> dict[str, object]:
        return {"gateway_pid": self.gateway_pid, "ray_pid": self.ray_pid, "log": str(self.log)}

    @property
    def _is_ray_dead(self) -> bool:
        return self.has_ray_file and self.ray_pid is None

    @property
    def _ray_words(self) -> str:
        if self.ray_pid is not None:
            return f"its Ray head (process {self.ray_pid}) runs"
        return "its Ray head is gone" if self.has_ray_file else "no Ray head of its own runs"

    def _tandem(self, *words: str) -> str:
        return shlex.join(("tandem", *words, *(("-c", str(self.file)) if self.file else ())))


def find_parts(config: TandemConfig, file: Path | None) -> Parts:
    from gateway import ray_daemon

    head = ray_daemon.find(config.run_root)
    return Parts(
        gateway_pid=pid_file(config).holder(),
        ray_pid=head.pid if head else None,
        has_ray_file=(config.run_root / "ray.json").exists(),
        log=log_file(config),
        file=file,
    )
