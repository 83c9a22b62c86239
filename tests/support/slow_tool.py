"""An environment whose reply takes its time: sampling as slow, and as uneven, as long answers or tools make it."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path

from rollout.messages import Message
from rollout.types import Prompt

NAME = "slow_tool"


class SlowTool:
    """After the model's only turn, a log-normal delay of median `median_s`; then the trajectory ends."""

    def __init__(self, median_s: float, sigma: float) -> None:
        self._mean = math.log(median_s)
        self._sigma = sigma

    def start(self, prompt: Prompt) -> tuple[Message, ...]:
        return prompt.messages

    async def reply(self, prompt: Prompt, messages: tuple[Message, ...], turn_number: int) -> None:
        await asyncio.sleep(random.lognormvariate(self._mean, self._sigma))


def install(folder: Path) -> str:
    """Makes the entry point under `folder`; returns the PYTHONPATH with which a job finds it."""
    info = folder / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tandem.environments]\n{NAME} = {NAME}:SlowTool\n")
    return f"{folder}:{Path(__file__).parent}"
