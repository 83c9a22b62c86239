"""What an actor believes of its engine stays true when an answer is lost: asked of the fake, without Ray."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from acting import MAX_LORAS, OWNER, adapter, held, load, version

from engines.actor import EngineActor
from engines.adapter import pack
from engines.config import EngineConfig
from engines.errors import AdapterRefused, Conflict, EngineFault, NotFound, Unavailable
from engines.fake import FakeEngine
from engines.fake.faults import Faults
from engines.fake.model import MODEL_FILE, FakeModel
from engines.lifeline import group_members
from engines.types import EngineState, ProbePrompt, ProbeScore, UserLoad, VersionName

pytestmark = pytest.mark.timeout(60)

LOST = Faults(replies_lost=True)


def engine_of(actor: EngineActor) -> FakeEngine:
    engine = actor._engine
    assert isinstance(engine, FakeEngine)
    return engine


async def test_a_version_whose_load_was_not_confirmed_can_be_loaded_again(actor: EngineActor, tmp_path: Path) -> None:
    await engine_of(actor).set_faults(LOST)
    with pytest.raises(EngineFault):
        await load(actor, tmp_path, 1)
    assert await held(actor) == []
    await engine_of(actor).set_faults(Faults())
    await load(actor, tmp_path, 1)
    assert await held(actor) == [version(1)]


async def test_unconfirmed_loads_cost_no_slot(actor: EngineActor, tmp_path: Path) -> None:
    await engine_of(actor).set_faults(LOST)
    for number in range(1, MAX_LORAS + 2):
        with pytest.raises(EngineFault):
            await load(actor, tmp_path, number)
    await engine_of(actor).set_faults(Faults())
    for number in range(11, 11 + MAX_LORAS):
        await load(actor, tmp_path, number)
    assert await held(actor) == [version(number) for number in range(11, 11 + MAX_LORAS)]


async def test_a_refused_load_costs_no_slot(actor: EngineActor, tmp_path: Path) -> None:
    for number in range(1, MAX_LORAS + 2):
        await engine_of(actor).set_faults(Faults(load_fails=True))
        with pytest.raises(AdapterRefused):
            await load(actor, tmp_path, number)
    await engine_of(actor).set_faults(Faults())
    await load(actor, tmp_path, 9)
    assert await held(actor) == [version(9)]


async def test_a_step_of_a_job_lives_beside_an_alias_of_a_like_name(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path), kind="fake", max_loras=3, reserved_for_rollout=1)
    actor = EngineActor("small", config, tmp_path / "logs", tmp_path / "copies")
    await actor.start()
    step, alias = VersionName("grpo.1/step", 1), VersionName("grpo.1", 1)
    for name, owner, number in ((step, "grpo", 1), (alias, OWNER, 2)):
        await actor.copy(pack(name, adapter(tmp_path, number)))
        await actor.load(owner, name, 60)
    root = (await actor.status()).copies_root
    assert sorted(path.name for path in root.iterdir()) == ["grpo.1%2Fstep@1", "grpo.1@1"]
    await actor.release("grpo", step)
    assert await held(actor) == [alias]
    assert [path.name for path in root.iterdir()] == ["grpo.1@1"]
    await actor.stop()


async def test_what_users_see_is_told_until_it_is_old(actor: EngineActor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await actor.status()).users is None
    load = UserLoad(p95_ttft_s=0.2, p95_itl_s=None, num_in_flight=3, num_requests=40)
    await actor.note_users(load)
    assert (await actor.status()).users == load
    monkeypatch.setattr("engines.actor._USERS_TTL_S", -1.0)
    assert (await actor.status()).users is None


async def test_slots_for_jobs_are_said_before_the_engine_runs(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path), kind="fake", max_loras=4, reserved_for_rollout=3)
    status = await EngineActor("small", config, tmp_path / "logs", tmp_path / "copies").status()
    assert (status.num_slots, status.num_rollout_slots) == (4, 3)


async def test_what_an_owner_keeps_says_nothing_of_what_others_lease(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path), kind="fake", max_loras=3, reserved_for_rollout=1)
    actor = EngineActor("small", config, tmp_path / "logs", tmp_path / "copies")
    await actor.start()
    for number in (1, 2):
        await load(actor, tmp_path, number)
    await load(actor, tmp_path, 2, owner="job")
    await actor.keep_only(OWNER, [])
    assert await held(actor) == [version(2)]
    assert [lease.owner for lease in (await actor.status()).leases] == ["job"]
    await actor.stop()


async def test_the_base_is_probed_once_for_the_same_prompts(actor: EngineActor) -> None:
    prompts = (ProbePrompt("what?", "red", None, 2),)
    first = await actor.probe(VersionName("small", 0), prompts)
    engine_of(actor).process.kill()
    assert await actor.probe(VersionName("small", 0), prompts) == first


async def test_a_version_whose_drop_was_not_confirmed_is_not_believed_to_be_held(
    actor: EngineActor, tmp_path: Path
) -> None:
    await load(actor, tmp_path, 1)
    await engine_of(actor).set_faults(LOST)
    with pytest.raises(EngineFault):
        await actor.release(OWNER, version(1))
    with pytest.raises(NotFound):
        await actor.probe(version(1), ())
    await engine_of(actor).set_faults(Faults())
    await load(actor, tmp_path, 1)
    assert await held(actor) == [version(1)]
    await actor.probe(version(1), ())


async def test_an_eviction_that_was_not_confirmed_stands(actor: EngineActor, tmp_path: Path) -> None:
    for number in range(1, MAX_LORAS + 1):
        await load(actor, tmp_path, number, ttl_s=60 if number > 1 else 1e-6)
    await engine_of(actor).set_faults(LOST)
    with pytest.raises(EngineFault):
        await load(actor, tmp_path, 9)
    await engine_of(actor).set_faults(Faults())
    await load(actor, tmp_path, 9)
    assert await held(actor) == [version(2), version(3), version(9)]


async def test_a_version_never_changes_while_it_is_loaded(actor: EngineActor, tmp_path: Path) -> None:
    await load(actor, tmp_path, 1)
    with pytest.raises(Conflict, match="never changes"):
        await actor.copy(pack(version(1), adapter(tmp_path, 2)))
    assert [lease.owner for lease in (await actor.status()).leases] == [OWNER]
    await load(actor, tmp_path, 1, owner="job")
    assert {lease.owner for lease in (await actor.status()).leases} == {OWNER, "job"}


async def test_renewal_names_all_that_are_missing_and_renews_the_rest(actor: EngineActor, tmp_path: Path) -> None:
    await load(actor, tmp_path, 2, ttl_s=60)
    (before,) = (await actor.status()).leases
    with pytest.raises(NotFound, match=r"vqa@1, vqa@3"):
        await actor.renew(OWNER, [version(1), version(2), version(3)], ttl_s=1000)
    (after,) = (await actor.status()).leases
    assert before.expires_s is not None
    assert after.expires_s is not None
    assert after.expires_s > before.expires_s + 900


async def test_a_slow_engine_is_unresponsive_not_failed_and_is_left_alive(
    actor: EngineActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.control.HEALTH_TIMEOUT_S", 0.2)
    group = engine_of(actor).process.group
    members = group_members(group)
    server = next(pid for pid in members if pid != group)
    os.kill(server, signal.SIGSTOP)
    try:
        assert (await actor.status()).health.state is EngineState.UNRESPONSIVE
        with pytest.raises(Unavailable, match="runs but does not answer"):
            await actor.start()
    finally:
        os.kill(server, signal.SIGCONT)
    monkeypatch.undo()
    assert (await actor.status()).health.is_ready
    assert group_members(group) == members


async def test_an_engine_that_hangs_is_ended_and_started_anew(
    actor: EngineActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine_of(actor)
    server = next(pid for pid in group_members(before.process.group) if pid != before.process.group)
    os.kill(server, signal.SIGSTOP)
    monkeypatch.setattr("engines.served.TERM_TIMEOUT_S", 0.2)
    await actor.restart()
    assert engine_of(actor) is not before
    assert group_members(before.process.group) == ()
    assert (await actor.status()).health.is_ready


async def test_an_engine_that_exited_is_started_anew_and_holds_nothing(actor: EngineActor, tmp_path: Path) -> None:
    await load(actor, tmp_path, 1)
    before = engine_of(actor)
    before.process.kill()
    await before.process.wait_exit()
    assert (await actor.status()).health.state is EngineState.FAILED
    await actor.start()
    assert engine_of(actor) is not before
    assert await held(actor) == []
    await load(actor, tmp_path, 1)
    assert await held(actor) == [version(1)]


def model(tmp_path: Path, name: str, *, loads: bool = True) -> EngineConfig:
    """Another model for the fixture's actor, with other weights."""
    directory = tmp_path / name
    directory.mkdir()
    (directory / MODEL_FILE).write_text(FakeModel(weights=name, starts=loads).model_dump_json())
    return EngineConfig(model=str(directory), kind="fake", max_loras=MAX_LORAS)


