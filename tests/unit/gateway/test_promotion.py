"""The publish transaction over replicas that a test can make fail at any step."""

import asyncio

import pytest
from publish_site import ALIAS, BASE, Site, change_weights

from engines.config import EngineConfig
from engines.errors import AdapterRefused, Conflict, EngineDown, EngineFault
from engines.types import VersionName
from gateway.store import StateChange
from gateway.types import VersionState


async def test_a_promote_reaches_every_replica_and_then_the_alias(site: Site) -> None:
    name = await site.register(1)
    report = await site.publisher.promote(ALIAS, name)
    assert [s.step for s in report.steps] == ["verify", "copy", "stage", "probe", "flip"]
    assert report.replicas == ("small/0", "small/1")
    assert (report.version, report.previous, report.generation) == (name, BASE, 1)
    assert all(r.held == {name} for r in site.replicas)
    assert site.routes.resolve(ALIAS).version == name
    assert site.state(name) is VersionState.LIVE
    assert b'tandem_publish_seconds_count{step="flip"} 1.0' in site.metrics.render()


async def test_the_version_before_stays_loaded_and_the_one_before_that_is_retired(site: Site) -> None:
    first, second, third = [await site.register(seed) for seed in (1, 2, 3)]
    for name in (first, second, third):
        report = await site.publisher.promote(ALIAS, name)
    assert [s.step for s in report.steps][-2:] == ["drain", "retire"]
    assert all(r.held == {second, third} for r in site.replicas)
    assert [site.state(n) for n in (first, second, third)] == [
        VersionState.RETIRED,
        VersionState.STANDBY,
        VersionState.LIVE,
    ]


