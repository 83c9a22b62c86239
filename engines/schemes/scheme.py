"""The number format of a checkpoint: what its config.json says, and what the section asks for on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from engines.config import EngineConfig
from engines.errors import BadRequest, ConfigError
from engines.profiles import read_config

KEY = "quantization_config"
NO_WEIGHTS = frozenset({"fake", "remote"})
"""Back ends that load no checkpoint of ours."""


class Scheme(StrEnum):
    """Of the language linears' weights, and of their inputs where these are quantized too.

    `unknown` is a format that no rule names, or that of a model which is not here to look at.
    """

    UNQUANTIZED = "unquantized"
    FP8 = "fp8"
    FP8_TENSOR = "fp8-tensor"
    FP8_BLOCK = "fp8-block"
    W4A16 = "w4a16"
    GPTQ = "gptq"
    AWQ = "awq"
    W8A8_INT8 = "w8a8-int8"
    ONLINE_FP8 = "online-fp8"
    ONLINE_FP8_CHANNEL = "online-fp8-channel"
    ONLINE_FP8_BLOCK = "online-fp8-block"
    ONLINE_INT8 = "online-int8"
    BITSANDBYTES = "bitsandbytes"
    GGUF = "gguf"
    UNKNOWN = "unknown"


MEANINGS: Mapping[Scheme, str] = MappingProxyType(
    {
        Scheme.UNQUANTIZED: "as it was trained: bfloat16, float16 or float32",
        Scheme.FP8: "compressed-tensors `float-quantized`: a scale for each channel, inputs scaled for each token",
        Scheme.FP8_TENSOR: "FP8 checkpoint with one scale for a whole weight or for all inputs",
        Scheme.FP8_BLOCK: "FP8 checkpoint with a scale for each block of a weight",
        Scheme.W4A16: "compressed-tensors `pack-quantized`, 4 bits",
        Scheme.GPTQ: "GPTQ checkpoint, 4 bits",
        Scheme.AWQ: "AWQ checkpoint, 4 bits",
        Scheme.W8A8_INT8: "compressed-tensors `int-quantized`: weights and inputs in 8 bits",
        Scheme.ONLINE_FP8: '`quantization = "fp8"` over an unquantized checkpoint',
        Scheme.ONLINE_FP8_CHANNEL: '`quantization = "fp8_per_channel"` over an unquantized checkpoint',
        Scheme.ONLINE_FP8_BLOCK: '`quantization = "fp8_per_block"` or `"mxfp8"` over an unquantized checkpoint',
        Scheme.ONLINE_INT8: '`quantization = "int8_per_channel_weight_only"` or `"experts_int8"`, likewise',
        Scheme.BITSANDBYTES: "bitsandbytes checkpoint, or `quantization` says so",
        Scheme.GGUF: "GGUF file, or `quantization` says so",
        Scheme.UNKNOWN: "a format that no rule names, or a model that is not on this machine",
    }
)

_ONLINE: Mapping[str, Scheme] = MappingProxyType(
    {
        "fp8": Scheme.ONLINE_FP8,
        "fp8_per_tensor": Scheme.ONLINE_FP8,
        "fp8_per_channel": Scheme.ONLINE_FP8_CHANNEL,
        "fp8_per_block": Scheme.ONLINE_FP8_BLOCK,
        "mxfp8": Scheme.ONLINE_FP8_BLOCK,
        "int8_per_channel_weight_only": Scheme.ONLINE_INT8,
        "experts_int8": Scheme.ONLINE_INT8,
        "bitsandbytes": Scheme.BITSANDBYTES,
        "gguf": Scheme.GGUF,
    }
)


def scheme_of(name: str, config: EngineConfig) -> Scheme:
    """Of the engine of section `name`. Raises `ConfigError` for a config.json that cannot be read."""
    if config.kind in NO_WEIGHTS:
        return Scheme.UNKNOWN
    if config.model.lower().endswith(".gguf"):
        return Scheme.GGUF
    saved = _saved(name, config) if config.model_path().is_dir() else Scheme.UNKNOWN
    if saved not in (Scheme.UNQUANTIZED, Scheme.UNKNOWN) or config.quantization == "auto":
        return saved
    return _ONLINE.get(config.quantization, Scheme.UNKNOWN)


def scheme_of_config(values: Mapping[str, Any]) -> Scheme:
    """Of a checkpoint, by its config.json. Raises `BadRequest` for a `quantization_config` that is no object."""
    quantization = values.get(KEY)
    if quantization is None:
        return Scheme.UNQUANTIZED
    if not isinstance(quantization, dict):
        raise BadRequest(f"config.json: {KEY} is no object: save the model again with its own library", param="model")
    method = str(quantization.get("quant_method", "")).lower()
    return _METHODS.get(method, _unknown)(quantization)


def _saved(name: str, config: EngineConfig) -> Scheme:
    try:
        return scheme_of_config(read_config(config.model_path()))
    except BadRequest as error:
        raise ConfigError(f"engines.{name}.model: {error.message}") from error


def _compressed(quantization: Mapping[str, Any]) -> Scheme:
    """All groups of linears must be of one scheme; a mixture is no scheme that a rule names."""
    groups = quantization.get("config_groups")
    found = {_of_group(group) for group in groups.values()} if isinstance(groups, dict) else set()
    return found.pop() if len(found) == 1 else Scheme.UNKNOWN


def _of_group(group: Any) -> Scheme:
    weights, inputs = (_table(group, key) for key in ("weights", "input_activations"))
    match weights.get("type"), weights.get("num_bits"), bool(inputs):
        case "float", 8, True:
            return _fp8(weights.get("strategy"), inputs.get("strategy"))
        case "int", 4, False:
            return Scheme.W4A16
        case "int", 8, True:
            return Scheme.W8A8_INT8
        case _:
            return Scheme.UNKNOWN


def _fp8(weights: Any, inputs: Any) -> Scheme:
    if "tensor" in (weights, inputs):
        return Scheme.FP8_TENSOR
    return {"channel": Scheme.FP8, "block": Scheme.FP8_BLOCK}.get(weights, Scheme.UNKNOWN)


def _fine_fp8(quantization: Mapping[str, Any]) -> Scheme:
    return Scheme.FP8_BLOCK if quantization.get("weight_block_size") else Scheme.FP8_TENSOR


def _four_bits(scheme: Scheme, quantization: Mapping[str, Any]) -> Scheme:
    bits = quantization.get("bits", quantization.get("w_bit"))
    return scheme if bits == 4 else Scheme.UNKNOWN


def _unknown(_: Mapping[str, Any]) -> Scheme:
    return Scheme.UNKNOWN


def _table(group: Any, key: str) -> Mapping[str, Any]:
    value = group.get(key) if isinstance(group, dict) else None
    return value if isinstance(value, dict) else {}


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = MappingProxyType(
    {
        "compressed-tensors": _compressed,
        "fp8": _fine_fp8,
        "gptq": lambda quantization: _four_bits(Scheme.GPTQ, quantization),
        "awq": lambda quantization: _four_bits(Scheme.AWQ, quantization),
        "bitsandbytes": lambda _: Scheme.BITSANDBYTES,
        "gguf": lambda _: Scheme.GGUF,
    }
)
"""By `quant_method`."""
