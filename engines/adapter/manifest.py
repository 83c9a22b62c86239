"""`manifest.json`: what a learner says of the adapter it made, with the proof that an engine serves just that.

Written by learners, read by `verify` and by promotion. Hashes of tensors are bare hex; `base_hash` is `sha256:<hex>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
from pydantic import ConfigDict, Field, StringConstraints

from engines.adapter.files import read_bounded, write_atomic
from engines.adapter.tensors import tensor_hashes
from engines.errors import BadRequest
from engines.types import MAX_PROBE_PROMPTS, ProbePrompt

__all__ = ["MANIFEST_FILE", "Manifest", "ProbeRecord", "read_manifest", "tensor_hashes", "write_manifest"]

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 32 << 20
MAX_PROBE_TOKENS = 4096

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
LogProbability = Annotated[float, Field(le=1e-4)]
"""Natural logarithm; rounding may lift it a little over 0."""


class _Record(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ProbeRecord(_Record):
    """A question, its answer, and the learner's log-probabilities of the answer's tokens, shape (num_tokens,)."""

    text: str
    answer: str
    image: Annotated[str, StringConstraints(pattern=r"^data:image/")] | None = None
    """A `data:` URL."""
    num_tokens: int = Field(ge=1, le=MAX_PROBE_TOKENS)
    token_ids: tuple[Annotated[int, Field(ge=0)], ...]
    base_logprobs: tuple[LogProbability, ...]
    """Of the bare base."""
    adapter_logprobs: tuple[LogProbability, ...]
    """Of the base with the adapter."""

    @pydantic.model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        lengths = {len(self.token_ids), len(self.base_logprobs), len(self.adapter_logprobs)}
        if lengths != {self.num_tokens}:
            raise ValueError("token_ids, base_logprobs and adapter_logprobs must each have num_tokens entries")
        return self

    def prompt(self) -> ProbePrompt:
        return ProbePrompt(self.text, self.answer, self.image, self.num_tokens)


class Manifest(_Record):
    """One adapter: where it comes from, what its file must hold, and its probe."""

    format_version: Literal[1] = 1
    family: str
    base_hash: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target_modules: tuple[str, ...] = Field(min_length=1)
    tensors: dict[str, Hex]
    """Tensor name -> sha256 of its raw bytes, as `tensor_hashes` gives it."""
    dtype: Literal["float32", "bfloat16", "float16"]
    parent: str | None = None
    """The version (`alias@N`) that training went on from."""
    data_hash: str
    code_version: str
    metrics: dict[str, float] = Field(default_factory=dict)
    probe: tuple[ProbeRecord, ...] = Field((), max_length=MAX_PROBE_PROMPTS)


def parse_manifest(data: bytes) -> Manifest:
    """Raises `BadRequest` naming the first field at fault."""
    try:
        return Manifest.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadRequest(f"{MANIFEST_FILE} is not valid at {where[:200]}: {first['msg'][:200]}") from error


def read_manifest(directory: Path) -> Manifest:
    """Raises `BadRequest` if it is missing or malformed."""
    return parse_manifest(read_bounded(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Durable, whole or not there."""
    write_atomic(directory / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode() + b"\n")
