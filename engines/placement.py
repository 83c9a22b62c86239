"""Where on a Ray cluster a replica's actor runs: `place` before the actor is made, `unplace` when it is ended.

A replica that takes GPUs has a placement group of its own, named like its actor and as detached, with one bundle of
`tensor_parallel` GPUs: one replica's shards share a node. Ray sets CUDA_VISIBLE_DEVICES of the actor, and its engine
inherits it. A vLLM or SGLang replica takes GPUs wherever the cluster has any; a fake one only where `tensor_parallel`
is above one, so that tests can place replicas on GPUs that exist for Ray alone.

A group outlives its actor, so that the next actor of the same name finds its GPUs again. What nobody comes back for is
removed by `place` (the same replica with another configuration) and `unplace_all`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.config import EngineConfig
from engines.errors import ConfigError, Unavailable
from engines.ray_head import check_head

PLACE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Placement:
    """`num_gpus` GPUs out of `group`, a Ray placement group; or none, and any node."""

    num_gpus: int = 0
    group: Any = None

    def options(self) -> dict[str, Any]:
        """What `actor_class.options()` takes."""
        if self.group is None:
            return {"num_cpus": 0}
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=0)
        return {"num_cpus": 0, "num_gpus": self.num_gpus, "scheduling_strategy": strategy}


def place(actor_name: str, config: EngineConfig, *, is_detached: bool = True) -> Placement:
    """Reserves what a replica's actor needs; blocks up to `PLACE_TIMEOUT_S`. Twice for one name is one reservation.
    One that is not detached ends with the driver that made it.

    The caller has made sure that no actor of another configuration of this replica lives: its group is removed.
    Raises `ConfigError` for several GPUs on a cluster without any, `Unavailable` if there is no room or Ray's head is
    gone.
    """
    import ray

    check_head()
    num_gpus = _num_gpus(config, int(ray.cluster_resources().get("GPU", 0)))
    if not num_gpus and actor_name in _groups(actor_name):
        raise Unavailable(
            f"{actor_name} has had GPUs of this cluster, which has none now: it is placed again when their node is back"
        )
    replica, _, _ = actor_name.rpartition(":")
    for name in _groups(f"{replica}:"):
        if not num_gpus or name != actor_name:
            unplace(name)
    return Placement(num_gpus, _reserve(actor_name, num_gpus, is_detached)) if num_gpus else Placement()


def unplace(actor_name: str) -> None:
    """Gives back what `place` reserved, and ends an actor that still runs there; no harm where there is nothing."""
    from ray.util import get_placement_group, remove_placement_group

    try:
        group = get_placement_group(actor_name)
    except ValueError:  # Ray's way to say that there is none
        return
    remove_placement_group(group)


def unplace_all(prefix: str) -> tuple[str, ...]:
    """`unplace` for every name that begins with `prefix`, whether its actor lives or not; returns the names."""
    names = _groups(prefix)
    for name in names:
        unplace(name)
    return names


def _num_gpus(config: EngineConfig, num_in_cluster: int) -> int:
    if config.tensor_parallel > 1 and not num_in_cluster:
        raise ConfigError(
            f"tensor_parallel: {config.tensor_parallel} GPUs a replica are asked for, and the Ray cluster has none; "
            "set it to 1, or start Ray where the GPUs are"
        )
    takes_gpus = config.tensor_parallel > 1 or config.kind in ("vllm", "sglang")
    return config.tensor_parallel if num_in_cluster and takes_gpus else 0


def _groups(prefix: str) -> tuple[str, ...]:
    """Names of the groups that hold resources or wait for them."""
    from ray.util import placement_group_table

    groups = placement_group_table().values()
    return tuple(g["name"] for g in groups if g["name"].startswith(prefix) and g["state"] != "REMOVED")


def _reserve(actor_name: str, num_gpus: int, is_detached: bool) -> Any:
    from ray.util import get_placement_group, placement_group

    try:
        group = get_placement_group(actor_name)
    except ValueError:  # Ray's way to say that there is none
        lifetime = "detached" if is_detached else None
        group = placement_group([{"GPU": num_gpus}], strategy="STRICT_PACK", name=actor_name, lifetime=lifetime)
    if not group.wait(PLACE_TIMEOUT_S):
        message = _no_room(actor_name, num_gpus)
        unplace(actor_name)
        raise Unavailable(message)
    return group


def _no_room(actor_name: str, num_gpus: int) -> str:
    import ray

    num_all, num_free = (int(r.get("GPU", 0)) for r in (ray.cluster_resources(), ray.available_resources()))
    return (
        f"no room for {actor_name} within {PLACE_TIMEOUT_S:.0f} s: it wants {num_gpus} GPUs of one node, and of the "
        f"cluster's {num_all} {num_free} are free; end what holds them, add a node, or lower replicas or "
        "tensor_parallel"
    )
