"""The base with a LoRA adapter on its language linears, and the adapter's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter import verify
from engines.adapter.base import BaseModel
from engines.errors import BadRequest, Internal
from engines.profiles import FamilyProfile
from learners.config import JobConfig

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def load_model(config: JobConfig, base: BaseModel, adapter: Path | None) -> PeftModel:
    """The base with `adapter` on it, or with a new one that changes nothing yet. Raises `BadRequest`, `AdapterRefused`.

    The adapter's weights are float32 whatever the base's dtype is.
    """
    from peft import PeftModel, get_peft_model

    if adapter is not None:
        _check_adapter(config, base, adapter)
    model = _load_base(config)
    if adapter is None:
        adapted = get_peft_model(model, _lora_config(config, base.profile))
    else:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    _check_language_only(adapted, base.profile)
    return adapted


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, and nothing else."""
    config = model.peft_config[model.active_adapter]
    config.target_modules = sorted(config.target_modules)  # a set, which PEFT would write in an order of its own
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def pick_device(config: JobConfig) -> torch.device:
    """Raises `BadRequest` if a GPU is asked for and there is none."""
    import torch

    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise BadRequest("device: torch sees no CUDA device on this machine; set it to cpu or auto", param="device")
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def _load_base(config: JobConfig) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForImageTextToText

    device = pick_device(config)
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = default if config.dtype == "auto" else getattr(torch, config.dtype)
    if device.type == "cuda":
        # cuDNN's attention plans anew for each shape, for up to seconds; hardly two steps have batches of one shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = AutoModelForImageTextToText.from_pretrained(config.model, dtype=dtype, local_files_only=True)
    return model.to(device)


def _lora_config(config: JobConfig, family: FamilyProfile) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(family.peft_targets),
        task_type="CAUSAL_LM",
    )


def _check_adapter(config: JobConfig, base: BaseModel, adapter: Path) -> None:
    verified = verify(adapter, base, max_rank=config.rank)
    if (verified.rank, verified.alpha) != (config.rank, config.alpha):
        raise BadRequest(
            f"parent: {adapter} has rank {verified.rank} and alpha {verified.alpha:g}; "
            f"set rank and alpha to these (here: {config.rank} and {config.alpha}), or start without a parent",
            param="parent",
        )


def _check_language_only(model: PeftModel, family: FamilyProfile) -> None:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    outside = [name for name in names if not name.startswith(tuple(_adapter_prefixes(family)))]
    if outside or not names:
        raise Internal(f"the adapter would touch {outside[0] if outside else 'nothing'}: the family profile is wrong")


def _adapter_prefixes(family: FamilyProfile) -> list[str]:
    return [family.adapter_prefix + prefix for prefix in family.language_prefixes]
