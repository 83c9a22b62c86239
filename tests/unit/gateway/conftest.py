"""One fake engine and one gateway for the whole session; tests that change bounds open their own gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_stack import Stack, listen, open_engine, open_stack
from publish_site import Site

from engines.fake import FakeEngine


@pytest.fixture(scope="session")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeEngine]:
    async with open_engine(tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture(scope="session")
async def stack(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path_factory.mktemp("gateway"), engine.endpoint) as stack:
        yield stack


@pytest.fixture(scope="session")
async def url(stack: Stack) -> AsyncIterator[str]:
    async with listen(stack.app) as url:
        yield url


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A publisher over two replicas that have joined."""
    site = Site(tmp_path)
    for replica in site.replicas:
        await site.join(replica)
    yield site
    site.store.close()
