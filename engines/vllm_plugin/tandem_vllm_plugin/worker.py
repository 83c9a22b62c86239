"""What only a worker can do: tell which modules an adapter's weights went into, and pack a head anew."""

from __future__ import annotations

from typing import Any


class AdapterReporter:
    """Mixed into vLLM's worker class by --worker-extension-cls; reached by `collective_rpc`. Plain values only."""

    model_runner: Any

    def tandem_adapter_modules(self, slot_id: int) -> list[str]:
        """Names of the modules that hold weights of adapter `slot_id`, sorted; empty if it isn't loaded."""
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = manager.get_adapter(slot_id)
        if adapter is None:
            return []
        return sorted(name for name in manager.modules if manager._get_lora_layer_weights(adapter, name) is not None)

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
