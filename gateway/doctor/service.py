"""Checks of what runs: who has the port, and whether every replica can answer for what aliases name."""

from __future__ import annotations

import errno
import shlex
import socket
import time

from gateway.client import Replica
from gateway.doctor.context import Context, Running
from gateway.doctor.elsewhere import ask_command
from gateway.doctor.finding import Finding, fail, ok, warn, worst
from gateway.generation import engine_of

_UNREACHABLE = "unreachable"
_BROKEN = frozenset({_UNREACHABLE, "failed", "unresponsive", "stopping", "stopped"})
_START_MARGIN_S = 60.0


def check_port(context: Context) -> Finding:
    """Free, or answered by the gateway of this data directory."""
    gateway, pid = context.config.gateway, context.gateway_pid
    if context.running:
        if pid is None:
            return fail(f"{gateway.url} is answered by a gateway of another data directory", _other_port(context))
        return ok(f"our gateway (process {pid}) answers at {gateway.url}")
    if pid is not None:
        return _check_silent(context, pid)
    try:
        socket.create_server((gateway.host, gateway.port), family=_family(gateway.host)).close()
    except OSError as error:
        who = "another process listens there" if error.errno == errno.EADDRINUSE else str(error.strerror)
        return fail(f"{gateway.host}:{gateway.port} cannot be listened on: {who}", _other_port(context))
    return ok(f"{gateway.host}:{gateway.port} is free")


def check_replicas(context: Context) -> Finding:
    """As many as configured, in service, each holding every adapter that aliases of its engine name."""
    if not context.running:
        return ok("no gateway answers, so there is none to ask for")
    findings = [_check_engine(name, context, context.running) for name in context.config.engines]
    return worst(findings) if findings else ok("no engine is configured")


def _check_silent(context: Context, pid: int) -> Finding:
    limits_s = [engine.start_timeout_s for engine in context.config.engines.values()]
    log = context.config.log_root / "gateway.log"
    if _age_s(pid) < max(limits_s, default=0.0) + _START_MARGIN_S:
        return warn(f"the gateway (process {pid}) does not answer yet: its engines start", f"tail -f {_quoted(log)}")
    return fail(f"the gateway (process {pid}) runs but does not answer", context.restart)


def _check_engine(name: str, context: Context, running: Running) -> Finding:
    replicas = [replica for replica in running.replicas if engine_of(replica.engine) == name]
    findings = [_check_replica(replica, _named(replica.engine, running), context) for replica in replicas]
    wanted = context.config.engines[name].replicas
    if len(replicas) < wanted:
        findings.append(
            warn(f"engine {name}: {len(replicas)} of {wanted} replicas are known", context.tandem("status", "--watch"))
        )
    if not any(replica.in_service for replica in replicas):
        findings.append(fail(f"engine {name}: no replica is in service", _look_at(f"{name}/0", context)))
    return worst(findings)


def _check_replica(replica: Replica, named: frozenset[str], context: Context) -> Finding:
    reason = replica.detail.splitlines()[0] if replica.detail else ""
    if not replica.in_service:
        words = f"{replica.id} is {replica.state}" + (f" ({reason})" if reason else "")
        if replica.state in _BROKEN:
            return fail(words, _look_at(replica.id, context))
        return warn(words, context.tandem("status", "--watch"))
    lacking = sorted(named - set(replica.versions))
    if lacking:
        return fail(f"{replica.id} is in service without {', '.join(lacking)}", context.restart)
    if replica.state == _UNREACHABLE:
        return warn(f"{replica.id} answers users, but its actor does not ({reason})", context.restart)
    if replica.ejected_for_s > 0:
        words = f"{replica.id} failed requests and gets none for {replica.ejected_for_s:.0f} s"
        return warn(words, _look_at(replica.id, context))
    return ok(f"{replica.id} holds {', '.join(sorted(named)) or 'its base'}")


def _named(engine: str, running: Running) -> frozenset[str]:
    """The adapters that aliases of the engine call live or previous."""
    names = (name for alias in running.aliases if alias.engine == engine for name in (alias.live, alias.previous))
    return frozenset(name for name in names if name is not None and not name.endswith("@0"))


def _age_s(pid: int) -> float:
    import psutil

    try:
        return time.time() - psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _other_port(context: Context) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return context.tandem("serve", "--detach", "--set", f"gateway.port={server.getsockname()[1]}")


def _look_at(replica: str, context: Context) -> str:
    """The engine's log; a remote server keeps its own."""
    engine, _, number = replica.rpartition("/")
    config = context.config.engines.get(engine)
    if config is not None and config.kind == "remote":
        return ask_command(config)
    return f"tail -n 50 {_quoted(context.config.log_root / f'{engine}-{number}' / f'{engine}.log')}"


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
