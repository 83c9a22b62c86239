"""What all checks look at, gathered once: the configuration, the machine, the running gateway, the store's rows."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.capabilities import Capabilities
from engines.config import EngineConfig
from engines.errors import DeadlineExceeded, TandemError
from engines.vllm import Build, build_of
from gateway.client import Alias, GatewayClient, Replica
from gateway.config import TandemConfig
from gateway.doctor.machine import Machine
from gateway.doctor.remotes import ask_remotes
from gateway.doctor.rows import Rows, StoreFault, read_rows

_GATEWAY_TIMEOUT_S = 3.0
_BUILD_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Running:
    """What a gateway that answers says of itself."""

    url: str
    replicas: tuple[Replica, ...]
    aliases: tuple[Alias, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """`gateway_pid` holds the data directory's pid file; `running` answers at the configured address.

    `builds` is which vLLM each vLLM engine's interpreter has, or why that is not known; `remotes` what each remote
    server can't do, or why it does not answer. `rows` is None where the store cannot be read; `rows_fault` says why.
    """

    config: TandemConfig
    file: Path | None = None
    machine: Machine = field(default_factory=Machine)
    gateway_pid: int | None = None
    running: Running | None = None
    builds: Mapping[str, Build | TandemError] = field(default_factory=dict)
    remotes: Mapping[str, Capabilities | TandemError] = field(default_factory=dict)
    rows: Rows | None = None
    rows_fault: str = ""

    def tandem(self, *words: str) -> str:
        """A command of ours for this configuration."""
        place = ("-c", str(self.file)) if self.file else ()
        return shlex.join(("tandem", *words, *place))

    @property
    def restart(self) -> str:
        return f"{self.tandem('stop')} && {self.tandem('serve', '--detach')}"

    def engines(self, kind: str) -> dict[str, EngineConfig]:
        return {name: engine for name, engine in self.config.engines.items() if engine.kind == kind}


def survey(config: TandemConfig, file: Path | None, gateway_pid: int | None) -> Context:
    """Looks once, with a deadline on everything that may not answer."""
    rows, fault = _try_rows(config.store.url)
    return Context(
        config=config,
        file=file,
        gateway_pid=gateway_pid,
        running=ask(config.gateway.url),
        builds=asyncio.run(_ask_builds(config)),
        remotes=asyncio.run(ask_remotes(config)),
        rows=rows,
        rows_fault=fault,
    )


def ask(url: str) -> Running | None:
    """None if nothing answers there as a gateway of ours does."""
    with GatewayClient(url, timeout_s=_GATEWAY_TIMEOUT_S) as gateway:
        try:
            return Running(url, tuple(gateway.replicas()), tuple(gateway.aliases()))
        except TandemError:
            return None


def _try_rows(url: str) -> tuple[Rows | None, str]:
    try:
        return read_rows(url), ""
    except StoreFault as error:
        return None, error.message


async def _ask_builds(config: TandemConfig) -> dict[str, Build | TandemError]:
    engines = {name: engine for name, engine in config.engines.items() if engine.kind == "vllm"}
    pythons = {engine.python or sys.executable for engine in engines.values()}
    answers = dict(zip(pythons, await asyncio.gather(*map(_ask_build, pythons)), strict=True))
    return {name: answers[engine.python or sys.executable] for name, engine in engines.items()}


async def _ask_build(python: str) -> Build | TandemError:
    try:
        return await asyncio.wait_for(build_of(python), _BUILD_TIMEOUT_S)
    except TandemError as error:
        return error
    except TimeoutError:
        return DeadlineExceeded(f"{python} did not say which vLLM it has within {_BUILD_TIMEOUT_S:.0f} s")
