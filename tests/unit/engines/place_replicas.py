"""Places fake replicas of two GPUs each on a Ray of its own with four logical GPUs; prints what it saw as JSON.

A process of its own, since Ray reads its token's place when it is imported, once a process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util import placement_group_table

from engines import placement
from engines.actor import EngineActor
from engines.config import EngineConfig
from engines.errors import TandemError

CONFIG = EngineConfig(model="m", kind="fake", tensor_parallel=2)
CALL_TIMEOUT_S = 60


def start_replica(name: str, log_dir: Path) -> Any:
    options = placement.place(name, CONFIG).options()
    actor = (
        ray.remote(EngineActor)
        .options(name=name, namespace="tandem", lifetime="detached", **options)
        .remote("small", CONFIG, log_dir, log_dir / "copies")
    )
    ray.get(actor.start.remote(), timeout=CALL_TIMEOUT_S)
    return actor


def devices_of_engines() -> list[str]:
    """CUDA_VISIBLE_DEVICES of every fake engine's server below us."""
    servers = [p for p in psutil.Process().children(recursive=True) if is_server(p)]
    return sorted(p.environ().get("CUDA_VISIBLE_DEVICES", "") for p in servers)


def is_server(process: psutil.Process) -> bool:
    words = process.cmdline()
    return "engines.fake.server" in words and not any(word.endswith("lifeline.py") for word in words)


def groups() -> list[str]:
    return sorted(g["name"] for g in placement_group_table().values() if g["state"] == "CREATED")


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except TandemError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


def end(actor: Any) -> None:
    ray.get(actor.stop.remote(), timeout=CALL_TIMEOUT_S)
    ray.kill(actor)


def scenario(log_dir: Path) -> dict[str, object]:
    seen: dict[str, object] = {}
    first, second = (start_replica(f"engine:i:small/{n}:abc", log_dir) for n in (0, 1))
    seen["devices"] = devices_of_engines()
    seen["takes_none"] = placement.place(
        "engine:i:one/0:abc", CONFIG.model_copy(update={"tensor_parallel": 1})
    ).num_gpus
    placement.PLACE_TIMEOUT_S = 2.0
    seen["refusal"] = refusal(lambda: placement.place("engine:i:small/2:abc", CONFIG))
    seen["groups_after_refusal"] = groups()
    placement.PLACE_TIMEOUT_S = 20.0

    ray.kill(first)
    first = start_replica("engine:i:small/0:abc", log_dir)
    seen["groups_after_comeback"] = groups()

    end(second)
    placement.unplace("engine:i:small/1:abc")
    placement.unplace("engine:i:small/1:abc")
    third = start_replica("engine:i:small/2:abc", log_dir)
    seen["devices_after_unplace"] = devices_of_engines()

    end(third)
    placement.place("engine:i:small/2:def", CONFIG)
    seen["groups_after_another_configuration"] = groups()
    end(first)
    seen["removed"] = sorted(placement.unplace_all("engine:i:"))
    seen["groups_at_the_end"] = groups()
    return seen


def main(num_gpus: int, root: Path) -> None:
    ray.init(num_cpus=1, num_gpus=num_gpus, namespace="tandem", include_dashboard=False, log_to_driver=False)
    if num_gpus:
        seen = scenario(root)
    else:
        vllm = CONFIG.model_copy(update={"kind": "vllm", "tensor_parallel": 1})
        seen = {
            "refusal": refusal(lambda: placement.place("engine:i:small/0:abc", CONFIG)),
            "options": placement.place("engine:i:small/0:abc", vllm).options(),
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
