"""A back end without a model: the same HTTP, process and control routes, deterministic answers, settable faults.

For tests of everything that is above an engine. `server.py` is the process; it needs no torch and no transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import engines
from engines.control import CALL_TIMEOUT_S
from engines.fake.faults import AbortList, Faults
from engines.served import Launch, ServedEngine, python_path


class FakeEngine(ServedEngine):
    """Accepts any directory as its model; `fake.json` in it says more of it (`model.py`).

    `args`: tokens-per-s, token-latency-sigma, latency-seed, first-token-delay-s, start-delay-s."""

    async def launch(self, port: int) -> Launch:
        config = self.config
        options: dict[str, Any] = {
            "name": self.name,
            "port": port,
            "model": config.model,
            "max-adapters": config.max_loras,
            "max-lora-rank": config.max_lora_rank,
            **config.args,
        }
        words = (word for key, value in options.items() for word in (f"--{key}", str(value)))
        command = (config.python or sys.executable, "-m", "engines.fake.server", *words)
        ours = str(Path(engines.__file__).parent.parent)
        return Launch(command, {**config.env, "PYTHONPATH": python_path(ours, config)})

    async def set_faults(self, faults: Faults) -> None:
        """Replaces the faults that were set; `Faults()` ends them."""
        await self._ready_client().call("POST", "/tandem/faults", faults.model_dump(), CALL_TIMEOUT_S)

    async def aborts(self) -> tuple[str, ...]:
        """Ids of the requests whose client hung up before the answer's end, oldest first."""
        raw = await self._ready_client().call("GET", "/tandem/aborts", None, CALL_TIMEOUT_S)
        return tuple(AbortList.model_validate_json(raw).request_ids)
