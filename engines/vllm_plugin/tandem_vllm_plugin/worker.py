"""What only a worker knows: which of the model's modules an adapter's weights went into."""

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
