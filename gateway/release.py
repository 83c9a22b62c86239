"""Releases: an engine goes over to another base model, on a task of its own that callers watch.

One release or publish at a time. What a gateway that died left behind is put right by the next one, from the database:
the generation that is live there is served, and whatever else runs is ended (`recover`, `strays`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.actor_name import ActorName
from engines.adapter import base_hash_of, read_base
from engines.config import EngineConfig
from engines.errors import BadRequest, Conflict, NotFound, TandemError, Unavailable
from engines.export_probe import read_export_probe
from engines.same_place import KINDS, check_place
from gateway.config import TandemConfig
from gateway.generation import GenerationRow, GenerationState, ReleaseProgress, engine_of
from gateway.in_place import InPlaceSwap
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.rolling import RollingSwap
from gateway.steps import StepClock
from gateway.store import Store
from gateway.swap import Ground, Side, Swap

_log = logging.getLogger(__name__)
INTERRUPTED = "the release was interrupted before its flip; nothing was changed"


def config_of(row: GenerationRow, config: TandemConfig) -> EngineConfig:
    """How a generation's replicas are made: as configured, but for the model."""
    engine = config.engines[row.engine]
    return engine if row.number == 1 else engine.model_copy(update={"model": str(row.model)})


def recover(store: Store, config: TandemConfig) -> tuple[GenerationRow, ...]:
    """The live generation of each configured engine; a release that was under way has failed. Blocks."""
    for row in store.generations.list():
        if row.state is GenerationState.ROLLING:
            store.generations.fail(row, INTERRUPTED)
    return tuple(store.generations.ensure(name, engine.model_path()) for name, engine in config.engines.items())


def strays(actors: Sequence[ActorName], live: Sequence[GenerationRow], installation: str) -> tuple[str, ...]:
    """Names of this installation's actors that are not those of their engine's live generation."""
    names = {row.engine: row.actors for row in live}
    ours = (actor for actor in actors if actor.installation == installation)
    return tuple(str(one) for one in ours if names.get(engine_of(one.engine), one.engine) != one.engine)


@dataclass(frozen=True, slots=True)
class Checked:
    """A model that an engine can serve in the stead of its generation `live`."""

    live: GenerationRow
    path: Path
    base_hash: str
    in_place: bool


