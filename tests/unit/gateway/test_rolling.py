"""The rolling swap over replicas that a test can make fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from gateway_stack import version_row
from swap_site import ALIAS, RECORD, Site, open_site

from engines.errors import Conflict, EngineDown, Refused
from engines.types import VersionName
from gateway.generation import GenerationState
from gateway.store import StateChange
from gateway.types import VersionState


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, num_replicas=3) as site:
        yield site


async def test_a_new_replica_is_up_before_an_old_one_goes(site: Site) -> None:
    await site.swap(site.begin(), (RECORD,)).run()
    assert site.events == [
        *("start small.g2/0", "end small/0"),
        *("start small.g2/1", "end small/1"),
        *("start small.g2/2", "end small/2"),
    ]
    assert site.in_service() == ["small.g2/0", "small.g2/1", "small.g2/2"]
    assert [view.name for view in site.board.views(site.routes)] == site.in_service()


async def test_the_flip_moves_every_alias_and_retires_what_the_old_base_carried(site: Site) -> None:
    name = VersionName(ALIAS, 1)
    site.store.versions.add(version_row(name))
    changes = [StateChange(name, state) for state in (VersionState.STAGED, VersionState.PROBED, VersionState.LIVE)]
    site.store.aliases.flip(ALIAS, name, site.old.base, 0, changes)
    site.store.aliases.ensure("other", "small")
    new = site.begin()
    await site.swap(new).run()
    for alias, generation in ((ALIAS, 2), ("other", 1)):
        row = site.store.aliases.get(alias)
        assert (row.engine, row.live, row.previous, row.generation) == ("small.g2", new.base, None, generation)
    assert site.routes.resolve(ALIAS).version == new.base
    assert site.store.versions.get(name).state is VersionState.RETIRED
    states = [row.state for row in site.store.generations.of("small")]
    assert states == [GenerationState.RETIRED, GenerationState.LIVE]


async def test_until_half_are_new_the_alias_names_the_old_base_and_its_replicas_answer(site: Site) -> None:
    new = site.begin()
    site.broken.add("small.g2/1")  # the second of three, which would bring the flip
    with pytest.raises(EngineDown):
        await site.swap(new).run()
    assert site.routes.resolve(ALIAS).version == site.old.base
    await site.wait_in_service("small/0", "small/1", "small/2")  # the one that had gone is back
    undone = ["end small.g2/0", "end small.g2/1", "start small/0"]
    assert site.events[:2] == ["start small.g2/0", "end small/0"]
    assert sorted(site.events[2:]) == undone
    assert site.store.aliases.get(ALIAS).generation == 0


async def test_what_answers_otherwise_than_its_export_is_refused_and_ends(site: Site) -> None:
    site.logprob = -3.0
    with pytest.raises(Refused, match="does not serve what was exported"):
        await site.swap(site.begin(), (RECORD,)).run()
    assert site.events == ["start small.g2/0", "end small.g2/0"]
    assert site.in_service() == ["small/0", "small/1", "small/2"]


async def test_one_that_cannot_be_ended_keeps_no_other_one_from_it(site: Site) -> None:
    site.broken.add("small.g2/1")
    site.endless.add("small.g2/0")
    with pytest.raises(EngineDown, match=r"small\.g2/1 does not start"):
        await site.swap(site.begin()).run()
    await site.wait_in_service("small/0", "small/1", "small/2")
    assert "end small.g2/1" in site.events


async def test_a_replica_that_fails_after_the_flip_leaves_the_release_standing(site: Site) -> None:
    site.broken.add("small.g2/2")
    swap = site.swap(site.begin())
    with pytest.raises(EngineDown):
        await swap.run()
    assert swap.is_flipped
    assert site.in_service() == ["small.g2/0", "small.g2/1"]
    site.broken.clear()
    await site.wait_in_service("small.g2/0", "small.g2/1", "small.g2/2")  # by its watch


async def test_an_old_replica_goes_only_once_its_last_request_has_ended(site: Site) -> None:
    target = site.routes.resolve(ALIAS)
    with site.routes.hold(target):
        going = asyncio.create_task(site.lineup.remove(target.replica.name, 5.0))
        await site.wait_in_service(*({"small/0", "small/1", "small/2"} - {target.replica.name}))
        assert not site.events
    await going
    assert site.events == [f"end {target.replica.name}"]


def test_a_release_begins_only_where_none_is_under_way(site: Site) -> None:
    first = site.begin()
    with pytest.raises(Conflict, match=r"small\.g2 is being released"):
        site.begin()
    site.store.generations.fail(first, "why not")
    assert site.begin().name == "small.g3"  # a name is never used twice
    with pytest.raises(Conflict, match="failed"):
        site.store.generations.flip(site.old, first)
    assert site.store.generations.ensure("small", Path("old")).name == "small"


def test_generation_1_serves_what_is_configured(site: Site) -> None:
    row = site.store.generations.ensure("small", Path("another"))
    assert (row.number, row.model) == (1, Path("another"))
    assert row.created <= datetime.now(UTC)
