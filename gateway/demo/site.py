"""The installation that the demo runs: its own data directory, port and Ray, driven by a user's commands."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from engines.errors import TandemError
from gateway.client import GatewayClient
from gateway.config import load_config
from gateway.demo.base import ROOT, DemoBase

CONFIG_FILE = ROOT / "deploy" / "examples" / "demo.toml"
_TAIL_LINES = 12
_STOP_GRACE_S = 60.0
_LOOK_EVERY_S = 0.25


class TrainedJob(BaseModel):
    """What `tandem train METHOD --submit --json` prints."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    status: str
    path: Path
    best_checkpoint: Path | None

    @property
    def checkpoint(self) -> Path:
        """Raises `TandemError` if there is none."""
        if self.best_checkpoint is None:
            raise TandemError(f"the job in {self.path} ended as {self.status} without a checkpoint")
        return self.best_checkpoint


class BuiltData(BaseModel):
    """What `tandem data build --json` prints."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: Path
    rows: int
    images: int


class Site:
    """Every method runs one command to its end; raises `TandemError` with what the command said if it failed."""

    def __init__(self, base: DemoBase) -> None:
        if not CONFIG_FILE.is_file():
            raise TandemError(f"{CONFIG_FILE} is not there: the demo runs from a checkout of Tandem")
        os.chdir(ROOT)
        os.environ.update(base.settings())  # for this process and every command that it runs
        self.base = base
        self.config = load_config(CONFIG_FILE)
        self.url = self.config.gateway.url
        self.work = self.config.data / "work"

    def wipe(self) -> None:
        """Forgets earlier demos; only what lies under the demo's own data directory."""
        shutil.rmtree(self.config.data, ignore_errors=True)
        self.work.mkdir(parents=True)

    async def start(self) -> None:
        """Returns once every replica is in service; `tandem serve` answers at the first."""
        await self._tandem("serve", "--config", str(CONFIG_FILE), "--detach")
        timeout_s = max(engine.start_timeout_s for engine in self.config.engines.values())
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        with GatewayClient(self.url) as gateway:
            while absent := await asyncio.to_thread(self._absent_replicas, gateway):
                if asyncio.get_running_loop().time() > deadline_s:
                    raise TandemError(
                        f"not in service within {timeout_s:.0f} s: {', '.join(absent)}; their logs are in "
                        f"{self.config.log_root}"
                    )
                await asyncio.sleep(_LOOK_EVERY_S)

    def _absent_replicas(self, gateway: GatewayClient) -> list[str]:
        """Names of the configured replicas that take no traffic yet."""
        present = {replica.id for replica in gateway.replicas() if replica.in_service}
        engines = self.config.engines.items()
        wanted = [f"{name}/{number}" for name, engine in engines for number in range(engine.replicas)]
        return [name for name in wanted if name not in present]

    async def stop(self) -> None:
        await self._tandem("stop", "--config", str(CONFIG_FILE))

    async def rows(self, kind: str, num: int, seed: int = 0) -> Path:
        out = self.work / f"{kind}-{seed}.jsonl"
        await _run(
            *("learners", "toy", "rows", "--set", kind, "--num", str(num), "--seed", str(seed), "--out", str(out))
        )
        return out

    async def build(self, alias: str) -> BuiltData:
        out = str(self.work / "corrections.jsonl")
        printed = await self._tandem("data", "build", "-c", str(CONFIG_FILE), "--alias", alias, "--out", out, "--json")
        return BuiltData.model_validate_json(printed)

    async def train(
        self, method: str, name: str, settings: tuple[str, ...], on_line: Callable[[str], None]
    ) -> TrainedJob:
        """A job through Ray Jobs; `on_line` gets what the command narrates while the job runs."""
        job = self.work / f"{name}.toml"
        job.write_text("".join(f"{line}\n" for line in (f'name = "{name}"', *settings)))
        printed = await self._tandem(
            *("train", method, "--config", str(job), "--submit", "--deployment", str(CONFIG_FILE), "--json"),
            on_line=on_line,
        )
        return TrainedJob.model_validate_json(printed)

    async def _tandem(self, *arguments: str, on_line: Callable[[str], None] = lambda _: None) -> str:
        return await _run("gateway.cli", *arguments, on_line=on_line)


async def _run(module: str, *arguments: str, on_line: Callable[[str], None] = lambda _: None) -> str:
    """Returns the command's stdout; hands each line of its stderr to `on_line`. Ends it if we are cancelled."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, narrated = await asyncio.gather(_read(child.stdout), _narrate(child.stderr, on_line))
        code = await child.wait()
    except asyncio.CancelledError:
        child.terminate()
        await asyncio.wait_for(child.wait(), _STOP_GRACE_S)
        raise
    if code:
        end = "\n".join([*narrated, *printed.splitlines()][-_TAIL_LINES:])
        raise TandemError(f"`python -m {module} {' '.join(arguments[:3])} ...` ended with code {code}:\n{end}")
    return printed


async def _read(stream: asyncio.StreamReader | None) -> str:
    return (await stream.read()).decode(errors="replace") if stream else ""


async def _narrate(stream: asyncio.StreamReader | None, on_line: Callable[[str], None]) -> list[str]:
    lines: list[str] = []
    while stream and (line := await stream.readline()):
        lines.append(line.decode(errors="replace").rstrip())
        on_line(lines[-1])
    return lines
