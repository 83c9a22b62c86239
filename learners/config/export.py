"""The settings of an export: a base and an adapter in, a model directory out."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, model_validator

from engines.config import Section


class Scheme(StrEnum):
    """How the language linears are stored. `w4a16-*`: 4-bit integers with a scale for each group of inputs."""

    NONE = "none"
    FP8 = "fp8"
    W4A16_RTN = "w4a16-rtn"
    W4A16_GPTQ = "w4a16-gptq"
    W4A16_AWQ = "w4a16-awq"

    @property
    def is_grouped(self) -> bool:
        return self in (Scheme.W4A16_RTN, Scheme.W4A16_GPTQ, Scheme.W4A16_AWQ)

    @property
    def is_calibrated(self) -> bool:
        return self in (Scheme.W4A16_GPTQ, Scheme.W4A16_AWQ)

    @property
    def scales_inputs(self) -> bool:
        """Whether linears read other inputs than the unquantized model's do, so that no adapter of that fits them."""
        return self is Scheme.W4A16_AWQ


class LoadTest(Section):
    """The engine that must load the export and answer before it is kept."""

    num_questions: int | None = Field(None, ge=1)
    """Rows of `data` that it is asked, greedily; empty: all that are judged."""
    num_probes: int = Field(8, ge=0, le=64)
    """Answers whose log-probabilities are recorded: a release proves by them that it serves these weights."""
    python: str = ""
    """Interpreter of another environment for the engine; empty: our own."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Handed to the engine unchanged."""
    start_timeout_s: float = Field(300.0, gt=0)
    """How long it may take until it has answered its first request."""


class ExportConfig(Section):
    """Merge an adapter into its base, quantize, load, judge, and write one directory."""

    model: str
    """The directory of the unquantized base."""
    adapter: str | None = None
    """The adapter's directory; empty: the base itself is exported."""
    out: str
    """The directory to write. It must not be there."""
    scheme: Scheme = Scheme.FP8
    """How the language linears are stored."""
    version: str | None = None
    """The version that the adapter is registered as, for the report."""
    data: str | None = None
    """Rows that the export and the unquantized model are both judged on; empty: neither is judged."""
    num_rows: int = Field(500, ge=1)
    """At most so many of them, from the start of the file."""
    calibration: str | None = None
    """Rows that GPTQ and AWQ are fitted to: others than those of `data`."""
    num_calibration: int = Field(128, ge=1)
    """At most so many of them, spread over the file."""
    group_size: int | None = Field(None, ge=8)
    """Inputs that share a scale in a 4-bit weight; empty: 128 where it divides every linear's inputs, else 32."""
    load_test: LoadTest | None = LoadTest()
    """The engine that must load the export; `false` writes it unloaded, and the report says so."""
    environments: str = "data/envs"
    """Where the environment of llm-compressor is made, or found again."""
    python: str = ""
    """Interpreter of an environment that has llm-compressor; empty: one is made under `environments`."""
    num_threads: int = Field(1, ge=1, le=256)
    """Threads of the CPU's matrix products."""

    @model_validator(mode="before")
    @classmethod
    def _no_load_test(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("load_test") is False:
            return values | {"load_test": None}
        return values

    @model_validator(mode="after")
    def _has_calibration(self) -> ExportConfig:
        if self.scheme.is_calibrated and not self.calibration:
            raise ValueError(f"{self.scheme} is fitted to rows: give `calibration`, a JSONL or Parquet file of them")
        return self
