"""What only a worker can do: load an adapter and tell which modules its weights went into, load other weights, pack a
head anew."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class AdapterReporter:
    """Mixed into vLLM's worker class by --worker-extension-cls; reached by `collective_rpc`. Plain values only."""

    model_runner: Any
    add_lora: Any
    pin_lora: Any
    list_loras: Any
    remove_lora: Any
    reload_weights: Any
    tandem_scratch: tuple[Any, ...] | None = None

    def tandem_load_adapter(self, version: str, slot_id: int, path: str, others: Sequence[int]) -> list[Any]:
        """Removes all adapters but `others`, then loads and pins one: what vLLM's engine does in a call for each,
        every one of which would wait for the end of a step.

        Returns `[modules, seconds]`: see `_tandem_modules`; how long the engine computed nothing for it.
        """
        from vllm.lora.request import LoRARequest

        start_s = time.perf_counter()
        for orphan in set(self.list_loras()).difference(others):
            self.remove_lora(orphan)
        self.add_lora(LoRARequest(lora_name=version, lora_int_id=slot_id, lora_path=path))
        self.pin_lora(slot_id)
        return [self._tandem_modules(slot_id), time.perf_counter() - start_s]

    def _tandem_modules(self, slot_id: int) -> list[str]:
        """Names of the modules that hold weights of adapter `slot_id`, sorted; empty if it isn't loaded."""
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = manager.get_adapter(slot_id)
        if adapter is None:
            return []
        return sorted(name for name in manager.modules if manager._get_lora_layer_weights(adapter, name) is not None)

    def tandem_reload(self, path: str) -> None:
        """Loads the weights in the directory `path` into the model that is served. No adapter may be loaded.

        Raises whatever vLLM does; the weights may then be anything.
        """
        model = self.model_runner.get_model()
        if self.tandem_scratch is None:
            self.tandem_scratch = tuple(_scratch_of(model))
        with _without_adapter_layers(model):
            self.reload_weights(weights_path=path)

    def tandem_pack_heads(self) -> int:
        """On a CPU a head has a packed copy of its weights, and one that is tied to the embeddings is not packed anew
        when they are reloaded. Does it; returns for how many."""
        heads = [
            module
            for module in self.model_runner.get_model().modules()
            if type(module).__name__ == "ParallelLMHead" and getattr(module, "cpu_linear", None) is not None
        ]
        for head in heads:
            head.quant_method.process_weights_after_loading(head)
        return len(heads)


def _scratch_of(model: Any) -> Iterator[Any]:
    """Memory that 4-bit kernels work in. A reload makes it anew, while CUDA graphs go on with the one that they were
    captured with, which therefore must be kept from being freed."""
    for module in model.modules():
        methods = (getattr(module, "scheme", None), getattr(module, "quant_method", None))
        for owner in (module, *(getattr(method, "kernel", None) for method in methods)):
            if (workspace := getattr(owner, "workspace", None)) is not None:
                yield workspace


@contextmanager
def _without_adapter_layers(model: Any) -> Iterator[None]:
    """Takes the layers that vLLM wraps around the model's own for adapters out of it meanwhile.

    A checkpoint's names know nothing of them, and vLLM 0.26 finds no parameter by such a name beneath a wrapper.
    """
    from vllm.lora.layers import BaseLayerWithLoRA

    wrapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, BaseLayerWithLoRA)
    ]
    try:
        for parent, name, wrapper in wrapped:
            setattr(parent, name, wrapper.base_layer)
        yield
    finally:
        for parent, name, wrapper in wrapped:
            setattr(parent, name, wrapper)
