"""A context for one check: a small configuration in a directory of the test's, and whatever the test puts over it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from engines.vllm import Build
from gateway.client import Alias, Replica
from gateway.config import TandemConfig
from gateway.doctor.context import Context, Running
from gateway.doctor.rows import read_rows

TOY = Path(__file__).parents[3] / "learners" / "toy" / "weights" / "base"
CPU_BUILD, CUDA_BUILD = Build("0.32.0", True), Build("0.26.0", False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def configured(folder: Path, ray: str = "", **engine: Any) -> TandemConfig:
    """The alias `vqa` on the engine `small`, a fake one unless `engine` says otherwise."""
    return TandemConfig.model_validate(
        {
            "data": folder / "data",
            "engines": {"small": {"model": str(TOY), "kind": "fake", **engine}},
            "models": {"vqa": {"engine": "small"}},
            "gateway": {"port": free_port()},
            "ray": {"address": ray},
        }
    )


def stored(config: TandemConfig, **fields: Any) -> Context:
    """With the rows that the store has now."""
    return Context(config, rows=read_rows(config.store.url), **fields)


def running(config: TandemConfig, *replicas: Replica, live: str = "small@0", previous: str | None = None) -> Running:
    alias = Alias(id="vqa", engine="small", live=live, previous=previous, generation=1)
    return Running(config.gateway.url, replicas, (alias,))


def replica(name: str = "small/0", **fields: Any) -> Replica:
    return Replica.model_validate(
        {
            "id": name,
            "engine": "small",
            "state": "ready",
            "detail": "",
            "in_service": True,
            "versions": [],
            "in_flight": 0,
            "num_running": 0,
            "num_waiting": 0,
            "kv_cache_usage": 0.0,
            "ttft_ms_p50": None,
            "ttft_ms_p95": None,
            "ejected_for_s": 0.0,
            "slots": {"used": 0, "total": 4, "holders": []},
            "seen_s_ago": 0.1,
            **fields,
        }
    )


def script(path: Path, body: str) -> str:
    """An executable shell script; its path."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)