async def test_a_rollback_is_one_flip_and_unloads_what_it_leaves(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    report = await site.publisher.rollback(ALIAS)
    assert [s.step for s in report.steps] == ["flip", "drain", "retire"]
    assert site.routes.resolve(ALIAS).version == BASE
    assert all(r.held == set() for r in site.replicas)
    assert site.state(name) is VersionState.ROLLED_BACK
    with pytest.raises(Conflict, match="nothing to roll back to"):
        await site.publisher.rollback(ALIAS)


async def test_a_version_that_was_rolled_back_can_be_promoted_again(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    await site.publisher.rollback(ALIAS)
    await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.LIVE


async def test_a_standby_can_be_promoted_again(site: Site) -> None:
    first, second = [await site.register(seed) for seed in (1, 2)]
    for name in (first, second, first):
        await site.publisher.promote(ALIAS, name)
    assert site.state(first) is VersionState.LIVE
    assert site.state(second) is VersionState.STANDBY


async def test_a_version_of_an_engine_that_takes_none_now_is_refused_and_stays_what_it_is(site: Site) -> None:
    name = await site.register(1)
    site.registry.engines["small"] = EngineConfig(model="theirs", kind="remote", url="http://host/v1")  # type: ignore[index]
    with pytest.raises(AdapterRefused, match="is a remote server and takes no adapters"):
        await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.VERIFIED
    assert all(r.held == set() for r in site.replicas)


async def test_a_load_that_fails_on_one_replica_is_undone_on_all(site: Site) -> None:
    name = await site.register(1)
    site.replicas[1].fail_load = EngineDown("the engine died")
    with pytest.raises(EngineDown):
        await site.publisher.promote(ALIAS, name)
    assert all(r.held == set() for r in site.replicas)
    assert site.routes.resolve(ALIAS).version == BASE
    assert site.state(name) is VersionState.VERIFIED
    site.replicas[1].fail_load = None
    await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.LIVE


@pytest.mark.parametrize("fault", ["lose_modules", "wrong_bytes"])
async def test_an_engine_that_did_not_load_what_was_registered_is_found(site: Site, fault: str) -> None:
    name = await site.register(1)
    setattr(site.replicas[0], fault, True)
    with pytest.raises(EngineFault, match="small/0"):
        await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.VERIFIED
    setattr(site.replicas[1], fault, True)
    with pytest.raises(AdapterRefused):
        await site.publisher.promote(ALIAS, name)
    assert all(r.held == set() for r in site.replicas)
    assert site.state(name) is VersionState.REJECTED
    with pytest.raises(Conflict, match="rejected"):
        await site.publisher.promote(ALIAS, name)


async def test_files_that_changed_in_the_registry_are_refused(site: Site) -> None:
    name = await site.register(1)
    change_weights(site, name)
    with pytest.raises(AdapterRefused):
        await site.publisher.promote(ALIAS, name)
    assert site.routes.resolve(ALIAS).version == BASE


async def test_a_request_under_way_keeps_its_version_loaded_until_it_ends(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    target = site.routes.resolve(ALIAS)
    with site.routes.hold(target):
        rolling_back = asyncio.create_task(site.publisher.rollback(ALIAS))
        while site.routes.resolve(ALIAS).version != BASE:  # noqa: ASYNC110 - a turn of the loop, not a wait
            await asyncio.sleep(0)
        assert all(name in r.held for r in site.replicas)
        assert not rolling_back.done()
    await rolling_back
    assert all(name not in r.held for r in site.replicas)


async def test_two_publishers_at_once_one_wins(site: Site) -> None:
    first, second = [await site.register(seed) for seed in (1, 2)]
    results = await asyncio.gather(
        site.publisher.promote(ALIAS, first), site.publisher.promote(ALIAS, second), return_exceptions=True
    )
    assert sum(isinstance(r, Conflict) for r in results) == 1
    assert site.store.aliases.get(ALIAS).generation == 1


async def test_a_version_of_another_alias_is_refused(site: Site) -> None:
    with pytest.raises(Conflict, match="does not belong"):
        await site.publisher.promote(ALIAS, VersionName("other", 1))


async def test_an_engine_that_dies_in_the_midst_leaves_a_version_that_can_be_tried_again(site: Site) -> None:
    name = await site.register(1)
    site.replicas[1].fail_load = site.replicas[1].fail_release = EngineDown("the engine died")
    with pytest.raises(EngineDown):
        await site.publisher.promote(ALIAS, name)
    site.replicas[1].fail_load = site.replicas[1].fail_release = None
    await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.LIVE


async def test_a_flip_that_fails_undoes_what_was_staged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await site.register(1)

    def fail(*_: object, **__: object) -> None:
        raise Conflict("another publisher was faster")

    with monkeypatch.context() as patch:
        patch.setattr(type(site.store.aliases), "flip", fail)
        with pytest.raises(Conflict, match="faster"):
            await site.publisher.promote(ALIAS, name)
    assert all(r.held == set() for r in site.replicas)
    await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.LIVE


async def test_a_standby_that_is_refused_stays_what_the_alias_can_roll_back_to(site: Site) -> None:
    first, second = [await site.register(seed) for seed in (1, 2)]
    for name in (first, second):
        await site.publisher.promote(ALIAS, name)
    for replica in site.replicas:
        replica.wrong_bytes = True
    with pytest.raises(AdapterRefused):
        await site.publisher.promote(ALIAS, first)
    assert site.state(first) is VersionState.STANDBY
    assert (await site.publisher.rollback(ALIAS)).version == first


async def test_a_rolled_back_version_that_is_refused_is_rejected(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    await site.publisher.rollback(ALIAS)
    for replica in site.replicas:
        replica.wrong_bytes = True
    with pytest.raises(AdapterRefused):
        await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.REJECTED


async def test_a_flip_stands_though_a_replica_cannot_unload_what_it_left(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    site.replicas[1].fail_release = EngineDown("the engine died")
    assert (await site.publisher.rollback(ALIAS)).version == BASE
    assert site.routes.resolve(ALIAS).version == BASE


async def test_what_a_dead_publisher_left_on_its_way_can_be_tried_again(site: Site) -> None:
    name = await site.register(1)
    site.store.versions.set_state(StateChange(name, VersionState.STAGED))
    await site.publisher.recover()
    assert site.state(name) is VersionState.VERIFIED
    await site.publisher.promote(ALIAS, name)
