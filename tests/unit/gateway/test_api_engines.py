"""`/v1/engines`: what is served, and what no release may begin with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_stack import Stack, until
from swap_site import Site
from tiny_adapter import write_base

from engines.adapter import base_hash_of
from engines.errors import BadRequest, Conflict, NotFound, Unavailable
from engines.export_probe import EXPORT_FILE
from engines.types import Endpoint
from gateway import release
from gateway.config import TandemConfig
from gateway.generation import GenerationState
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.registry import Registry
from gateway.release import Releaser
from gateway.route import ReplicaRoute

RELEASE = "/v1/engines/small/release"


async def test_an_engine_says_which_base_it_serves(stack: Stack) -> None:
    (engine,) = (await stack.http.get("/v1/engines")).json()["data"]
    assert (engine["id"], engine["live"]) == ("small", "small@0")
    assert (await stack.http.get("/v1/engines/small")).json() == engine
    (generation,) = engine["generations"]
    assert (generation["state"], generation["steps"], generation["is_under_way"]) == ("live", [], False)
    assert (await stack.http.get("/v1/engines/big")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [({"path": "relative"}, 400), ({}, 400), ({"path": "/x", "how": "fast"}, 400), ({"path": "/x"}, 409)],
)
async def test_a_release_that_cannot_begin_is_an_error_of_one_shape(
    stack: Stack, body: dict[str, object], status: int
) -> None:
    answer = await stack.http.post(RELEASE, json=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_what_the_engine_cannot_serve_is_refused_before_anything_begins(tmp_path: Path) -> None:
    served = write_base(tmp_path / "served")
    site = Site(tmp_path, num_replicas=1)
    site.store.generations.ensure("small", served)
    releaser = releaser_of(site, served, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest):
        await releaser.release("small", tmp_path / "empty")
    with pytest.raises(NotFound):
        await releaser.release("big", served)
    with pytest.raises(Conflict, match="already"):
        await releaser.release("small", served)
    other = write_base(tmp_path / "other", seed=1)
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(BadRequest, match="rolling swap"):
        await releaser.release("small", other, in_place=True)
    assert [row.name for row in site.store.generations.of("small")] == ["small"]
    site.store.close()


async def test_while_somebody_publishes_no_release_begins(tmp_path: Path) -> None:
    site = Site(tmp_path, num_replicas=1)
    releaser = releaser_of(site, tmp_path, tmp_path)
    async with releaser._publisher.only_publisher():
        with pytest.raises(Conflict, match="under way"):
            await releaser.release("small", write_base(tmp_path / "other"))
    await releaser.close()
    assert [row.name for row in site.store.generations.of("small")] == ["small"]
    site.store.close()


async def test_a_release_that_cannot_even_be_prepared_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, other = Site(tmp_path, num_replicas=1), write_base(tmp_path / "other")
    releaser = releaser_of(site, tmp_path, tmp_path)

    def hash_and_spoil(path: Path) -> str:
        (path / EXPORT_FILE).write_text("{")
        return base_hash_of(path)

    monkeypatch.setattr(release, "base_hash_of", hash_and_spoil)
    new = await releaser.release("small", other)
    await until(lambda: not releaser.progress_of(new).is_under_way)
    row = site.store.generations.of("small")[-1]
    assert (row.name, row.state) == (new.name, GenerationState.FAILED)
    assert EXPORT_FILE in (row.reason or "")
    site.store.close()


async def test_what_changed_while_the_weights_were_hashed_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, other = write_base(tmp_path / "served"), write_base(tmp_path / "other", seed=1)
    site = Site(tmp_path, num_replicas=1)
    old = site.store.generations.ensure("small", served)
    releaser = releaser_of(site, served, tmp_path)
    site.routes.set_replica(ReplicaRoute("small/0", "small", Endpoint("http://small", "token"), ready=True))

    def during_the_hash(act: Callable[[], object]) -> None:
        monkeypatch.setattr(release, "base_hash_of", lambda path: (act(), base_hash_of(path))[1])

    during_the_hash(lambda: site.routes.forget_replica("small/0"))
    with pytest.raises(Unavailable, match="0 of 1 replicas"):
        await releaser.release("small", other, in_place=True)
    during_the_hash(lambda: site.store.generations.flip(old, site.begin()))
    with pytest.raises(Conflict, match=r"went over to small\.g2"):
        await releaser.release("small", other)
    assert [row.name for row in site.store.generations.of("small")] == ["small", "small.g2"]
    site.store.close()


def releaser_of(site: Site, served: Path, root: Path) -> Releaser:
    engines = {"small": {"model": str(served), "kind": "fake"}}
    config = TandemConfig.model_validate({"data": root, "engines": engines, "models": {"vqa": {"engine": "small"}}})
    registry = Registry(root / "registry", site.store, config.engines)
    publisher = Publisher(registry, site.routes, site.membership, Metrics(), 1.0)
    return Releaser(config, dict(config.engines), site.ground, publisher, Metrics())