async def base_logprobs(actor: EngineActor, engine: str) -> tuple[float, ...]:
    (score,) = await actor.probe(VersionName(engine, 0), (ProbePrompt("what?", "this", None, 2),))
    return score.logprobs


async def test_a_swap_leaves_the_process_and_nothing_of_the_old_base(actor: EngineActor, tmp_path: Path) -> None:
    group, before = engine_of(actor).process.group, await base_logprobs(actor, "small")
    await load(actor, tmp_path, 1)
    await actor.swap("small.g2", model(tmp_path, "new"))
    assert engine_of(actor).process.group == group
    assert await base_logprobs(actor, "small.g2") != before
    status = await actor.status()
    assert (status.engine, status.adapters, status.leases) == ("small.g2", (), ())
    with pytest.raises(NotFound):
        await actor.probe(version(1), (ProbePrompt("what?", "this", None, 1),))


async def test_what_the_old_base_said_is_not_kept_though_its_answer_comes_after_the_swap(
    actor: EngineActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompts = engine_of(actor), (ProbePrompt("what?", "this", None, 2),)
    is_asked, go_on = asyncio.Event(), asyncio.Event()
    (old,) = await engine.probe(VersionName("small", 0), prompts)

    async def late(*_: object) -> tuple[ProbeScore, ...]:
        is_asked.set()
        await go_on.wait()
        return (old,)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "probe", late)
        asking = asyncio.create_task(actor.probe(VersionName("small.g2", 0), prompts))
        await is_asked.wait()
        await actor.swap("small.g2", model(tmp_path, "new"))
        go_on.set()
        assert await asking == (old,)
    assert await base_logprobs(actor, "small.g2") != old.logprobs


async def test_a_swap_that_fails_leaves_the_old_base_served(actor: EngineActor, tmp_path: Path) -> None:
    before = await base_logprobs(actor, "small")
    with pytest.raises(EngineFault):
        await actor.swap("small.g2", model(tmp_path, "broken", loads=False))
    status = await actor.status()
    assert (status.engine, status.health.is_ready) == ("small", True)
    assert await base_logprobs(actor, "small") == before


async def test_an_actor_that_serves_another_engine_is_started_anew_as_the_one_asked_for(
    actor: EngineActor, tmp_path: Path
) -> None:
    old, config = engine_of(actor), actor._config
    await actor.swap("small.g2", model(tmp_path, "new"))
    await actor.host("small", config)
    assert engine_of(actor).process.group != old.process.group
    assert (await actor.status()).engine == "small"
    same = engine_of(actor)
    await actor.host("small", config)
    assert engine_of(actor) is same
