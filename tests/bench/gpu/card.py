"""Which accelerator the figures are of."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Card:
    """The first GPU, as its driver names it; empty names without one. `torch` is the version that was asked."""

    name: str
    memory_mib: int
    driver: str
    torch: str


def read_card() -> Card:
    import torch

    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return Card("", 0, "", torch.__version__)
    name, memory, driver = (part.strip() for part in said.splitlines()[0].split(","))
    return Card(name, int(memory), driver, torch.__version__)
