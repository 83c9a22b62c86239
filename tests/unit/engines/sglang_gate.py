"""The gate of the SGLang plugin around any application, with a stand-in for SGLang's own objects."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
from asgi_caller import Caller

from engines.profiles import PROFILES
from engines.sglang import PLUGIN_DIR

TOY_BASE = Path(__file__).parents[3] / "learners" / "toy" / "weights" / "base"
TOKEN = "the-token"
BASE = "small@0"
Settle = Callable[[str], Awaitable[None]]


@contextmanager
def plugin() -> Iterator[ModuleType]:
    """The plugin's package, importable; its modules are forgotten afterwards."""
    sys.path.insert(0, str(PLUGIN_DIR))
    try:
        import tandem_sglang_plugin

        yield tandem_sglang_plugin
    finally:
        sys.path.remove(str(PLUGIN_DIR))
        for name in [name for name in sys.modules if name.startswith("tandem_sglang_plugin")]:
            del sys.modules[name]


class ToyInside:
    """What SGLang's objects say of the small model. `settled` are the adapters that nobody uses any more; `num_looks`
    counts how often the vocabulary was read."""

    num_layers = 4

    def __init__(self, settle: Settle | None = None, *, is_seeded: bool = True) -> None:
        self.is_seeded = is_seeded
        self.settled: list[str] = []
        self.num_looks = 0
        self._settle = settle
        self._template = jinja2.Environment(autoescape=False).from_string(  # noqa: S701  a prompt, not a page
            (TOY_BASE / "chat_template.jinja").read_text()
        )
        added = json.loads((TOY_BASE / "tokenizer.json").read_text())["added_tokens"]
        self._ids = {token["content"]: token["id"] for token in added}

    def render(self, messages: list[dict[str, Any]]) -> str:
        return self._template.render(messages=messages, add_generation_prompt=False)

    def ids_of(self, tokens: tuple[str, ...]) -> tuple[int, ...]:
        self.num_looks += 1
        return tuple(sorted(self._ids[token] for token in tokens if token in self._ids))

    async def settle(self, adapter: str) -> None:
        self.settled.append(adapter)
        if self._settle is not None:
            await self._settle(adapter)


def gate(app: Any, inside: ToyInside, max_adapters: int = 2) -> Caller:
    """A client of the gate around `app`. Inside `plugin()`."""
    from tandem_sglang_plugin.gate import Gate
    from tandem_sglang_plugin.settings import Settings

    family = PROFILES["qwen3_vl"]
    settings = Settings(TOKEN, BASE, max_adapters, 16, family.target_modules, family.vision_tokens)
    return Caller(Gate(app, settings, inside), TOKEN)
