"""What is done at register, so that a publish need not."""

import asyncio

import pytest
from publish_site import ALIAS, BASE, ScriptedReplica, Site, change_weights

from engines.adapter import Parcel
from engines.errors import AdapterRefused, EngineDown, Unavailable
from gateway.types import VersionState


async def test_a_publish_sends_nothing_to_a_replica_that_got_it_when_it_was_registered(site: Site) -> None:
    name = await site.register(1)
    assert [r.num_sent for r in site.replicas] == [1, 1]
    await site.publisher.promote(ALIAS, name)
    assert [r.num_sent for r in site.replicas] == [1, 1]


async def test_a_publish_sends_what_a_replica_did_not_get_when_it_was_registered(site: Site) -> None:
    site.replicas[1].fail_copy = Unavailable("no room")
    name = await site.register(1)
    assert site.state(name) is VersionState.VERIFIED
    site.replicas[1].fail_copy = None
    newcomer = ScriptedReplica(2, site.registry)
    await site.join(newcomer)
    await site.publisher.promote(ALIAS, name)
    assert [r.num_sent for r in (*site.replicas, newcomer)] == [1, 1, 1]
    assert newcomer.held == {name}


async def test_a_replica_that_does_not_answer_keeps_no_version_from_being_registered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.promotion.SEND_AHEAD_TIMEOUT_S", 0.01)

    async def stand_still(_: Parcel) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(site.replicas[1], "copy", stand_still)
    name = await site.register(1)
    assert site.state(name) is VersionState.VERIFIED


async def test_a_version_registered_with_no_replica_in_service_is_sent_by_its_publish(site: Site) -> None:
    for replica in site.replicas:
        site.membership.leave(replica)  # type: ignore[arg-type]
    name = await site.register(1)
    for replica in site.replicas:
        await site.join(replica)
    await site.publisher.promote(ALIAS, name)
    assert [r.num_sent for r in site.replicas] == [1, 1]


async def test_a_copy_made_of_other_files_than_the_registrys_is_sent_anew(site: Site) -> None:
    name = await site.register(1)
    site.replicas[1].copies[name] |= {"adapter_config.json": "0" * 64}
    await site.publisher.promote(ALIAS, name)
    assert [r.num_sent for r in site.replicas] == [1, 2]


async def test_registry_files_that_changed_since_they_were_sent_are_refused_and_dropped_where_they_were_loaded(
    site: Site,
) -> None:
    name = await site.register(1)
    change_weights(site, name)
    with pytest.raises(AdapterRefused, match="not those that were registered"):
        await site.publisher.promote(ALIAS, name)
    assert [r.num_sent for r in site.replicas] == [1, 1]
    assert all(r.held == set() for r in site.replicas)
    assert site.routes.resolve(ALIAS).version == BASE
    assert site.state(name) is VersionState.REJECTED


async def test_registry_files_that_changed_are_sent_to_nobody(site: Site) -> None:
    name = await site.register(1)
    change_weights(site, name)
    newcomer = ScriptedReplica(2, site.registry)
    await site.join(newcomer)
    with pytest.raises(AdapterRefused, match="not those that were registered"):
        await site.publisher.promote(ALIAS, name)
    assert newcomer.num_sent == 0
    assert all(r.held == set() for r in (*site.replicas, newcomer))


async def test_the_base_is_asked_ahead_and_a_publish_asks_it_for_the_same_prompts(site: Site) -> None:
    name = await site.register_proven(1)
    assert all([version for version, _ in r.probes] == [BASE] for r in site.replicas)
    await site.publisher.promote(ALIAS, name)
    for replica in site.replicas:
        (ahead, *asked) = replica.probes
        assert sorted(asked) == sorted([ahead, (name, ahead[1])])


async def test_a_version_whose_base_could_not_be_asked_ahead_is_published(site: Site) -> None:
    site.replicas[1].fail_probe = EngineDown("busy")
    name = await site.register_proven(1)
    site.replicas[1].fail_probe = None
    await site.publisher.promote(ALIAS, name)
    assert site.state(name) is VersionState.LIVE
