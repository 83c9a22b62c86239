"""What an exported model must answer: `export.json` beside its weights may hold prompts with their log-probabilities.

They were taken when the export was loaded for a test, on an engine of this kind and in this number format. So absolute
values are compared, which for an adapter they never are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import pydantic
from pydantic import ConfigDict, Field, StringConstraints

from engines.adapter.files import read_bounded
from engines.adapter.manifest import MAX_PROBE_TOKENS, LogProbability
from engines.errors import BadRequest, Refused
from engines.types import MAX_PROBE_PROMPTS, ProbePrompt, ProbeScore

EXPORT_FILE = "export.json"
MAX_EXPORT_BYTES = 32 << 20
MAX_ERROR = 0.1
"""Mean absolute error over all tokens, in nats, over which an engine serves other weights than were exported. Kernels
of one format differ from machine to machine by less; a head of another model, by more."""


class ExportRecord(pydantic.BaseModel):
    """A question, its answer, and the log-probabilities of the answer's last tokens, shape (num_tokens,)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: str
    answer: str
    image: Annotated[str, StringConstraints(pattern=r"^data:image/")] | None = None
    num_tokens: int = Field(ge=1, le=MAX_PROBE_TOKENS)
    token_ids: tuple[Annotated[int, Field(ge=0)], ...]
    logprobs: tuple[LogProbability, ...]

    @pydantic.model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if {len(self.token_ids), len(self.logprobs)} != {self.num_tokens}:
            raise ValueError("token_ids and logprobs must each have num_tokens entries")
        return self

    def prompt(self) -> ProbePrompt:
        return ProbePrompt(self.text, self.answer, self.image, self.num_tokens)


class _Export(pydantic.BaseModel):
    """What we read of the file; the rest is its writer's."""

    probe: tuple[ExportRecord, ...] = Field((), max_length=MAX_PROBE_PROMPTS)


def read_export_probe(model_dir: Path) -> tuple[ExportRecord, ...]:
    """Empty without the file, or if it holds no `probe`. Raises `BadRequest` if it is malformed."""
    path = model_dir / EXPORT_FILE
    if not path.exists():
        return ()
    try:
        return _Export.model_validate(json.loads(read_bounded(path, MAX_EXPORT_BYTES))).probe
    except (ValueError, pydantic.ValidationError) as error:
        raise BadRequest(f"{path} is not what an export writes; export the model again", detail=str(error)) from error


def check_export(records: Sequence[ExportRecord], scores: Sequence[ProbeScore]) -> float:
    """The mean absolute error in nats. Raises `Refused` if the engine does not serve what was exported."""
    errors: list[float] = []
    for record, score in zip(records, scores, strict=True):
        if record.token_ids != score.token_ids:
            raise Refused(f"the engine tokenizes '{record.text[:60]}' otherwise than the export did: export it again")
        errors += [abs(a - b) for a, b in zip(record.logprobs, score.logprobs, strict=True)]
    error = sum(errors) / len(errors) if errors else 0.0
    if not error <= MAX_ERROR:  # also refuses NaN
        raise Refused(
            f"the engine does not serve what was exported: log-probabilities differ by {error:.3f} on average "
            f"(limit {MAX_ERROR}); export the model again, or look at the engine's log"
        )
    return error
