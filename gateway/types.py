"""The vocabulary of the gateway: versions and their states, aliases, interactions, feedback, publish reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from engines.errors import Conflict
from engines.types import VersionName


class VersionState(StrEnum):
    """Where a version stands on its way to users."""

    REGISTERED = "registered"
    VERIFIED = "verified"
    STAGED = "staged"
    PROBED = "probed"
    CANARY = "canary"
    LIVE = "live"
    STANDBY = "standby"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


_S = VersionState
_ENDINGS = frozenset({_S.REJECTED, _S.ROLLED_BACK})
TRANSITIONS: dict[VersionState, frozenset[VersionState]] = {
    _S.REGISTERED: frozenset({_S.VERIFIED}) | _ENDINGS,
    _S.VERIFIED: frozenset({_S.STAGED}) | _ENDINGS,
    _S.STAGED: frozenset({_S.PROBED, _S.VERIFIED}) | _ENDINGS,  # back to verified: a stage that was undone
    _S.PROBED: frozenset({_S.CANARY, _S.LIVE, _S.VERIFIED}) | _ENDINGS,
    _S.CANARY: frozenset({_S.LIVE, _S.RETIRED}) | _ENDINGS,
    _S.LIVE: frozenset({_S.STANDBY, _S.RETIRED}) | _ENDINGS,
    _S.STANDBY: frozenset({_S.LIVE, _S.RETIRED}) | _ENDINGS,
    _S.RETIRED: frozenset({_S.STAGED}) | _ENDINGS,  # promoted again: its files are still there
    _S.ROLLED_BACK: frozenset({_S.STAGED, _S.LIVE, _S.RETIRED, _S.REJECTED}),  # promoted again by hand
    _S.REJECTED: frozenset(),
}


def check_transition(name: VersionName, old: VersionState, new: VersionState) -> None:
    """Raises `Conflict` unless `old -> new` is in the table."""
    if new not in TRANSITIONS[old]:
        raise Conflict(f"version {name} is {old.value}; it cannot become {new.value}", param="version")


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A registered version. `path` is the registry's own directory of it; `proof` says how delivery is proved."""

    name: VersionName
    engine: str
    state: VersionState
    path: Path
    base_hash: str
    weights_sha256: str
    rank: int
    proof: str
    created: datetime
    parent: str | None = None
    data_hash: str | None = None
    job: str | None = None
    metrics: tuple[tuple[str, float], ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class AliasRow:
    """What an alias names now. `generation` grows by one with every flip."""

    name: str
    engine: str
    live: VersionName
    previous: VersionName | None
    generation: int


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of a publish and how long it took."""

    step: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PublishReport:
    """The answer of promote and rollback: `seconds` from the call to the flip, which was made on `replicas`."""

    alias: str
    version: VersionName
    previous: VersionName | None
    generation: int
    seconds: float
    steps: tuple[StepTime, ...]
    proof: str
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interaction:
    """One completion: what was asked and answered, and by which version.

    `request` is the client's JSON with every image replaced by `sha256:<hash>`; `answer` is choice 0's text.
    """

    id: str
    created: datetime
    alias: str
    version: VersionName
    replica: str
    request: str
    answer: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    latency_ms: float
    status: int
    stream: bool
    images: tuple[str, ...] = ()


class FeedbackStatus(StrEnum):
    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Feedback:
    """One signal about one completion. `value` is JSON text."""

    id: str
    completion_id: str
    metric: str
    value: str
    comment: str | None
    created: datetime
    status: FeedbackStatus
    idempotency_key: str | None = None
    body_sha256: str = ""
    tags: tuple[tuple[str, str], ...] = field(default=())
