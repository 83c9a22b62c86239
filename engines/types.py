"""The vocabulary of engines: versions, endpoints, probes and what an engine says of itself.

Frozen values only; nothing here knows HTTP, a database or a model library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engines.capabilities import ALL, Capabilities
from engines.errors import BadRequest

MAX_PROBE_PROMPTS = 64
"""Of one probe, and so of one adapter's manifest."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]"
_VERSION = re.compile(rf"^(?P<alias>{_NAME}{{0,62}}|{_NAME}{{0,72}}/step)@(?P<number>0|[1-9][0-9]{{0,8}})$")


@dataclass(frozen=True, slots=True, order=True)
class VersionName:
    """`alias@N`. Never reused: an engine keys its caches by it. `engine@0` is the engine's bare base.

    The steps of a job's run are `job.run/step@N`; no other alias has a slash.
    """

    alias: str
    number: int

    def __str__(self) -> str:
        return f"{self.alias}@{self.number}"

    @property
    def is_base(self) -> bool:
        return self.number == 0

    @property
    def job(self) -> str | None:
        """Whose step it is; None if it is an alias's version."""
        name, slash, _ = self.alias.partition("/")
        return name.rpartition(".")[0] or name if slash else None

    @classmethod
    def parse(cls, text: str) -> VersionName:
        """Raises `BadRequest` unless `text` is `alias@N` or `job.run/step@N`."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise BadRequest(f"'{text[:80]}' is not a version: expected alias@N, like vqa@3", param="version")
        return cls(match["alias"], int(match["number"]))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine's HTTP answers, and the token that it asks for. Never shown to a client.

    `url` is what `/v1/...` is appended to. `model` is the one name that a server elsewhere answers to; an engine of
    ours (empty) answers to the names of versions. `token` may be empty there.
    """

    url: str
    token: str
    model: str = ""
    capabilities: Capabilities = ALL

    @property
    def is_remote(self) -> bool:
        return bool(self.model)

    def model_of(self, version: VersionName) -> str:
        """What the server calls `version`."""
        return self.model or str(version)

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r}, token=...)"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as an engine sees it: its version, the id that the ledger gave it, and its directory."""

    version: VersionName
    slot_id: int
    path: Path


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """What an engine reports of an adapter it has loaded and pinned.

    `sha256` is that of the weights file the engine's process read; `modules` are the engine's own names of the
    modules that the adapter matched (q, k and v may be one fused module there).
    """

    version: VersionName
    slot_id: int
    sha256: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """A fixed question with its answer: the log-probabilities of the answer's tokens are compared.

    `image` is a `data:` URL or None. `num_tokens` is how many tokens at the prompt's end are the answer (with its
    end-of-turn token).
    """

    text: str
    answer: str
    image: str | None
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """Log-probabilities (natural, float) of the last `num_tokens` tokens of one `ProbePrompt`, shape (num_tokens,)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class EngineState(StrEnum):
    """`new -> starting -> ready -> stopping -> stopped`; from `starting` and `ready` also `failed`.

    `failed`: it never became ready, or its process ended, or says that its engine died. `unresponsive` is what `health`
    reports of a ready engine whose process runs but does not answer in time: it may answer again.
    """

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNRESPONSIVE = "unresponsive"


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """`state`, and why it is not `ready` (the last lines of the engine's log, if it died)."""

    state: EngineState
    detail: str = ""

    @property
    def is_ready(self) -> bool:
        return self.state is EngineState.READY


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Load of one engine now."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_cache_hit_tokens: int
    num_aborted: int


@dataclass(frozen=True, slots=True)
class UserLoad:
    """What users have seen of one replica lately: 95th percentiles of the time to an answer's first token and between
    its tokens (None without a request to tell by), requests under way now, and requests that these are of."""

    p95_ttft_s: float | None
    p95_itl_s: float | None
    num_in_flight: int
    num_requests: int
