"""The number formats that a base's language linears are copied in, as compressed-tensors names them.

FP8: one scale per output channel, absmax / 448 (the largest float8 e4m3 number); activations are scaled per token as
they come. W4A16: whole numbers of four bits, -8 to 7, one scale per 32 inputs, rounded to nearest; activations stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme
    from torch import Tensor

FP8_MAX = 448.0
GROUP_SIZE = 32
HALF_RANGE = 7.5
"""Of four bits: the largest weight of a group lies half a step beyond 7, or on -8 less half a step."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """`format`, `weights` and `activations` are compressed-tensors' own; `compress` makes a linear's tensors, by the
    names that they have in its module, of its weight (out, in)."""

    name: str
    format: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None
    compress: Callable[[Tensor], dict[str, Tensor]]

    def group(self) -> dict[str, Any]:
        """The `config_groups` entry of a checkpoint's config.json."""
        activations = None if self.activations is None else dict(self.activations)
        return {
            "targets": ["Linear"],
            "weights": dict(self.weights),
            "input_activations": activations,
            "output_activations": None,
        }


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` (out, in) as float8 e4m3 and its scales (out, 1) float32; their product is the weight, rounded."""
    import torch

    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def packing() -> QuantizationScheme:
    """W4A16 as compressed-tensors' own packer and unpacker take it."""
    from compressed_tensors.quantization import QuantizationScheme

    return QuantizationScheme.model_validate(W4A16.group())


def _to_fp8_tensors(weight: Tensor) -> dict[str, Tensor]:
    values, scale = to_fp8(weight)
    return {"weight": values, "weight_scale": scale}


def _to_packed_tensors(weight: Tensor) -> dict[str, Tensor]:
    """Scales (out, in / 32) in bfloat16, which is what an engine keeps of them."""
    from compressed_tensors.compressors import PackedQuantizationCompressor

    absmax = weight.float().unflatten(1, (-1, GROUP_SIZE)).abs().amax(dim=2).clamp(min=1e-12)
    parts = {"weight": weight.float(), "weight_scale": (absmax / HALF_RANGE).bfloat16()}
    packed: dict[str, Tensor] = PackedQuantizationCompressor.compress(parts, packing())
    return packed


_FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
_INT4 = {"num_bits": 4, "type": "int", "symmetric": True}

FP8 = Scheme(
    name="fp8",
    format="float-quantized",
    weights=_FLOAT | {"strategy": "channel", "dynamic": False},
    activations=_FLOAT | {"strategy": "token", "dynamic": True},
    compress=_to_fp8_tensors,
)

W4A16 = Scheme(
    name="w4a16",
    format="pack-quantized",
    weights=_INT4 | {"strategy": "group", "group_size": GROUP_SIZE, "dynamic": False},
    activations=None,
    compress=_to_packed_tensors,
)

SCHEMES = MappingProxyType({scheme.name: scheme for scheme in (FP8, W4A16)})
