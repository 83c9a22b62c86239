"""Whether a model fits this machine's memory in float32, before anything loads it."""

from __future__ import annotations

from pathlib import Path

from engines.schemes import Scheme
from gateway.doctor.machine import GIB, Machine
from gateway.doctor.models import weights_bytes

FLOAT32_BYTES_PER_BYTE = {Scheme.UNQUANTIZED: 2, Scheme.W4A16: 8, Scheme.GPTQ: 8, Scheme.AWQ: 8}
"""Of a checkpoint: unquantized ones are mostly in 16 bits; those that are not named here in 8."""
SHARE = 0.8
"""Of the free memory: activations and libraries take the rest."""


def why_no_room(model_dir: Path, scheme: Scheme, machine: Machine) -> str:
    """Empty if it fits."""
    need = weights_bytes(model_dir) * FLOAT32_BYTES_PER_BYTE.get(scheme, 4)
    free = machine.memory_free_bytes()
    if need <= SHARE * free:
        return ""
    return f"not loaded: in float32 it takes about {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free here"
