"""What replicas that come, go or are suspended hold of what aliases name."""

import asyncio

import pytest
from publish_site import ALIAS, ScriptedReplica, Site, change_weights

from engines.errors import AdapterRefused, EngineDown, EngineFault, Unavailable
from engines.types import VersionName
from gateway.promotion import Publisher
from gateway.types import VersionState


async def test_a_replica_holds_all_that_aliases_name_before_it_takes_traffic(site: Site) -> None:
    first, second = [await site.register(seed) for seed in (1, 2)]
    for name in (first, second):
        await site.publisher.promote(ALIAS, name)
    newcomer = ScriptedReplica(2, site.registry)
    newcomer.fail_load = EngineDown("not yet")
    with pytest.raises(EngineDown):
        await site.join(newcomer)
    assert "small/2" not in site.routes.snapshot.replicas
    newcomer.fail_load = None
    await site.join(newcomer)
    assert newcomer.held == {first, second}
    assert site.routes.snapshot.replicas["small/2"].versions == {first, second}


async def test_a_replica_that_joins_amid_a_publish_joins_with_what_it_published(site: Site) -> None:
    first = await site.register(1)
    newcomer = ScriptedReplica(2, site.registry)
    await asyncio.gather(site.publisher.promote(ALIAS, first), site.join(newcomer))
    assert newcomer.held == {first}


async def test_a_replica_that_comes_back_drops_what_a_dead_publisher_left_on_it(site: Site) -> None:
    first = await site.register(1)
    await site.publisher.promote(ALIAS, first)
    stray = VersionName(ALIAS, 9)
    site.replicas[1].held.add(stray)
    await site.join(site.replicas[1])
    assert site.replicas[1].held == {first}


async def test_a_publish_goes_without_a_suspended_replica_which_serves_what_it_holds(site: Site) -> None:
    first, second = [await site.register(seed) for seed in (1, 2)]
    await site.publisher.promote(ALIAS, first)
    assert site.membership.suspend(site.replicas[1])  # type: ignore[arg-type]
    report = await site.publisher.promote(ALIAS, second)
    assert report.replicas == ("small/0",)
    assert site.replicas[1].held == {first}
    assert site.routes.resolve(ALIAS).replica.name == "small/0"
    with site.routes.hold(site.routes.resolve(str(first))):
        assert site.routes.resolve(str(first)).replica.name == "small/1"
    await site.join(site.replicas[1])
    assert site.replicas[1].held == {first, second}


async def test_what_one_replica_refuses_and_another_takes_is_not_the_adapters_fault(site: Site) -> None:
    name = await site.register(1)
    site.replicas[1].fail_load = AdapterRefused("out of memory")
    with pytest.raises(EngineFault, match="small/1 refused what the 1 others took"):
        await site.publisher.promote(ALIAS, name)
    assert all(r.held == set() for r in site.replicas)
    assert site.state(name) is VersionState.VERIFIED


async def test_what_all_replicas_refuse_is_rejected(site: Site) -> None:
    name = await site.register(1)
    for replica in site.replicas:
        replica.fail_load = AdapterRefused("a shape is wrong")
    with pytest.raises(AdapterRefused, match="shape"):
        await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.REJECTED


async def test_a_publish_without_any_replica_in_service_changes_nothing(site: Site) -> None:
    name = await site.register(1)
    for replica in site.replicas:
        site.membership.leave(replica)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="in service"):
        await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.VERIFIED


async def test_what_could_not_be_unloaded_while_in_use_is_dropped_later(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    site.publisher = Publisher(site.registry, site.routes, site.membership, site.metrics, drain_timeout_s=0.01)
    with site.routes.hold(site.routes.resolve(ALIAS)):
        await site.publisher.rollback(ALIAS)
        await site.membership.tend(site.replicas[0])  # type: ignore[arg-type]
        assert name in site.replicas[0].held
        assert name in site.replicas[0].renewed
    await site.membership.tend(site.replicas[0])  # type: ignore[arg-type]
    assert site.replicas[0].held == set()


async def test_a_member_that_lost_a_lease_loads_it_again(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    site.replicas[0].held.clear()
    await site.membership.tend(site.replicas[0])  # type: ignore[arg-type]
    assert site.replicas[0].held == {name}


async def test_a_replica_does_not_join_with_registry_files_that_changed(site: Site) -> None:
    name = await site.register(1)
    await site.publisher.promote(ALIAS, name)
    change_weights(site, name)
    newcomer = ScriptedReplica(2, site.registry)
    with pytest.raises(EngineFault, match="not those that were registered"):
        await site.join(newcomer)
    assert "small/2" not in site.routes.snapshot.replicas


async def test_an_alias_that_is_not_configured_any_more_is_neither_loaded_nor_routed(site: Site) -> None:
    site.store.aliases.ensure("old", "small")
    name = await site.register(1)
    site.replicas[1].fail_load = EngineDown("the engine died")
    with pytest.raises(EngineDown):
        await site.publisher.promote(ALIAS, name)
    assert set(site.routes.snapshot.aliases) == {ALIAS}
