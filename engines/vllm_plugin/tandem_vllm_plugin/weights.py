"""Another base model in the place of the one that is served, in the process that runs.

What vLLM's `reload_weights` leaves of the old model, and what is done about it here:

- adapters: they are for the old base, and vLLM would load them again by their path. The shelf removes all before.
- requests that came during the pause: they queue under the old names, adapters' too, and would be answered at the
  resume. A second pause aborts them, once no old name is served.
- the prefix cache, the scheduler's encoder cache (a picture that it knows, and the worker does not, ends the engine)
  and the processor's cache: emptied by the pause, and again after the reload.
- on a CPU, the packed copy of a head that is tied to the embeddings: packed anew by the worker.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .refusal import Refusal, reason_of
from .shelf import AdapterShelf


class BaseWeights:
    """One engine's. Whoever calls has seen to it that nobody is being answered."""

    def __init__(self, engine: Any, models: Any, shelf: AdapterShelf) -> None:
        self._engine = engine
        self._models = models
        self._shelf = shelf

    async def pause(self) -> dict[str, Any]:
        """What is under way is aborted: under other weights it would go on as another model's answer."""
        await self._engine.pause_generation(mode="abort", clear_cache=True)
        return {}

    async def swap(self, path: str, base: str) -> dict[str, Any]:
        """Raises `Refusal`; the weights may then be anything, and the engine stays paused and its name the old one."""
        if not await self._engine.is_paused():
            raise Refusal(409, "conflict", "the engine computes; pause it first")
        await self._shelf.clear()
        try:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
            await self._engine.collective_rpc("tandem_pack_heads")
        except Exception as error:  # named boundary: whatever vLLM raises for a checkpoint that it can't load
            if self._engine.errored:
                raise Refusal(503, "engine_down", "the engine died while loading the weights; read its log") from error
            raise Refusal(
                502,
                "engine_fault",
                f"the engine did not load the weights in {path}; its log says why",
                reason_of(error),
            ) from error
        await self._empty_caches()
        # The list is shared by all that resolve a model's name.
        self._models.base_model_paths[:] = [replace(self._models.base_model_paths[0], name=base, model_path=path)]
        await self.pause()
        return {}

    async def resume(self) -> dict[str, Any]:
        await self._engine.resume_generation()
        return {}

    async def _empty_caches(self) -> None:
        if not await self._engine.reset_prefix_cache():
            raise Refusal(502, "engine_fault", "the engine's prefix cache is in use and was not emptied")
        await self._engine.reset_encoder_cache()
        await self._engine.reset_mm_cache()
