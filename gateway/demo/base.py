"""Which small model the demo serves and trains on: of which family, and whether it is served quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "learners" / "toy" / "weights"


class DemoFamily(StrEnum):
    """A model family that there is a small model of."""

    QWEN3_VL = "qwen3_vl"
    INTERNVL = "internvl"


_PLACES: Mapping[DemoFamily, Path] = MappingProxyType(
    {DemoFamily.QWEN3_VL: WEIGHTS, DemoFamily.INTERNVL: WEIGHTS / "internvl"}
)


@dataclass(frozen=True, slots=True)
class DemoBase:
    """`path` is the unquantized base, which learners train on; `served` is what the engines load."""

    family: DemoFamily = DemoFamily.QWEN3_VL
    is_quantized: bool = True

    @property
    def path(self) -> Path:
        return _PLACES[self.family] / "base"

    @property
    def served(self) -> Path:
        return _PLACES[self.family] / "base-fp8" if self.is_quantized else self.path

    @property
    def weights_format(self) -> str:
        return "FP8" if self.is_quantized else "unquantized"

    def settings(self) -> dict[str, str]:
        """What differs from the demo's configuration file, as the environment variables that commands read."""
        served = str(self.served.relative_to(ROOT))
        return {"TANDEM_ENGINES__SMALL__MODEL": served, "TANDEM_ENGINES__SMALL__FAMILY": self.family.value}
