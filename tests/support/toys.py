"""The committed small models, one a family: where they are, for tests that run over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import learners.toy

WEIGHTS = Path(learners.toy.__file__).parent / "weights"


@dataclass(frozen=True)
class Toy:
    """What one `toy build` made; `family` is its profile's name."""

    family: str
    root: Path
    vision_tower: str
    """What the model calls it."""

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def fp8(self) -> Path:
        return self.root / "base-fp8"

    @property
    def report(self) -> Path:
        return self.root / "report.json"


TOYS = {
    toy.family: toy
    for toy in (Toy("qwen3_vl", WEIGHTS, "visual"), Toy("internvl", WEIGHTS / "internvl", "vision_tower"))
}
