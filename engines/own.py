"""A replica of a job's own: nobody else's, and gone with the job's driver process, however that ends."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from engines.actor_name import own_name
from engines.adapter.copies import copies_root
from engines.config import EngineConfig
from engines.made import MadeReplica
from engines.placement import unplace

_log = logging.getLogger(__name__)
OWN_ENGINE = "own"
STOP_TIMEOUT_S = 30.0


class OwnReplica(MadeReplica):
    """Its engine is called `own`, so its bare base is `own@0`. Ray must be initialised by the caller."""

    is_detached = False
    lost = "`revive` makes another"

    def __init__(self, job: str, number: int, config: EngineConfig, log_dir: Path) -> None:
        """Copies are kept by `log_dir`: what a run that was killed left behind, the next one in its place removes."""
        name = f"{OWN_ENGINE}/{number}"
        copies = copies_root(f"own:{log_dir.absolute()}:{number}")
        super().__init__(name, config, own_name(job, number, config), log_dir / f"{OWN_ENGINE}-{number}", copies)

    async def stop(self) -> None:
        """Ends the engine and its actor, and gives back its GPUs and its copies' room. Safe to call twice."""
        import ray

        self._making.shutdown(wait=False, cancel_futures=True)
        actor, self._actor = self._actor, None
        if actor is None:
            return
        try:
            await asyncio.wait_for(actor.stop.remote(), STOP_TIMEOUT_S)
        except (TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("%s did not stop by itself (%s); its actor's end ends its engine too", self.name, error)
        ray.kill(actor)
        await self._unplace()
        await asyncio.to_thread(shutil.rmtree, self._copies_dir, ignore_errors=True)

    async def _unplace(self) -> None:
        try:
            await asyncio.wait_for(asyncio.to_thread(unplace, self._actor_name), STOP_TIMEOUT_S)
        except TimeoutError:
            _log.warning("Ray did not take back the GPUs of %s; they are free when the job's driver ends", self.name)
