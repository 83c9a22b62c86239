"""Another base model in the place of the one that is served, in the process that runs.

What vLLM's `reload_weights` leaves of the old model, and what is done about it here:

- adapters: they are for the old base, and vLLM would load them again by their path. The shelf removes all before.
- requests that came during the pause: they queue under the old names, adapters' too, and would be answered at the
  resume. A second pause aborts them, once no old name is served.
- the prefix cache, the scheduler's encoder cache (a picture that it knows, and the worker does not, ends the engine)
  and the processor's cache: emptied by the pause, and again after the reload.
- a load that failed half way: what the layers hold then is neither model's, and vLLM counts the next load's tensors on
  top of it. Nothing is loaded or answered any more, so that the engine has to be started anew.
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
        self._is_spoilt = False

    async def pause(self) -> dict[str, Any]:
        """What is under way is aborted: under other weights it would go on as another model's answer."""
        await self._engine.pause_generation(mode="abort", clear_cache=True)
        return {}

    async def swap(self, path: str, base: str) -> dict[str, Any]:
        """Raises `Refusal`; the engine stays paused then. If the load failed, it can only be ended."""
        self._check_whole()
        if not await self._engine.is_paused():
            raise Refusal(409, "conflict", "the engine computes; pause it first")
        await self._shelf.clear()
        self._is_spoilt = True
        try:
            await self._engine.collective_rpc("tandem_reload", args=(path,))
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
        self._is_spoilt = False
        # The list is shared by all that resolve a model's name.
        self._models.base_model_paths[:] = [replace(self._models.base_model_paths[0], name=base, model_path=path)]
        await self.pause()
        return {}

    async def resume(self) -> dict[str, Any]:
        """Raises `Refusal` if a load has failed."""
        self._check_whole()
        await self._engine.resume_generation()
        return {}

    def _check_whole(self) -> None:
        if self._is_spoilt:
            raise Refusal(502, "engine_fault", "its weights were loaded half way and no further; start the engine anew")

    async def _empty_caches(self) -> None:
        if not await self._engine.reset_prefix_cache():
            raise Refusal(502, "engine_fault", "the engine's prefix cache is in use and was not emptied")
        await self._engine.reset_encoder_cache()
        await self._engine.reset_mm_cache()
