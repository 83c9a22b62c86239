"""What the control routes of an engine's server say: the JSON bodies of `/tandem/*`, for every back end alike.

    POST   /tandem/adapters            AddAdapter -> AdapterReply     load and pin
    DELETE /tandem/adapters/{version}  -> {}                          unpin, forget, remove; unknown is fine; / is %2F
    GET    /tandem/adapters            -> AdapterList                 what the engine holds
    POST   /tandem/probe               ProbeRequest -> ProbeReply
    GET    /tandem/stats               -> StatsReply
    POST   /tandem/pause               -> {}                          abort, compute nothing, empty the caches
    POST   /tandem/weights             SwapWeights -> {}              another model in its place, while paused
    POST   /tandem/resume              -> {}

Refusals are `{"error": {"message", "type", "param", "code", "detail"}}`: `code` is that of an `engines.errors` class,
`message` is ours, `detail` (may be absent) is what the engine's library said. The servers refuse unknown keys too.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from engines.types import MAX_PROBE_PROMPTS, EngineStats, LoadedAdapter, ProbePrompt, ProbeScore, VersionName


class Wire(BaseModel):
    """A frozen body; unknown keys are errors, so that both ends agree on the protocol, and so are NaN and Inf."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AddAdapter(Wire):
    version: str
    slot_id: int
    path: str


class AdapterReply(Wire):
    version: str
    slot_id: int
    sha256: str
    modules: list[str]

    def loaded(self) -> LoadedAdapter:
        return LoadedAdapter(VersionName.parse(self.version), self.slot_id, self.sha256, tuple(self.modules))


class AdapterList(Wire):
    adapters: list[AdapterReply]


class PromptBody(Wire):
    text: str
    answer: str
    image: str | None
    num_tokens: int

    @classmethod
    def of(cls, prompt: ProbePrompt) -> PromptBody:
        return cls(text=prompt.text, answer=prompt.answer, image=prompt.image, num_tokens=prompt.num_tokens)


class ProbeRequest(Wire):
    version: str
    prompts: list[PromptBody] = Field(max_length=MAX_PROBE_PROMPTS)


class ScoreBody(Wire):
    token_ids: list[int]
    logprobs: list[float]

    def score(self) -> ProbeScore:
        return ProbeScore(tuple(self.token_ids), tuple(self.logprobs))


class ProbeReply(Wire):
    scores: list[ScoreBody]


class StatsReply(Wire):
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_cache_hit_tokens: int
    num_aborted: int

    def stats(self) -> EngineStats:
        return EngineStats(**self.model_dump())


class SwapWeights(Wire):
    """`base` is what the model's bare base is called from then on."""

    path: str
    base: str


class ErrorDetail(BaseModel):
    """Lenient: a server's own error may carry more."""

    message: str = ""
    code: str | int | None = None
    detail: str = ""


class ErrorReply(BaseModel):
    error: ErrorDetail
