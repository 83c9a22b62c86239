"""What a gateway makes of a release that another one began: the database says which generation is served."""

from pathlib import Path

import pytest
from gateway_stack import make_config

from engines.actor_name import ActorName
from gateway.config import TandemConfig
from gateway.generation import GenerationRow, GenerationState, engine_of
from gateway.release import config_of, recover, strays
from gateway.store import Store, open_store

SITE = "0123abcd"


@pytest.fixture
def config(tmp_path: Path) -> TandemConfig:
    return make_config(tmp_path)


@pytest.fixture
def store(config: TandemConfig) -> Store:
    return open_store(config.store.url)


def actor(replica: str, installation: str = SITE) -> ActorName:
    return ActorName(installation, replica, "abc")


def names(rows: tuple[GenerationRow, ...]) -> list[str]:
    return [row.name for row in rows]


def test_a_release_that_was_under_way_has_failed_and_what_was_live_is_served(
    store: Store, config: TandemConfig
) -> None:
    assert names(recover(store, config)) == ["small"]
    store.generations.begin("small", Path("/new"), "sha256:new")
    assert names(recover(store, config)) == ["small"]
    _, failed = store.generations.of("small")
    assert (failed.state, failed.reason is not None) == (GenerationState.FAILED, True)


def test_a_released_model_is_served_whatever_the_configuration_calls_its_own(
    store: Store, config: TandemConfig
) -> None:
    (old,) = recover(store, config)
    store.generations.flip(old, store.generations.begin("small", Path("/new"), "sha256:new"))
    (live,) = recover(store, config)
    assert live.name == "small.g2"
    assert config_of(live, config) == config.engines["small"].model_copy(update={"model": "/new"})
    assert config_of(old, config) == config.engines["small"]


def test_what_serves_another_generation_is_a_stray_and_nothing_else_is(store: Store, config: TandemConfig) -> None:
    live = recover(store, config)
    stray = actor("small.g2/0")
    others = [actor("small/0"), actor("big/0"), actor("small.g2/0", "another")]
    assert strays([stray, *others], live, SITE) == (str(stray),)


@pytest.mark.parametrize(
    ("name", "engine"), [("small", "small"), ("small.g12", "small"), ("a.b", "a.b"), ("x.g0", "x.g0")]
)
def test_a_generation_is_one_of_its_engine(name: str, engine: str) -> None:
    assert engine_of(name) == engine
