"""What every back end promises, as far as a server elsewhere can: the same questions, over the fake's server by URL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import test_engine_contract as contract

from engines.capabilities import Ability
from engines.config import EngineConfig
from engines.errors import EngineDown
from engines.fake import FakeEngine
from engines.remote import RemoteEngine
from engines.types import EngineState

test_base_answers_under_the_callers_request_id = contract.test_base_answers_under_its_version_and_the_callers_request_id
test_greedy_answers_repeat = contract.test_greedy_answers_repeat
test_stream_says_what_the_whole_answer_says = contract.test_stream_says_what_the_whole_answer_says
test_an_image_changes_the_answer = contract.test_an_image_changes_the_answer
test_a_sample_has_as_many_token_ids_as_logprobs = contract.test_a_sample_has_as_many_token_ids_as_logprobs
test_samples_differ_by_place_and_by_seed = contract.test_samples_differ_by_place_and_by_seed
test_dropping_an_unknown_adapter_does_nothing = contract.test_dropping_an_unknown_adapter_does_nothing


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeEngine]:
    """Not ours: another's process, which asks for a key."""
    folder: Path = tmp_path_factory.mktemp("elsewhere")
    fake = FakeEngine("small", EngineConfig(model=str(folder), kind="fake"), folder)
    await fake.start()
    yield fake
    await fake.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(server: FakeEngine) -> AsyncIterator[RemoteEngine]:
    config = EngineConfig(model="small@0", kind="remote", url=f"{server.endpoint.url}/v1")
    remote = RemoteEngine("far", config, server.endpoint.token)
    await remote.start()
    yield remote
    await remote.stop()


async def test_a_server_of_ours_can_all_but_adapters(engine: RemoteEngine) -> None:
    assert engine.endpoint.capabilities.missing == {Ability.ADAPTERS}


async def test_a_killed_server_is_reported_failed_and_a_new_start_says_why(
    engine: RemoteEngine, server: FakeEngine
) -> None:
    assert (await engine.health()).is_ready
    await server.stop()
    assert (await engine.health()).state is EngineState.FAILED
    again = RemoteEngine("far", engine.config, "key")
    with pytest.raises(EngineDown, match="cannot be reached"):
        await again.start()
    await engine.stop()
    await engine.stop()
