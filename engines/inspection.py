"""What transformers says of a model directory: made by `python -m learners inspect`, read by `tandem doctor MODEL`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from engines.adapter.manifest import ProbeRecord
from engines.errors import BadRequest


class _Record(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Part(StrEnum):
    """Of a vision-language model, by who owns a module. `head` makes logits of hidden states."""

    LANGUAGE = "language"
    VISION = "vision"
    PROJECTOR = "projector"
    HEAD = "head"


class PartLinears(_Record):
    """The linears of one part: how many, the prefix of all their names, and their last names."""

    part: Part
    prefix: str
    leaves: tuple[str, ...]
    num_modules: int = Field(ge=1)


class Fault(_Record):
    """A step that failed, and why; what later steps need of it is missing."""

    step: Annotated[str, Field(max_length=40)]
    reason: str


class Inspection(_Record):
    """One model. What is empty could not be found out; `faults` say why."""

    path: str
    architecture: str = ""
    """The class that `AutoModelForImageTextToText` made."""
    model_type: str = ""
    num_parameters: int = Field(0, ge=0)
    parts: tuple[PartLinears, ...] = ()
    layers: str = ""
    """What the names of the language model's repeated linears begin with, up to the layer's number."""
    peft_targets: tuple[str, ...] = ()
    """Ends of names by which PEFT finds those linears and no other; empty if their names cannot tell them apart."""
    stored_layers: str = ""
    """What the weight files call `layers`; empty if they hold no such modules."""
    renders_images: bool = False
    """Whether the chat template turns an image part into something."""
    vision_tokens: tuple[str, ...] = ()
    """Special tokens that a prompt with an image has and one without has not."""
    adapter: str = ""
    """The directory of a random adapter on the language linears."""
    records: tuple[ProbeRecord, ...] = ()
    """Fixed answers and their log-probabilities in float32, without and with that adapter."""
    faults: tuple[Fault, ...] = ()

    def linears(self, part: Part) -> PartLinears | None:
        return next((linears for linears in self.parts if linears.part is part), None)

    def fault(self, step: str) -> str:
        """Why `step` failed; empty if it did not."""
        return next((fault.reason for fault in self.faults if fault.step == step), "")


def parse_inspection(data: bytes | str) -> Inspection:
    """Raises `BadRequest` naming the first field at fault."""
    try:
        return Inspection.model_validate_json(data)
    except pydantic.ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
        raise BadRequest(f"the learner's inspection cannot be read at {where or 'its beginning'}") from error
