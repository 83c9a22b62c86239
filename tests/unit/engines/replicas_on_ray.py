"""Serving, attached and own replicas on a Ray of its own with two logical GPUs; prints what it saw as JSON.

A process of its own, since Ray reads its token's place when it is imported, once a process.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util import list_named_actors, placement_group_table
from tiny_adapter import lora_tensors, write_adapter

from engines.adapter import pack
from engines.config import EngineConfig
from engines.errors import TandemError
from engines.replica import NAMESPACE, OwnReplica, RayReplica, find_replicas
from engines.types import EngineState, UserLoad, VersionName

CONFIG = EngineConfig(model="m", kind="fake", max_loras=4, reserved_for_rollout=2)
SHARDED = CONFIG.model_copy(update={"tensor_parallel": 2})
STEP = VersionName("grpo.1/step", 1)
DEADLINE_S = 60


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except TandemError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


async def refused(call: Awaitable[object]) -> str:
    try:
        await call
    except TandemError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


def actors(prefix: str) -> list[str]:
    return sorted(a["name"] for a in list_named_actors(all_namespaces=True) if a["name"].startswith(prefix))


def groups() -> list[str]:
    return sorted(g["name"] for g in placement_group_table().values() if g["state"] == "CREATED")


def num_servers(port: str) -> int:
    """Processes of the fake whose command line has that port."""
    words = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return sum("engines.fake.server" in line and port in line for line in words)


async def eventually(holds: Callable[[], bool]) -> bool:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110  another process's state has no event of ours
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False
    return True


async def attached(root: Path) -> dict[str, Any]:
    serving = [RayReplica("one", "small", number, CONFIG, root) for number in (0, 1)]
    other = RayReplica("two", "small", 0, CONFIG, root)
    endpoints = await asyncio.gather(*(replica.start() for replica in serving))
    await other.revive()
    seen: dict[str, Any] = {
        "none": refusal(lambda: find_replicas("big")),
        "several": refusal(lambda: find_replicas("small")),
    }
    first, second = find_replicas("small", "one")
    seen["names"] = [first.name, second.name, first.engine]
    seen["same_endpoint"] = await first.start() == endpoints[0]
    seen["restart"] = await refused(first.restart())
    await first.copy(pack(STEP, write_adapter(root / "adapter", lora_tensors(seed=1))))
    seen["loaded"] = str((await first.load("grpo", STEP, 60)).version)
    await first.renew("grpo", [STEP], 60)
    load = UserLoad(p95_ttft_s=0.1, p95_itl_s=0.01, num_in_flight=2, num_requests=30)
    await serving[0].note_users(load)
    status = await first.status()
    seen["status"] = [str(status.adapters[0].version), status.users == load, status.num_rollout_slots]
    await first.keep_only("grpo", [])
    seen["held"] = len((await serving[0].status()).adapters)

    ray.kill(ray.get_actor(actors("engine:one:small/0:")[0], namespace=NAMESPACE))
    seen["lost"] = [await refused(first.status()), actors("engine:one:small/0:")]
    await serving[0].revive()
    seen["found_again"] = (await first.status()).health.state is EngineState.NEW
    seen["not_started"] = await refused(first.start())
    return seen


async def own(root: Path) -> dict[str, Any]:
    replica = OwnReplica("grpo", 0, SHARDED, root)
    endpoint = await replica.start()
    await replica.copy(pack(STEP, root / "adapter"))
    await replica.load("grpo", STEP, 60)
    status = await replica.status()
    port = endpoint.url.rpartition(":")[2]
    seen: dict[str, Any] = {
        "name": [replica.name, replica.engine],
        "actors": len(actors("own:grpo:")),
        "groups": len(groups()),
        "hidden": refusal(lambda: find_replicas("own")),
        "servers": num_servers(port) > 0,
    }
    await replica.stop()
    await replica.stop()
    seen["left"] = [num_servers(port), groups(), status.copies_root.exists()]
    seen["actor_is_gone"] = await eventually(lambda: not actors("own:grpo:"))
    return seen


async def own_whose_driver_is_killed(root: Path, address: str) -> dict[str, Any]:
    driver = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "drive", str(root), address, stdout=subprocess.PIPE
    )
    assert driver.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        while not (line := await driver.stdout.readline()).startswith(b"port "):  # Ray says something first
            assert line, "the driver ended"
    port = line.decode().split()[1]
    seen: dict[str, Any] = {"before": [num_servers(port) > 0, len(groups())]}
    driver.send_signal(signal.SIGKILL)
    await driver.wait()
    seen["server_is_gone"] = await eventually(lambda: num_servers(port) == 0)
    seen["group_is_gone"] = await eventually(lambda: not groups())
    seen["actor_is_gone"] = await eventually(lambda: not actors("own:grpo:"))
    return seen


async def drive(root: Path) -> None:
    """The driver that is killed: starts an engine of its own, says its port, and waits."""
    endpoint = await OwnReplica("grpo", 0, SHARDED, root).start()
    print("port", endpoint.url.rpartition(":")[2], flush=True)
    await asyncio.Event().wait()


def main(root: Path) -> None:
    context = ray.init(num_cpus=1, num_gpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False)
    address = context.address_info["gcs_address"]
    seen = {
        "attached": asyncio.run(attached(root)),
        "own": asyncio.run(own(root)),
        "killed": asyncio.run(own_whose_driver_is_killed(root, address)),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        ray.init(address=sys.argv[3], namespace=NAMESPACE, log_to_driver=False)
        asyncio.run(drive(Path(sys.argv[2])))
    else:
        main(Path(sys.argv[1]))
