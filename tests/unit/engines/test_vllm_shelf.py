"""The shelf inside vLLM's API server and what it has workers do, over a scripted engine; it needs no vLLM itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_adapter

from engines.vllm import PLUGIN_DIR

ORPHAN = 7
MODULES = ["model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.qkv_proj"]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's modules `shelf`, `worker` and `refusal`."""
    monkeypatch.syspath_prepend(str(PLUGIN_DIR))
    request = ModuleType("vllm.lora.request")
    request.LoRARequest = SimpleNamespace  # type: ignore[attr-defined]
    for module in (ModuleType("vllm"), ModuleType("vllm.lora"), request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    import tandem_vllm_plugin.refusal as refusal
    import tandem_vllm_plugin.shelf as shelf
    import tandem_vllm_plugin.worker as worker

    yield SimpleNamespace(shelf=shelf, worker=worker, refusal=refusal)
    for name in [name for name in sys.modules if name.startswith("tandem_vllm_plugin")]:
        del sys.modules[name]


class ScriptedEngine:
    """One worker that holds adapters by id; every call to it is counted."""

    def __init__(self, reporter: type[Any]) -> None:
        self.errored = False
        self.output_processor = SimpleNamespace(request_states={})
        self.calls: list[str] = []
        self.matched = MODULES
        self.held = {ORPHAN: ["left over"]}
        self.pinned: set[int] = set()
        self.fail_load: Exception | None = None
        self._worker = self._make_worker(reporter)

    async def list_loras(self) -> set[int]:
        self.calls.append("list_loras")
        return set(self.held)

    async def remove_lora(self, slot_id: int) -> None:
        self.calls.append("remove_lora")
        del self.held[slot_id]

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        self.calls.append(method)
        return [getattr(self._worker, method)(*args)]

    def _make_worker(self, reporter: type[Any]) -> Any:
        worker = reporter()
        worker.list_loras = lambda: set(self.held)
        worker.remove_lora = self.held.pop
        worker.add_lora = self._add
        worker.pin_lora = self.pinned.add
        manager = SimpleNamespace(
            modules=dict.fromkeys([*MODULES, "model.embed_tokens"]),
            get_adapter=self.held.get,
            _get_lora_layer_weights=lambda adapter, name: object() if name in adapter else None,
        )
        worker.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))
        return worker

    def _add(self, request: Any) -> None:
        if self.fail_load is not None:
            raise self.fail_load
        self.held[request.lora_int_id] = self.matched


class Bench:
    """A shelf over a scripted engine, and an adapter to load."""

    def __init__(self, plugin: Any, tmp_path: Path) -> None:
        self.refusal = plugin.refusal.Refusal
        self.engine = ScriptedEngine(plugin.worker.AdapterReporter)
        self.models = SimpleNamespace(lora_requests={})
        self.shelf = plugin.shelf.AdapterShelf(self.engine, self.models, 2)
        self.path = tiny_adapter.write_adapter(tmp_path / "adapter")


@pytest.fixture
def bench(plugin: Any, tmp_path: Path) -> Bench:
    return Bench(plugin, tmp_path)


async def test_a_load_is_one_call_to_the_engine_that_drops_orphans_loads_and_pins(bench: Bench) -> None:
    held = await bench.shelf.add("vqa@1", 1, str(bench.path))
    assert bench.engine.calls == ["tandem_load_adapter"]
    assert list(held.modules) == MODULES
    assert set(bench.engine.held) == bench.engine.pinned == {1}
    assert bench.models.lora_requests["vqa@1"].lora_path == str(bench.path)
    await bench.shelf.add("vqa@2", 2, str(bench.path))
    assert set(bench.engine.held) == {1, 2}


async def test_weights_that_cannot_be_read_leave_nothing_though_the_engine_took_them(bench: Bench) -> None:
    (bench.path / "adapter_model.safetensors").unlink()
    with pytest.raises(bench.refusal, match="cannot be read"):
        await bench.shelf.add("vqa@1", 1, str(bench.path))
    assert 1 not in bench.engine.held
    assert bench.models.lora_requests == {}


async def test_a_refused_load_leaves_nothing_and_its_slot_is_free(bench: Bench) -> None:
    bench.engine.fail_load = ValueError("Call to collective_rpc method failed: rank 99")
    with pytest.raises(bench.refusal) as refused:
        await bench.shelf.add("vqa@1", 1, str(bench.path))
    assert refused.value.detail == "rank 99"
    assert (bench.engine.held, bench.models.lora_requests) == ({}, {})
    bench.engine.fail_load = None
    await bench.shelf.add("vqa@2", 1, str(bench.path))


async def test_an_adapter_that_matches_nothing_is_refused_and_dropped(bench: Bench) -> None:
    bench.engine.matched = []
    with pytest.raises(bench.refusal, match="matched no module"):
        await bench.shelf.add("vqa@1", 1, str(bench.path))
    assert bench.engine.held == {}
