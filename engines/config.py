"""The `[engines.NAME]` section: one engine hosts one base model."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from engines import sglang_args, vllm_args
from engines.remote_settings import check_remote

ARGUMENTS = MappingProxyType({"vllm": vllm_args, "sglang": sglang_args})
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class EngineConfig(Section):
    """One base model and the back end that serves it."""

    model: str
    """A directory, or a hub id; of a remote server, the name that it knows the model by."""
    family: Literal["qwen3_vl", "internvl", "auto"] = "auto"
    """The model family: what the model's config.json must say; `auto` takes what it says. The fake
    back end does not look."""
    kind: Literal["vllm", "sglang", "remote", "fake"] = "vllm"
    """The back end. `remote`: a server that runs already, at `url`."""
    url: str = ""
    """Of a remote server: its base URL as OpenAI's clients take it, `http://host:port/v1`."""
    api_key_env: str = ""
    """Of a remote server: the environment variable that holds its API key; empty: it asks for none."""
    replicas: int = Field(1, ge=1, le=64)
    """How many engines of this kind run, each in a Ray actor of its own."""
    tensor_parallel: int = Field(1, ge=1, le=8)
    """GPUs of one replica, all of one node. On a Ray cluster without GPUs: one, and it means the CPU. A fake
    replica takes GPUs only where this is above one."""
    max_loras: int = Field(4, ge=3, le=64)
    """Adapter slots of a replica: a live and a previous version of each alias, one to stage the next in, those
    reserved for rollouts, and what there is to spare."""
    reserved_for_rollout: int = Field(0, ge=0, le=64)
    """How many of the slots only training jobs may use; they may use no others. Above 0, requests are scheduled by
    priority, and log-probabilities are those of the distribution sampled from (temperature, top-p)."""
    max_lora_rank: int = Field(16, ge=1, le=512)
    """The largest rank an adapter may have."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The precision of activations. `auto`: float32 on a CPU, where bfloat16 is several times slower; else the
    checkpoint's own."""
    quantization: str = "auto"
    """What the back end accepts; `auto` reads the checkpoint."""
    max_model_len: int = Field(1024, ge=64)
    """Tokens of prompt and answer together."""
    max_images: int = Field(4, ge=0, le=64)
    """Images in one request."""
    python: str = ""
    """Interpreter of another environment for this back end; empty: our own."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Handed to the back end unchanged: `{"gpu-memory-utilization" = 0.5}` becomes `--gpu-memory-utilization 0.5`.
    What Tandem sets itself is refused."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for the back end's process, over our defaults."""
    start_timeout_s: float = Field(300.0, gt=0)
    """How long the engine may take until it has answered its first request."""

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (owner := ARGUMENTS.get(info.data.get("kind", ""))) is not None:
            owner.check_args(args)
        return args

    @model_validator(mode="after")
    def _check_remote(self) -> EngineConfig:
        check_remote(self.kind, self.url, self._changed())
        return self

    def _changed(self) -> frozenset[str]:
        """Keys that are not at their default: a configuration that was written out whole has all of them."""
        fields = type(self).model_fields
        return frozenset(n for n, f in fields.items() if getattr(self, n) != f.get_default(call_default_factory=True))

    @property
    def num_slots(self) -> int:
        """How many adapters a replica holds."""
        return 0 if self.kind == "remote" else self.max_loras

    def model_path(self) -> Path:
        return Path(self.model)
