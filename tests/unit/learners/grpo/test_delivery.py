"""Delivery over replicas that a test can make fail: what is sampled from is what was proven, whoever comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from engines.actor import ReplicaStatus
from engines.adapter import Parcel, ProbeRecord
from engines.adapter.parcel import ParcelFile
from engines.errors import DeadlineExceeded, EngineDown, NoSlot, NotFound, Refused
from engines.profiles import PROFILES
from engines.types import Endpoint, EngineHealth, EngineState, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from learners.grpo.delivery import Delivery, Push
from rollout.types import Target

PROFILE = PROFILES["qwen3_vl"]
MODULE = "model.language_model.layers.0.self_attn.q_proj"
BASE = VersionName("small", 0)
RECORD = ProbeRecord(
    text="?", answer="yes", num_tokens=2, token_ids=(1, 2), base_logprobs=(-1.0, -1.0), adapter_logprobs=(-0.5, -0.5)
)


def version(number: int) -> VersionName:
    return VersionName("job.1/step", number)


def push(number: int, logprob: float = -0.5) -> Push:
    record = RECORD.model_copy(update={"adapter_logprobs": (logprob, logprob)})
    weights = ParcelFile.of("adapter_model.safetensors", f"weights {number}".encode())
    return Push(version(number), Parcel(version(number), (weights,)), (MODULE,), (record,))


class ScriptedReplica:
    """Holds up to `num_slots` versions; `served` is what its probe of an adapter answers."""

    def __init__(self, number: int, num_slots: int = 3) -> None:
        self.name = f"small/{number}"
        self.engine = "small"
        self.port = 1000 + number
        self.num_slots = num_slots
        self.held: dict[VersionName, Parcel] = {}
        self.copies: dict[VersionName, Parcel] = {}
        self.renewed: set[VersionName] = set()
        self.served = -0.5
        self.num_base_probes = 0
        self.is_down = False
        self.is_full = False

    def restart(self) -> None:
        self.port += 100
        self.held.clear()
        self.is_down = False

    async def status(self) -> ReplicaStatus:
        if self.is_down:
            raise EngineDown(f"{self.name} is down")
        loaded = tuple(LoadedAdapter(name, 1, "", ()) for name in self.held)
        endpoint = Endpoint(f"http://127.0.0.1:{self.port}", "token")
        health = EngineHealth(EngineState.READY)
        return ReplicaStatus(health, endpoint, None, loaded, (), self.num_slots, Path("copies"))

    async def copy(self, parcel: Parcel) -> None:
        self.copies[parcel.version] = parcel

    async def load(self, owner: str, name: VersionName, ttl_s: float) -> LoadedAdapter:
        if self.is_full or len(self.held) >= self.num_slots:
            raise NoSlot("full")
        self.held[name] = self.copies[name]
        sha256 = self.held[name].sha256_of("adapter_model.safetensors")
        return LoadedAdapter(name, 1, sha256 or "", ("language_model.model.layers.0.self_attn.qkv_proj",))

    async def keep_only(self, owner: str, names: Iterable[VersionName]) -> None:
        kept = set(names)
        self.held = {name: parcel for name, parcel in self.held.items() if name in kept}

    async def renew(self, owner: str, names: Sequence[VersionName], ttl_s: float) -> None:
        if missing := set(names) - set(self.held):
            raise NotFound(f"{missing} is not leased")
        self.renewed |= set(names)

    async def probe(self, name: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        self.num_base_probes += name == BASE
        value = -1.0 if name == BASE else self.served
        return tuple(ProbeScore((1, 2), (value, value)) for _ in prompts)


class Scene:
    """A delivery over replicas, what it says is to be sampled from, and what a test says is in use."""

    def __init__(self, *replicas: ScriptedReplica) -> None:
        self.in_use: set[VersionName] = set()
        self.used: list[tuple[VersionName, list[str]]] = []
        self.delivery = Delivery(
            replicas,  # type: ignore[arg-type]
            owner="job",
            profile=PROFILE,
            max_mismatch=0.02,
            in_use=lambda: frozenset(self.in_use),
            use=self.use,
        )

    def use(self, name: VersionName, targets: tuple[Target, ...]) -> None:
        self.used.append((name, [target.name for target in targets]))


async def test_a_version_is_sampled_from_once_every_replica_that_answers_has_proven_it() -> None:
    replicas = [ScriptedReplica(0), ScriptedReplica(1)]
    scene = Scene(*replicas)
    delivered = await scene.delivery.deliver(push(1), 5.0)
    assert scene.used == [(version(1), ["small/0", "small/1"])]
    assert delivered.replicas == ("small/0", "small/1")
    assert delivered.effect == pytest.approx(0.5)
    assert delivered.error == pytest.approx(0.0)


async def test_a_replica_that_serves_something_else_ends_the_delivery_and_is_not_sampled_from() -> None:
    replica = ScriptedReplica(0)
    replica.served = -0.6
    scene = Scene(replica)
    with pytest.raises(Refused, match=r"max_mismatch is 0\.02"):
        await scene.delivery.deliver(push(1), 5.0)
    assert scene.used == []


async def test_a_replica_that_serves_the_version_before_is_found_though_the_two_hardly_differ() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1, -0.5), 5.0)
    with pytest.raises(Refused, match="the weights before these"):
        await scene.delivery.deliver(push(2, -0.495), 5.0)
    replica.served = -0.495
    await scene.delivery.deliver(push(2, -0.495), 5.0)
    assert scene.used[-1][0] == version(2)


async def test_a_replica_that_is_down_is_named_and_the_others_serve() -> None:
    away, here = ScriptedReplica(0), ScriptedReplica(1)
    away.is_down = True
    scene = Scene(away, here)
    delivered = await scene.delivery.deliver(push(1), 5.0)
    assert delivered.replicas == ("small/1",)
    assert delivered.misses == ("small/0 is down",)


async def test_without_any_replica_a_delivery_ends_at_its_deadline_and_says_why() -> None:
    down, full = ScriptedReplica(0), ScriptedReplica(1)
    down.is_down = True
    full.is_full = True
    with pytest.raises(DeadlineExceeded, match=r"no replica took .*: small/0: small/0 is down; small/1: full"):
        await Scene(down, full).delivery.deliver(push(1), 0.6)


async def test_what_no_group_uses_is_released_before_the_next_load() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    for number in (1, 2, 3, 4):
        await scene.delivery.deliver(push(number), 5.0)
    assert set(replica.held) == {version(3), version(4)}


async def test_what_a_group_uses_stays() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1), 5.0)
    scene.in_use = {version(1)}
    await scene.delivery.deliver(push(2), 5.0)
    await scene.delivery.deliver(push(3), 5.0)
    assert set(replica.held) == {version(1), version(2), version(3)}


async def test_a_replica_that_started_anew_is_brought_the_newest_version_before_it_is_sampled_from() -> None:
    first, second = ScriptedReplica(0), ScriptedReplica(1)
    scene = Scene(first, second)
    await scene.delivery.deliver(push(1), 5.0)
    second.is_down = True
    await scene.delivery.tend()
    assert scene.used[-1] == (version(1), ["small/0"])
    second.restart()
    await scene.delivery.tend()
    assert scene.used[-1] == (version(1), ["small/0", "small/1"])
    assert version(1) in second.held


async def test_the_base_is_probed_once_until_the_engine_starts_anew() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    for number in range(1, 4):
        await scene.delivery.deliver(push(number), 5.0)
    assert replica.num_base_probes == 1
    replica.restart()
    await scene.delivery.tend()
    assert replica.num_base_probes == 2


async def test_leases_of_what_is_in_use_are_renewed() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1), 5.0)
    scene.in_use = {version(1)}
    await scene.delivery.deliver(push(2), 5.0)
    await scene.delivery.tend()
    assert replica.renewed == {version(1), version(2)}


async def test_a_replica_without_a_free_slot_takes_the_version_when_it_has_one() -> None:
    full, free = ScriptedReplica(0), ScriptedReplica(1)
    full.is_full = True
    scene = Scene(full, free)
    await scene.delivery.deliver(push(1), 5.0)
    full.is_full = False
    await scene.delivery.tend()
    assert scene.used[-1] == (version(1), ["small/0", "small/1"])


async def test_closing_releases_all_that_the_job_held() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1), 5.0)
    await scene.delivery.close()
    assert not replica.held


async def test_nothing_is_leased_again_after_closing() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1), 5.0)
    await scene.delivery.close()
    await scene.delivery.tend()
    assert not replica.held
    assert not replica.renewed


async def test_a_replica_that_is_brought_the_newest_version_later_and_serves_the_one_before_is_found() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1, -0.5), 5.0)
    replica.served = -0.495
    await scene.delivery.deliver(push(2, -0.495), 5.0)
    replica.restart()
    await scene.delivery.tend()
    assert version(2) in replica.held
    replica.restart()
    replica.served = -0.5
    with pytest.raises(Refused, match="the weights before these"):
        await scene.delivery.tend()


async def test_nothing_more_is_asked_of_replicas_that_are_away_while_a_push_waits_for_them() -> None:
    replica = ScriptedReplica(0)
    scene = Scene(replica)
    await scene.delivery.deliver(push(1), 5.0)
    replica.is_down = True
    pushing = asyncio.create_task(scene.delivery.deliver(push(2), 30.0))
    async with asyncio.timeout(10):
        while scene.used[-1] != (version(1), []):  # noqa: ASYNC110  the delivery tells nobody else
            await asyncio.sleep(0.02)
    replica.restart()
    await pushing
    assert scene.used[-1] == (version(2), ["small/0"])
