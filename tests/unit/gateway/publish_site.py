"""A publisher over replicas that a test can make fail at any step, with the real store and real files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tiny_adapter import lora_tensors, manifest_of, write_adapter, write_base

from engines.adapter import Parcel, ProbeRecord, VerifiedAdapter, read_base, write_manifest
from engines.config import EngineConfig
from engines.errors import NotFound
from engines.types import Endpoint, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.registry import Registry
from gateway.route import RouteTable
from gateway.store import Store, open_store
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
