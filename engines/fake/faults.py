"""What a test may make go wrong, and what the fake saw."""

from __future__ import annotations

from collections import deque

from engines.wire import Wire

MAX_ABORTS = 10_000


class Faults(Wire):
    """Body of `POST /tandem/faults`: replaces what was set; `{}` ends all faults."""

    load_fails: bool = False
    """Every adapter is refused."""
    replies_lost: bool = False
    """Loads and drops are done, but answered by an error that does not say so."""
    load_delay_s: float = 0.0
    """A load takes this long."""
    chat_status: int | None = None
    """Chat completions answer this status with an error body."""
    die_after_tokens: int | None = None
    """The process kills itself (SIGKILL) when a request has produced so many tokens."""
    hang_after_tokens: int | None = None
    """A request stops producing after so many tokens, and stays open."""
    answer_as: str | None = None
    """Answers name this `model`, whatever was asked."""
    logprobs_nan: bool = False
    """Log-probabilities of chat completions are NaN: null in JSON."""
    truncate: bool = False
    """Every choice ends by "length"."""


class AbortList(Wire):
    """Answer of `GET /tandem/aborts`: ids (X-Request-Id) of requests whose client hung up before the end."""

    request_ids: list[str]


class Seen:
    """Counters of one server process."""

    def __init__(self) -> None:
        self.num_running = 0
        self.num_aborted = 0
        self.cached_tokens = 0
        self._aborts: deque[str] = deque(maxlen=MAX_ABORTS)
        self._prompts: set[bytes] = set()

    def aborted(self, request_id: str) -> None:
        self.num_aborted += 1
        self._aborts.append(request_id)

    def aborts(self) -> AbortList:
        return AbortList(request_ids=list(self._aborts))

    def cached(self, key: bytes, num_tokens: int) -> int:
        """Tokens that a prefix cache would have: whole blocks of 16, if this very prompt was seen on this version."""
        hit = num_tokens // 16 * 16 if key in self._prompts else 0
        self._prompts.add(key)
        self.cached_tokens += hit
        return hit
