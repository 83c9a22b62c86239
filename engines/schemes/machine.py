"""The kind of machine that an engine computes on: what decides which kernels it has.

Read from files of the kernel; where a container hides the driver's, its own tool is asked.
"""

from __future__ import annotations

import subprocess
from enum import StrEnum
from pathlib import Path

PROC = Path("/proc")
_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_SMI_TIMEOUT_S = 10.0


class MachineKind(StrEnum):
    """A CPU by its widest instructions, a GPU by its generation. `elsewhere`: another server's, reached by URL."""

    CPU_AVX2 = "cpu-avx2"
    CPU_AVX512 = "cpu-avx512"
    CPU_AMX = "cpu-amx"
    CPU_OTHER = "cpu-other"
    GPU_AMPERE = "gpu-ampere"
    GPU_ADA = "gpu-ada"
    GPU_HOPPER = "gpu-hopper"
    GPU_BLACKWELL = "gpu-blackwell"
    GPU_OTHER = "gpu-other"
    ELSEWHERE = "elsewhere"

    @property
    def is_cpu(self) -> bool:
        return self.value.startswith("cpu-")


_BY_FLAG = (
    ("amx_tile", MachineKind.CPU_AMX),
    ("avx512f", MachineKind.CPU_AVX512),
    ("avx2", MachineKind.CPU_AVX2),
)
"""Widest first."""

_BY_MODEL = (
    (("H100", "H200", "H800", "H20", "GH200"), MachineKind.GPU_HOPPER),
    (("B100", "B200", "B300", "GB200", "GB300"), MachineKind.GPU_BLACKWELL),
    (("L4", "L40", "L40S", "RTX 4", "RTX 6000 Ada"), MachineKind.GPU_ADA),
    (("A100", "A800", "A10", "A10G", "A30", "A40", "RTX 3", "RTX A"), MachineKind.GPU_AMPERE),
)
"""Words of a card's name, as its driver writes it ("NVIDIA H100 80GB HBM3")."""


def here(proc: Path = PROC) -> MachineKind:
    """This machine: its first GPU if it has one, else its CPU."""
    card = _card_name(proc)
    return kind_of_card(card) if card else cpu_kind(proc)


def cpu_kind(proc: Path = PROC) -> MachineKind:
    flags = _cpu_flags(proc)
    return next((kind for flag, kind in _BY_FLAG if flag in flags), MachineKind.CPU_OTHER)


def gpu_kind(proc: Path = PROC) -> MachineKind:
    """The first GPU's generation; `gpu-other` where there is none."""
    return kind_of_card(_card_name(proc))


def kind_of_card(name: str) -> MachineKind:
    """By a card's name, as the driver writes it."""
    padded = f" {name.replace('-', ' ')} "
    for words, kind in _BY_MODEL:
        if any(f" {word}" in padded if " " in word else f" {word} " in padded for word in words):
            return kind
    return MachineKind.GPU_OTHER


def _cpu_flags(proc: Path) -> frozenset[str]:
    for line in _lines(proc / "cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def _card_name(proc: Path) -> str:
    """Of the first GPU; empty without one."""
    for information in sorted((proc / "driver" / "nvidia" / "gpus").glob("*/information")):
        for line in _lines(information):
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return value.strip()
    return _named_by_driver() if proc == PROC else ""


def _named_by_driver() -> str:
    try:
        said = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, and so no GPU
        return ""
    return said.splitlines()[0].strip() if said.strip() else ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # a kernel that says nothing: the kind is not known
        return []
