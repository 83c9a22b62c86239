"""The composition root: opens the store, Ray, the replicas and what stands on them, and closes it all again.

Engines and Ray outlive the gateway on purpose: a gateway that comes back finds both and uses them again. `stop_all` is
what ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from engines.actor_name import ActorName, serving_actors
from engines.ending import end_actor
from engines.errors import Unavailable
from engines.placement import unplace_all
from engines.remote_key import api_key_of
from engines.replica import NAMESPACE, RayReplica, Replica, prefix_of
from gateway import ray_daemon
from gateway.board import ReplicaBoard
from gateway.config import TandemConfig
from gateway.generation import GenerationRow
from gateway.lineup import Lineup, MakeReplica
from gateway.media import ImageStore
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.monitor import Monitor, Watch
from gateway.promotion import Publisher
from gateway.record import Recorder
from gateway.registry import Registry
from gateway.release import Releaser, config_of, recover, strays
from gateway.route import RouteTable
from gateway.services import Services
from gateway.store import Store, open_store
from gateway.swap import Ground
from gateway.telling import Teller
from gateway.users import UserLoads

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_services(config: TandemConfig, make: MakeReplica | None = None) -> AsyncIterator[Services]:
    """Everything the application needs, with a replica of each engine in service; the others join while it serves.

    `make`: how replicas are made; None: on Ray, which is joined, or started.
    """
    for directory in (config.run_root, config.log_root, config.registry_root, config.jobs.root):
        directory.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as cleanup:
        store = await asyncio.to_thread(open_store, config.store.url)
        cleanup.push_async_callback(asyncio.to_thread, store.close)
        metrics, routes = Metrics(), RouteTable()
        live = await asyncio.to_thread(recover, store, config)
        names = {row.engine: row.name for row in live}
        for name, model in config.models.items():
            routes.set_alias(await asyncio.to_thread(store.aliases.ensure, name, names[model.engine]))
        if make is None:
            await asyncio.to_thread(_connect_and_clear, config, live)
            make = partial(_make_replica, config, store)
        hosted = {row.name: config_of(row, config) for row in live}
        registry = Registry(config.registry_root, store, hosted)
        membership = Membership(store, routes)
        publisher = Publisher(registry, routes, membership, metrics, config.gateway.drain_timeout_s)
        await publisher.recover()
        images = ImageStore(config.store.media)
        recorder = Recorder(store, images, metrics, config.gateway)
        cleanup.push_async_callback(recorder.close)
        board = ReplicaBoard()
        hang_timeout_s = config.gateway.hang_timeout_s

        def watch_over(replica: Replica) -> Watch:
            return Watch(replica, routes, membership, board, metrics, hang_timeout_s)

        users = UserLoads()
        monitor, teller = Monitor(), Teller((), users, routes)
        lineup = Lineup(make, watch_over, monitor, teller, membership, routes, board)
        for row in live:
            await lineup.open(row, hosted[row.name].replicas)
        for task in (monitor.run(), teller.run()):
            cleanup.push_async_callback(_end, asyncio.create_task(task))
        await monitor.first_service()
        releaser = Releaser(config, hosted, Ground(lineup, store, routes, membership), publisher, metrics)
        cleanup.push_async_callback(releaser.close)
        yield Services(config, store, images, routes, recorder, publisher, releaser, metrics, board, users)


def _connect_and_clear(config: TandemConfig, live: Sequence[GenerationRow]) -> None:
    """Ends what runs of other generations than the live ones: a release that was interrupted left it behind."""
    for name, engine in config.engines.items():
        api_key_of(name, engine)  # a key that lacks is said before Ray is started
    connect(config)
    for name in strays(serving_actors(), live, installation_of(config)):
        _log.warning("%s serves a generation that is not live: ending it", name)
        end_actor(name)


def _make_replica(config: TandemConfig, store: Store, row: GenerationRow, number: int) -> RayReplica:
    installation = installation_of(config)
    host = next(one for one in store.generations.of(row.engine) if one.name == row.actors)
    actor = ActorName.of(installation, f"{host.name}/{number}", config_of(host, config))
    return RayReplica(installation, row.name, number, config_of(row, config), config.log_root, actor)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def installation_of(config: TandemConfig) -> str:
    """One data directory is one installation: several may share a Ray cluster."""
    return hashlib.sha256(str(config.data).encode()).hexdigest()[:8]


def connect(config: TandemConfig) -> None:
    """Joins the configured Ray cluster; with an empty address, the daemon of our own, which is started if need be."""
    address = config.ray.address
    if not address:
        daemon = ray_daemon.find(config.run_root) or ray_daemon.start(
            config.run_root, config.log_root, config.jobs.root
        )
        os.environ.update(daemon.environment())
        address = daemon.address
    os.environ.update(ray_daemon.DRIVER_ENVIRONMENT)
    import ray  # reads its token's place from the environment once, when it is imported

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise Unavailable(
            f"no Ray cluster answers at '{address}': start one with `ray start --head`, or set [ray] address = \"\" "
            "to have Tandem start its own"
        ) from error


async def stop_all(config: TandemConfig) -> tuple[str, ...]:
    """Ends the engines, their actors, and the Ray daemon if it is ours. Says what it ended."""
    ended: list[str] = []
    if config.ray.address or ray_daemon.find(config.run_root):
        connect(config)
        for name in _engine_actors(installation_of(config)):
            await asyncio.to_thread(end_actor, name)
            ended.append(name)
        unplace_all(prefix_of(installation_of(config)))  # those whose actor had died
        _disconnect()
    if not config.ray.address and await asyncio.to_thread(ray_daemon.stop, config.run_root):
        ended.append("ray")
    return tuple(ended)


def _disconnect() -> None:
    import ray

    ray.shutdown()


def _engine_actors(installation: str) -> list[str]:
    from ray.util import list_named_actors

    ours = prefix_of(installation)
    actors = list_named_actors(all_namespaces=True)
    return [a["name"] for a in actors if a["namespace"] == NAMESPACE and a["name"].startswith(ours)]
