"""An engine's generations: the base models that it serves, one after another.

What the configuration says is generation 1, and is called as the engine is: `small`. A released model is the next one,
and has a name of its own, `small.g2`, so that its bare base is the version `small.g2@0`: a version is immutable, and
another model is never the same version.

    rolling -> live -> retired          one generation of an engine is live
    rolling -> failed
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from engines.errors import Conflict
from engines.types import VersionName
from gateway.types import StepTime

_RELEASED = re.compile(r"(?P<engine>.+)\.g(?P<number>[1-9][0-9]{0,8})")


class GenerationState(StrEnum):
    """`rolling`: its replicas come up while another one is live. `live`: aliases name it. `retired`: none does."""

    ROLLING = "rolling"
    LIVE = "live"
    RETIRED = "retired"
    FAILED = "failed"


_S = GenerationState
TRANSITIONS: dict[GenerationState, frozenset[GenerationState]] = {
    _S.ROLLING: frozenset({_S.LIVE, _S.FAILED}),
    _S.LIVE: frozenset({_S.RETIRED}),
    _S.RETIRED: frozenset(),
    _S.FAILED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """`engine` is the name in the configuration. `base_hash` is None for what was configured: nobody read it yet.
    `host` is the generation whose actors it has taken over, by a swap in place; None: it has actors of its own.

    `steps` are those of its release, once that has ended; `reason` says why it failed.
    """

    engine: str
    number: int
    state: GenerationState
    model: Path
    created: datetime
    base_hash: str | None = None
    host: str | None = None
    reason: str | None = None
    steps: tuple[StepTime, ...] = ()

    @property
    def name(self) -> str:
        """What its replicas and its bare base are called by."""
        return self.engine if self.number == 1 else f"{self.engine}.g{self.number}"

    @property
    def actors(self) -> str:
        """The generation that its actors are called by."""
        return self.host or self.name

    @property
    def base(self) -> VersionName:
        return VersionName(self.name, 0)


@dataclass(frozen=True, slots=True)
class ReleaseProgress:
    """The steps that a release has made, and the one that it is at: empty between two, and once it has ended."""

    steps: tuple[StepTime, ...]
    step: str = ""
    is_under_way: bool = False


def engine_of(name: str) -> str:
    """The configured engine of a generation's name: `small` of `small.g2`, and of `small`."""
    match = _RELEASED.fullmatch(name)
    return match["engine"] if match else name


def check_move(row: GenerationRow, state: GenerationState) -> None:
    """Raises `Conflict` unless `row.state -> state` is in the table."""
    if state not in TRANSITIONS[row.state]:
        raise Conflict(f"{row.name} is {row.state}; it cannot become {state}", param="engine")
