"""The composition root: opens the store, Ray, the replicas and what stands on them, and closes it all again.

Engines and Ray outlive the gateway on purpose: a gateway that comes back finds both and uses them again. `stop_all` is
what ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway import ray_daemon
from gateway.config import TandemConfig
from gateway.media import ImageStore
from gateway.metrics import Metrics
from gateway.monitor import Monitor
from gateway.promotion import Publisher
from gateway.record import Recorder
from gateway.registry import Registry
from gateway.replicas import NAMESPACE, RayReplica
from gateway.route import RouteTable
from gateway.services import Services
from gateway.store import open_store

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_services(config: TandemConfig) -> AsyncIterator[Services]:
    """Everything the application needs, with at least one replica of every engine ready."""
    for directory in (config.run_root, config.log_root, config.registry_root, config.jobs.root):
        directory.mkdir(parents=True, exist_ok=True)
    store = await asyncio.to_thread(open_store, config.store.url)
    metrics = Metrics()
    routes = RouteTable()
    for name, model in config.models.items():
        routes.set_alias(await asyncio.to_thread(store.aliases.ensure, name, model.engine))
    await asyncio.to_thread(connect, config)
    replicas = [
        RayReplica(name, number, engine, config.log_root)
        for name, engine in config.engines.items()
        for number in range(engine.replicas)
    ]
    registry = Registry(config.registry_root, store, config.engines)
    publisher = Publisher(registry, routes, replicas, metrics, config.gateway.drain_timeout_s)
    monitor = Monitor(replicas, routes, publisher, metrics)
    images = ImageStore(config.store.media)
    recorder = Recorder(store, images, metrics, config.gateway)
    await asyncio.gather(*(monitor.admit(replica) for replica in replicas))
    watch = asyncio.create_task(monitor.run())
    try:
        yield Services(config, store, images, routes, recorder, publisher, metrics)
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await recorder.close()
        await asyncio.to_thread(store.close)


def connect(config: TandemConfig) -> None:
    """Joins the configured Ray cluster; with an empty address, the daemon of our own, which is started if need be."""
    address = config.ray.address
    if not address:
        daemon = ray_daemon.find(config.run_root) or ray_daemon.start(config.run_root, config.log_root)
        os.environ.update(daemon.environment())
        address = daemon.address
    import ray  # reads its token's place from the environment once, when it is imported

    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)


async def stop_all(config: TandemConfig) -> tuple[str, ...]:
    """Ends the engines, their actors, and the Ray daemon if it is ours. Says what it ended."""
    ended: list[str] = []
    if config.ray.address or ray_daemon.find(config.run_root):
        connect(config)
        for name in _engine_actors():
            await _stop_actor(name)
            ended.append(name)
        _disconnect()
    if not config.ray.address and await asyncio.to_thread(ray_daemon.stop, config.run_root):
        ended.append("ray")
    return tuple(ended)


def _disconnect() -> None:
    import ray

    ray.shutdown()


def _engine_actors() -> list[str]:
    from ray.util import list_named_actors

    return [a["name"] for a in list_named_actors(all_namespaces=True) if _is_ours(a["namespace"], a["name"])]


def _is_ours(namespace: str, name: str) -> bool:
    return namespace == NAMESPACE and name.startswith("engine:")


async def _stop_actor(name: str) -> None:
    import ray

    actor = ray.get_actor(name, namespace=NAMESPACE)
    try:
        await asyncio.wait_for(actor.stop.remote(), timeout=30.0)
    except (TimeoutError, ray.exceptions.RayError) as error:
        _log.warning("%s did not stop by itself (%s); killing it, which ends its engine too", name, error)
    ray.kill(actor)


def ray_environment(run_root: Path) -> dict[str, str]:
    """What a shell needs to reach our own Ray daemon; empty if there is none."""
    daemon = ray_daemon.find(run_root)
    return daemon.environment() if daemon else {}
