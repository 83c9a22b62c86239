"""The publish transaction over replicas that a test can make fail at any step, with the real store and real files."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from tiny_adapter import lora_tensors, manifest_of, write_adapter, write_base

from engines.adapter import Parcel, ProbeRecord, VerifiedAdapter, read_base, write_manifest
from engines.config import EngineConfig
from engines.errors import AdapterRefused, Conflict, EngineDown, EngineFault, NotFound, Unavailable
from engines.types import Endpoint, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.registry import Registry
from gateway.route import RouteTable
from gateway.store import StateChange, Store, open_store
from gateway.types import VersionState

ALIAS = "vqa"
BASE = VersionName("small", 0)
ENDPOINT = Endpoint("http://127.0.0.1:1", "token")
RECORD = ProbeRecord(
    text="what?",
    answer="red",
    image=None,
    num_tokens=2,
    token_ids=(1, 2),
    base_logprobs=(-1.0, -1.0),
    adapter_logprobs=(-0.5, -0.5),
)


class ScriptedReplica:
    """Holds what it is told to; `fail_load` and `lose_modules` make it misbehave."""

    def __init__(self, number: int, registry: Registry) -> None:
        self.name = f"small/{number}"
        self.engine = "small"
        self.copies: dict[VersionName, dict[str, str]] = {}
        self.num_sent = 0
        self.held: set[VersionName] = set()
        self.renewed: set[VersionName] = set()
        self.fail_copy: Exception | None = None
        self.fail_load: Exception | None = None
        self.fail_release: Exception | None = None
        self.fail_probe: Exception | None = None
        self.probes: list[tuple[VersionName, tuple[ProbePrompt, ...]]] = []
        self.lose_modules = False
        self.wrong_bytes = False
        self._registry = registry

    async def copy(self, parcel: Parcel) -> None:
        if self.fail_copy is not None:
            raise self.fail_copy
        self.num_sent += 1
        self.copies[parcel.version] = parcel.hashes()

    async def has_copy(self, version: VersionName, hashes: Mapping[str, str]) -> bool:
        return self.copies.get(version) == hashes

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        if self.fail_load is not None:
            raise self.fail_load
        assert version in self.copies
        self.held.add(version)
        verified: VerifiedAdapter = self._registry.reverify(self._registry.store.versions.get(version))
        modules = () if self.lose_modules else verified.modules
        return LoadedAdapter(version, 1, "0" * 64 if self.wrong_bytes else verified.weights_sha256, modules)

    async def release(self, owner: str, version: VersionName) -> None:
        if self.fail_release is not None:
            raise self.fail_release
        self.held.discard(version)

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None:
        self.held &= set(versions)

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        self.renewed |= set(versions)
        if missing := set(versions) - self.held:
            raise NotFound(f"{missing} is not leased")

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        """What `RECORD` says."""
        if self.fail_probe is not None:
            raise self.fail_probe
        self.probes.append((version, tuple(prompts)))
        logprobs = RECORD.base_logprobs if version.is_base else RECORD.adapter_logprobs
        return tuple(ProbeScore(RECORD.token_ids, logprobs) for _ in prompts)


class Site:
    """A publisher over two replicas, and what a test looks at."""

    def __init__(self, tmp_path: Path) -> None:
        self.base = write_base(tmp_path / "base")
        self.store: Store = open_store(f"sqlite:///{tmp_path}/tandem.db")
        self.routes = RouteTable()
        self.routes.set_alias(self.store.aliases.ensure(ALIAS, "small"))
        config = EngineConfig(model=str(self.base), kind="fake")
        self.registry = Registry(tmp_path / "registry", self.store, {"small": config})
        self.membership = Membership(self.store, self.routes)
        self.replicas = [ScriptedReplica(number, self.registry) for number in (0, 1)]
        self.metrics = Metrics()
        self.publisher = Publisher(self.registry, self.routes, self.membership, self.metrics, drain_timeout_s=5.0)
        self.tmp_path = tmp_path

    async def join(self, replica: ScriptedReplica) -> None:
        await self.membership.join(replica, ENDPOINT)  # type: ignore[arg-type]

    async def register(self, seed: int) -> VersionName:
        directory = write_adapter(self.tmp_path / f"adapter-{seed}", lora_tensors(seed=seed))
        return (await self.publisher.register(ALIAS, directory)).name

    async def register_proven(self, seed: int) -> VersionName:
        """With a manifest, whose probe is `RECORD`."""
        directory = write_adapter(self.tmp_path / f"adapter-{seed}", lora_tensors(seed=seed))
        write_manifest(directory, manifest_of(directory, read_base(self.base), probe=(RECORD,)))
        return (await self.publisher.register(ALIAS, directory)).name

    def state(self, name: VersionName) -> VersionState:
        return self.store.versions.get(name).state


def change_weights(site: Site, name: VersionName) -> None:
    """In the registry, to others of the same shape."""
    weights = site.store.versions.get(name).path / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    for replica in site.replicas:
        await site.join(replica)
    yield site
    site.store.close()


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
