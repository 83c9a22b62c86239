"""The swap in place over replicas that a test can make fail: nobody is failed, and nothing is half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from gateway_stack import until
from swap_site import ALIAS, RECORD, Site, open_site

from engines.errors import DeadlineExceeded, EngineFault, Refused, Unavailable

WAIT_S = 10.0


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, num_replicas=2) as site:
        yield site


@pytest_asyncio.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, num_replicas=1) as site:
        yield site


async def test_each_replica_is_swapped_while_the_others_answer(pair: Site) -> None:
    await pair.swap(pair.begin("small"), (RECORD,)).run()
    assert pair.events == ["swap small.g2/0", "swap small.g2/1"]
    assert pair.in_service() == ["small.g2/0", "small.g2/1"]
    assert str(pair.routes.resolve(ALIAS).version) == "small.g2@0"


async def test_while_the_only_replica_is_swapped_requests_wait_and_go_on_with_the_new_base(alone: Site) -> None:
    new = alone.begin("small")
    with alone.routes.hold(alone.routes.resolve(ALIAS)):  # the swap waits for its end
        swapping = asyncio.create_task(alone.swap(new).run())
        await until(lambda: not alone.in_service())
        waiting = asyncio.create_task(alone.routes.wait_open(ALIAS, WAIT_S))
        await asyncio.sleep(0)
        assert not alone.events
        assert not waiting.done()
    await waiting
    assert alone.routes.resolve(ALIAS).version == new.base
    await swapping


async def test_weights_that_cannot_be_loaded_leave_the_old_base_in_service(alone: Site) -> None:
    alone.broken.add("small.g2/0")
    swap = alone.swap(alone.begin("small"))
    with pytest.raises(EngineFault):
        await swap.run()
    assert not swap.is_flipped
    await alone.routes.wait_open(ALIAS, WAIT_S)
    assert alone.routes.resolve(ALIAS).version == alone.old.base
    assert alone.in_service() == ["small/0"]


async def test_a_probe_that_refuses_puts_the_old_weights_back(pair: Site) -> None:
    pair.logprob = -3.0
    with pytest.raises(Refused):
        await pair.swap(pair.begin("small"), (RECORD,)).run()
    assert pair.events == ["swap small.g2/0", "swap small/0"]
    assert pair.in_service() == ["small/0", "small/1"]


async def test_weights_that_cannot_be_put_back_are_started_anew(alone: Site) -> None:
    alone.logprob = -3.0
    swap = alone.swap(alone.begin("small"), (RECORD,))
    alone.broken_swaps.add("small/0")
    with pytest.raises(Refused):
        await swap.run()
    assert alone.events == ["swap small.g2/0", "start small/0"]
    assert alone.in_service() == ["small/0"]


async def test_one_that_does_not_come_up_again_keeps_no_other_one_out(tmp_path: Path) -> None:
    async with open_site(tmp_path, num_replicas=3) as site:
        site.broken |= {"small.g2/1", "small/0"}
        with pytest.raises(EngineFault, match=r"small\.g2/1 did not load"):  # what ended it, not what undoing it met
            await site.swap(site.begin("small")).run()
        assert site.in_service() == ["small/1", "small/2"]
        site.broken.clear()
        await site.wait_in_service("small/0", "small/1", "small/2")


async def test_a_replica_that_cannot_be_swapped_after_the_flip_is_started_anew(pair: Site) -> None:
    pair.broken_swaps.add("small.g2/1")
    swap = pair.swap(pair.begin("small"))
    with pytest.raises(EngineFault):
        await swap.run()
    assert swap.is_flipped
    await pair.wait_in_service("small.g2/0", "small.g2/1")
    assert pair.events == ["swap small.g2/0", "start small.g2/1"]


async def test_a_request_that_does_not_end_is_not_cut_off(alone: Site) -> None:
    swap = alone.swap(alone.begin("small"), drain_timeout_s=0.05)
    with alone.routes.hold(alone.routes.resolve(ALIAS)), pytest.raises(DeadlineExceeded):
        await swap.run()
    assert not alone.events
    assert alone.in_service() == ["small/0"]


async def test_requests_wait_for_a_bounded_time(alone: Site) -> None:
    alone.routes.close("small")
    with pytest.raises(Unavailable):
        await alone.routes.wait_open(ALIAS, 0.01)
    await alone.routes.wait_open("small@0", 0.01)  # only aliases go on with another base
