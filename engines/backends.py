"""Which class serves which `kind`. To add a back end: subclass `ServedEngine` in a module of its own, name it here.

`remote` is no back end that we serve: it is a server that runs already.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from engines.config import EngineConfig
from engines.fake import FakeEngine
from engines.protocol import Engine
from engines.remote import RemoteEngine
from engines.served import ServedEngine
from engines.sglang import SglangEngine
from engines.vllm import VllmEngine

BACK_ENDS: MappingProxyType[str, type[ServedEngine]] = MappingProxyType(
    {"vllm": VllmEngine, "sglang": SglangEngine, "fake": FakeEngine}
)


def build_engine(name: str, config: EngineConfig, log_dir: Path, api_key: str = "") -> Engine:
    """A new engine, not started. `name` is that of its section; `NAME@0` is its bare base.

    `api_key` is for a remote server only.
    """
    if config.kind == "remote":
        return RemoteEngine(name, config, api_key)
    return BACK_ENDS[config.kind](name, config, log_dir)
