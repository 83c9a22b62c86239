"""A small client of Tandem's own HTTP: what the command line and the demo ask of a running gateway.

Answers are checked for the fields that we use and keep every other one, so that `--json` prints what the gateway said.
For completions use the OpenAI SDK.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

import httpx2 as httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.capabilities import Ability, Capabilities
from engines.errors import (
    BadMediaType,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    EngineFault,
    Internal,
    NotFound,
    Refused,
    TandemError,
    TooLarge,
    Unavailable,
)

_ERRORS: dict[int, type[TandemError]] = {
    kind.status: kind
    for kind in (
        BadRequest,
        NotFound,
        Conflict,
        TooLarge,
        BadMediaType,
        Refused,
        Unavailable,
        DeadlineExceeded,
        EngineFault,
    )
}
_TIMEOUT_S = 30.0
_PUBLISH_TIMEOUT_S = 180.0
_READY_TIMEOUT_S = 2.0


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Alias(Answer):
    """What an alias names now."""

    id: str
    engine: str
    live: str
    previous: str | None
    generation: int


class Version(Answer):
    """A registered version; `reason` says why it was refused or rolled back."""

    id: str
    alias: str
    state: str
    engine: str = ""
    path: str = ""
    base_hash: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    job: str | None = None
    reason: str | None = None


class Publish(Answer):
    """The answer of promote and rollback. `seconds` is from the call to the flip, which was made on `replicas`."""

    alias: str
    version: str
    previous: str | None
    generation: int
    seconds: float
    steps: dict[str, float]
    proof: str
    replicas: list[str] = Field(default_factory=list)


class Step(Answer):
    step: str
    seconds: float


class Generation(Answer):
    """One base model that an engine serves or served. `step` is where its release is, None between two steps."""

    id: str
    engine: str
    version: str
    state: str
    model: str
    reason: str | None
    steps: list[Step]
    step: str | None
    is_under_way: bool


class Engine(Answer):
    """An engine, and its generations, oldest first."""

    id: str
    live: str
    model: str
    generations: list[Generation]


class SlotHolder(Answer):
    version: str
    owner: str


class Slots(Answer):
    """Adapter slots of a replica: used, there are (None: unknown), and who leases them."""

    used: int
    total: int | None
    holders: list[SlotHolder]


class Replica(Answer):
    """One engine replica now; what its actor alone knows is None while that does not answer.

    `missing` is what its server can't do, `unknown` what it perhaps can't.
    """

    id: str
    engine: str
    state: str
    detail: str
    in_service: bool
    versions: list[str]
    in_flight: int
    num_running: int | None
    num_waiting: int | None
    kv_cache_usage: float | None
    ttft_ms_p50: float | None
    ttft_ms_p95: float | None
    ejected_for_s: float
    slots: Slots
    seen_s_ago: float | None
    missing: list[Ability] = Field(default_factory=list)
    unknown: list[Ability] = Field(default_factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset(self.missing), frozenset(self.unknown))


class FeedbackReceipt(Answer):
    id: str
    status: str


class StoredFeedback(Answer):
    id: str
    metric: str
    value: bool | float | str


class StoredInteraction(Answer):
    id: str
    feedback: list[StoredFeedback]


class FeedbackBody(BaseModel):
    """The body of `POST /v1/feedback`."""

    completion_id: str
    metric: str
    value: bool | float | str
    comment: str | None = None


class _Page(Answer):
    data: list[Any]


_AnswerT = TypeVar("_AnswerT", bound=Answer)


class GatewayClient:
    """Every call has a deadline and raises the `TandemError` that the gateway's answer stands for."""

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        """`timeout_s`: of every call but those that publish."""
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> GatewayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """True once at least one replica can answer; False too if nothing listens."""
        try:
            return self._http.get("/readyz", timeout=_READY_TIMEOUT_S).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def models(self) -> list[str]:
        """Aliases and loaded versions, as `/v1/models` lists them."""
        return [str(row["id"]) for row in self._call(_Page, "GET", "/v1/models").data]

    def replicas(self) -> list[Replica]:
        """Every replica, by name."""
        return [_parse(Replica, row) for row in self._call(_Page, "GET", "/v1/replicas").data]

    def aliases(self) -> list[Alias]:
        return [_parse(Alias, row) for row in self._call(_Page, "GET", "/v1/aliases").data]

    def versions(self, alias: str | None = None) -> list[Version]:
        query = f"?alias={alias}" if alias else ""
        return [_parse(Version, row) for row in self._call(_Page, "GET", f"/v1/versions{query}").data]

    def version(self, name: str) -> Version:
        return self._call(Version, "GET", f"/v1/versions/{name}")

    def register(self, alias: str, path: str) -> Version:
        """Verifies and registers an adapter directory; raises `AdapterRefused`'s family, `Refused`, with the reason."""
        return self._call(Version, "POST", "/v1/versions", {"alias": alias, "path": path}, timeout_s=_PUBLISH_TIMEOUT_S)

    def promote(self, alias: str, version: str) -> Publish:
        return self._call(
            Publish, "POST", f"/v1/aliases/{alias}/promote", {"version": version}, timeout_s=_PUBLISH_TIMEOUT_S
        )

    def rollback(self, alias: str) -> Publish:
        return self._call(Publish, "POST", f"/v1/aliases/{alias}/rollback", {}, timeout_s=_PUBLISH_TIMEOUT_S)

    def engines(self) -> list[Engine]:
        return [_parse(Engine, row) for row in self._call(_Page, "GET", "/v1/engines").data]

    def engine(self, name: str) -> Engine:
        return self._call(Engine, "GET", f"/v1/engines/{name}")

    def release(self, engine: str, path: str, *, in_place: bool = False) -> Generation:
        """Begins; `engine` says how it goes."""
        body = {"path": path, "in_place": in_place}
        return self._call(Generation, "POST", f"/v1/engines/{engine}/release", body, timeout_s=_PUBLISH_TIMEOUT_S)

    def interaction(self, completion_id: str) -> StoredInteraction:
        return self._call(StoredInteraction, "GET", f"/v1/interactions/{completion_id}")

    def send_feedback(self, body: FeedbackBody, idempotency_key: str | None = None) -> FeedbackReceipt:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._call(FeedbackReceipt, "POST", "/v1/feedback", body.model_dump(exclude_none=True), headers=headers)

    def _call(
        self,
        kind: type[_AnswerT],
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> _AnswerT:
        deadline_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            response = self._http.request(method, path, json=body, headers=headers, timeout=deadline_s)
        except httpx.TimeoutException:
            raise DeadlineExceeded(f"{method} {path} got no answer within {deadline_s:.0f} s from {self.url}") from None
        except httpx.TransportError as error:
            raise Unavailable(
                f"no gateway answers at {self.url} ({error}): start one with `tandem serve`, or name it with --url"
            ) from None
        if response.is_error:
            raise error_of(response)
        return _parse(kind, _document_of(response))


def _document_of(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        raise Internal(f"the server at {response.url} answers, but not as Tandem's gateway does") from None


def _parse(kind: type[_AnswerT], document: object) -> _AnswerT:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise Internal(
            f"the gateway answered another {kind.__name__} than this version of tandem reads: {error}"
        ) from None


def error_of(response: httpx.Response) -> TandemError:
    kind = _ERRORS.get(response.status_code, Internal)
    try:
        error = response.json()["error"]
        return kind(str(error["message"]), param=error.get("param"))
    except (ValueError, KeyError, TypeError):
        return kind(f"the server at {response.url} answered {response.status_code} without Tandem's error shape")
