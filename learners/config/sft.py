"""The settings of supervised fine-tuning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from learners.config.job import JobConfig


class SftConfig(JobConfig):
    """Supervised fine-tuning of a LoRA adapter: the answers of a data file, on top of an unquantized base."""

    method: Literal["sft"] = "sft"
    """The training method."""
    name: str = Field("sft", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """The job's name, and that of its directory under `root` unless `output` names another."""
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Of the first step; decays linearly to zero."""
    batch_size: int = Field(16, ge=1)
    """Examples of one optimizer step."""
    gradient_accumulation: int = Field(1, ge=1)
    """In how many pieces a batch is computed; divides `batch_size`."""
    max_length: int | None = Field(None, ge=16)
    """Tokens of an example, images included; a longer one counts as a bad row. Empty: no bound."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""

    @field_validator("gradient_accumulation")
    @classmethod
    def _pieces_are_whole(cls, pieces: int, info: Any) -> int:
        batch_size = info.data.get("batch_size")
        if batch_size is not None and batch_size % pieces:
            raise ValueError(f"must divide batch_size, which is {batch_size}")
        return pieces