class Releaser:
    """`hosted`: the configuration of every generation that adapters may be verified for; releases add theirs."""

    def __init__(
        self,
        config: TandemConfig,
        hosted: dict[str, EngineConfig],
        ground: Ground,
        publisher: Publisher,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._hosted = hosted
        self._ground = ground
        self._store = ground.store
        self._publisher = publisher
        self._metrics = metrics
        self._clocks: dict[str, StepClock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def release(self, engine: str, path: Path, *, in_place: bool = False) -> GenerationRow:
        """Begins a release of the model in `path`, by a rolling swap or in place, and returns its row.

        Raises `BadRequest` for a directory that the engine can't serve, `Conflict` if another release or publish is
        under way, `NotFound` for an unknown engine. What goes wrong later is in the row.
        """
        checked = await asyncio.to_thread(self._check, engine, path, in_place=in_place)
        begun: asyncio.Future[GenerationRow] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(checked, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(begun)  # it goes on, whether or not somebody waits for the answer

    def progress_of(self, row: GenerationRow) -> ReleaseProgress:
        clock = self._clocks.get(row.name)
        if clock is None:
            return ReleaseProgress(row.steps)
        return ReleaseProgress(tuple(clock.steps), clock.now, is_under_way=True)

    async def close(self) -> None:
        """A release under way stops where it is: the next gateway puts it right."""
        for task in tuple(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _check(self, engine: str, path: Path, *, in_place: bool) -> Checked:
        """Hashes all of the weights, unless `tandem_base.json` says whose copy they are. Blocks."""
        if engine not in self._config.engines:
            raise NotFound(f"No engine '{engine[:80]}'; GET /v1/engines lists those there are.", param="engine")
        if self._config.engines[engine].kind == "remote":
            raise BadRequest(
                f"engine '{engine}' is a server elsewhere, which Tandem neither starts nor ends: serve the model there",
                param="engine",
            )
        profile = read_base(path).profile
        wanted = self._config.engines[engine].family
        if wanted not in ("auto", profile.name):
            raise BadRequest(f"{path} is a {profile.name}, and engine '{engine}' is for {wanted} models", param="path")
        live = self._live(engine)
        if live.model == path:
            raise Conflict(f"engine '{engine}' serves {path} already", param="path")
        if in_place:
            self._check_in_place(live, path)
        read_export_probe(path)
        return Checked(live, path, base_hash_of(path), in_place)

    def _check_again(self, checked: Checked) -> None:
        """What may have changed while the weights were hashed. Blocks."""
        live = self._live(checked.live.engine)
        if live.name != checked.live.name:
            raise Conflict(
                f"engine '{live.engine}' went over to {live.name} while {checked.path} was checked: release it again",
                param="engine",
            )
        if checked.in_place:
            self._check_in_place(live, checked.path)

    def _check_in_place(self, live: GenerationRow, path: Path) -> None:
        config = self._config.engines[live.engine]
        if config.kind not in KINDS:
            raise BadRequest(
                f"{config.kind} does not swap weights in place: release it by a rolling swap", param="in_place"
            )
        check_place(live.model, path)
        num_ready = len(self._ground.routes.in_service(live.name))
        if num_ready < config.replicas:
            raise Unavailable(
                f"{num_ready} of {config.replicas} replicas of {live.name} are in service, and all are needed to be "
                "swapped in place: wait for them, or look at `tandem status`"
            )

    def _live(self, engine: str) -> GenerationRow:
        return next(row for row in self._store.generations.of(engine) if row.state is GenerationState.LIVE)

    async def _run(self, checked: Checked, begun: asyncio.Future[GenerationRow]) -> None:
        try:
            async with self._publisher.only_publisher():
                await asyncio.to_thread(self._check_again, checked)
                old = checked.live
                host = old.actors if checked.in_place else None
                begin = self._store.generations.begin
                new = await asyncio.to_thread(begin, old.engine, checked.path, checked.base_hash, host)
                self._clocks[new.name] = StepClock(self._metrics)
                begun.set_result(new)
                await self._roll(old, new, self._clocks[new.name])
        except Exception as error:  # its caller hears of it, here or by the row
            if not begun.done():
                begun.set_exception(error)
            else:
                _log.exception("the release of %s ended", checked.path)

    async def _roll(self, old: GenerationRow, new: GenerationRow, clock: StepClock) -> None:
        swap: Swap | None = None
        reason = None
        try:
            swap = await self._swap_of(old, new, clock)
            await swap.run()
            _log.info("%s is released: %s", new.name, new.model)
        except Exception as error:  # whatever ended it: the row says so
            reason = error.message if isinstance(error, TandemError) else f"{type(error).__name__}: {error}"
            _log.warning("the release of %s (%s) met trouble: %s", new.name, new.model, reason, exc_info=error)
        try:
            await asyncio.to_thread(self._note, new, clock, reason, is_live=swap is not None and swap.is_flipped)
        finally:
            del self._clocks[new.name]

    async def _swap_of(self, old: GenerationRow, new: GenerationRow, clock: StepClock) -> Swap:
        sides = (Side(old, config_of(old, self._config)), Side(new, config_of(new, self._config)))
        self._hosted[new.name] = sides[1].config
        records = await asyncio.to_thread(read_export_probe, new.model)
        kind: type[Swap] = InPlaceSwap if new.host else RollingSwap
        return kind(*sides, records, self._ground, clock, self._config.gateway.request_timeout_s)

    def _note(self, new: GenerationRow, clock: StepClock, reason: str | None, *, is_live: bool) -> None:
        if is_live:
            self._store.generations.note_steps(new, clock.steps, reason)
        else:
            self._store.generations.fail(new, reason or INTERRUPTED, clock.steps)
