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
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from engines.adapter.copies import copies_root
from engines.errors import Unavailable
from engines.placement import unplace, unplace_all
from engines.remote_key import api_key_of
from engines.replica import NAMESPACE, RayReplica, prefix_of
from gateway import ray_daemon
from gateway.board import ReplicaBoard
from gateway.config import TandemConfig
from gateway.media import ImageStore
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.monitor import Monitor, Watch
from gateway.promotion import Publisher
from gateway.record import Recorder
from gateway.registry import Registry
from gateway.route import RouteTable
from gateway.services import Services
from gateway.store import open_store
from gateway.telling import Teller
from gateway.users import UserLoads

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_services(config: TandemConfig) -> AsyncIterator[Services]:
    """Everything the application needs, with a replica of each engine in service; the others join while it serves."""
    for directory in (config.run_root, config.log_root, config.registry_root, config.jobs.root):
        directory.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as cleanup:
        store = await asyncio.to_thread(open_store, config.store.url)
        cleanup.push_async_callback(asyncio.to_thread, store.close)
        metrics, routes = Metrics(), RouteTable()
        for name, model in config.models.items():
            routes.set_alias(await asyncio.to_thread(store.aliases.ensure, name, model.engine))
        replicas = await asyncio.to_thread(_open_replicas, config)
        registry = Registry(config.registry_root, store, config.engines)
        membership = Membership(store, routes)
        publisher = Publisher(registry, routes, membership, metrics, config.gateway.drain_timeout_s)
        await publisher.recover()
        images = ImageStore(config.store.media)
        recorder = Recorder(store, images, metrics, config.gateway)
        cleanup.push_async_callback(recorder.close)
        board = ReplicaBoard()
        hang_timeout_s = config.gateway.hang_timeout_s
        monitor = Monitor(
            tuple(Watch(replica, routes, membership, board, metrics, hang_timeout_s) for replica in replicas)
        )
        watch = asyncio.create_task(monitor.run())
        cleanup.push_async_callback(_end, watch)
        await monitor.first_service()
        users = UserLoads()
        telling = asyncio.create_task(Teller(replicas, users, routes).run())
        cleanup.push_async_callback(_end, telling)
        yield Services(config, store, images, routes, recorder, publisher, metrics, board, users)


def _open_replicas(config: TandemConfig) -> list[RayReplica]:
    for name, engine in config.engines.items():
        api_key_of(name, engine)  # a key that lacks is said before Ray is started
    connect(config)
    return [
        RayReplica(installation_of(config), name, number, engine, config.log_root)
        for name, engine in config.engines.items()
        for number in range(engine.replicas)
    ]


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
            await _stop_actor(name)
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


async def _stop_actor(name: str) -> None:
    import ray

    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:  # Ray's way to say that it has died meanwhile
        return
    try:
        await asyncio.wait_for(actor.stop.remote(), timeout=30.0)
    except (TimeoutError, ray.exceptions.RayError) as error:
        _log.warning("%s did not stop by itself (%s); killing it, which ends its engine too", name, error)
    ray.kill(actor)
    unplace(name)
    await asyncio.to_thread(shutil.rmtree, copies_root(name), ignore_errors=True)  # one that was killed left its copies
