"""What the doctor says of what runs: the port, the replicas, Ray, and engines that outlived their actor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from doctor_context import configured, free_port, replica, running
from test_doctor import expect

from engines.served import TOKEN_VARIABLE
from gateway.client import Replica
from gateway.config import TandemConfig
from gateway.doctor import Context, Finding, Level, cluster
from gateway.doctor.cluster import check_ray
from gateway.doctor.context import ask
from gateway.doctor.machine import Machine
from gateway.doctor.orphans import check_orphans
from gateway.doctor.service import check_port, check_replicas


@contextmanager
def taken(config: TandemConfig) -> Iterator[None]:
    with socket.create_server((config.gateway.host, config.gateway.port)):
        yield


def test_a_port_is_free_or_ours(tmp_path: Path) -> None:
    config = configured(tmp_path)
    expect(check_port(Context(config)), Level.OK, "is free")
    ours = Context(config, running=running(config), gateway_pid=os.getpid())
    expect(check_port(ours), Level.OK, f"our gateway (process {os.getpid()})")
    expect(check_port(Context(config, running=running(config))), Level.FAIL, "another data directory", "gateway.port=")


def test_a_port_that_somebody_else_has_is_said(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with taken(config):
        expect(check_port(Context(config)), Level.FAIL, "another process", "tandem serve --detach --set gateway.port=")


def test_a_silent_gateway_is_starting_or_stuck(tmp_path: Path) -> None:
    config = configured(tmp_path, start_timeout_s=1.0)
    with subprocess.Popen(["sleep", "60"]) as young:
        expect(check_port(Context(config, gateway_pid=young.pid)), Level.WARN, "does not answer yet", "tail -f")
        young.kill()
    old = next(p.pid for p in psutil.process_iter() if time.time() - p.create_time() > 120)
    expect(check_port(Context(config, gateway_pid=old)), Level.FAIL, "does not answer", "tandem stop")


async def test_a_gateway_is_asked_and_anything_else_is_none(url: str, tmp_path: Path) -> None:
    found = await asyncio.to_thread(ask, url)
    assert found is not None
    assert [replica.id for replica in found.replicas] == ["small/0"]
    assert [alias.id for alias in found.aliases] == ["vqa"]
    assert await asyncio.to_thread(ask, f"http://127.0.0.1:{free_port()}") is None


def test_another_web_server_is_no_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=_say_hello, args=(server,), daemon=True)
        answering.start()
        assert ask(f"http://127.0.0.1:{server.getsockname()[1]}") is None
        answering.join(10)


def _say_hello(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


def test_replicas_are_in_service_with_what_aliases_name(tmp_path: Path) -> None:
    def check(*replicas: Replica, num: int = 2) -> Finding:
        config = configured(tmp_path, replicas=num)
        return check_replicas(Context(config, running=running(config, *replicas, live="vqa@2", previous="vqa@1")))

    both = {"versions": ["vqa@1", "vqa@2"]}
    good = replica("small/1", **both)
    expect(check(replica(**both), good), Level.OK, "small/0 holds vqa@1, vqa@2")
    expect(check(replica(versions=["vqa@2"]), good), Level.FAIL, "small/0 is in service without vqa@1", "tandem stop")
    expect(check(good), Level.WARN, "1 of 2 replicas", "tandem status --watch")
    starting = replica(in_service=False, state="starting")
    expect(check(starting, good), Level.WARN, "small/0 is starting", "tandem status --watch")
    expect(check(starting, num=1), Level.FAIL, "no replica is in service", "small-0/small.log")
    failed = replica(in_service=False, state="failed", detail="its process ended\nTraceback")
    expect(check(failed, good), Level.FAIL, "small/0 is failed (its process ended)", "small-0/small.log")
    expect(check(replica(ejected_for_s=4.0, **both), good), Level.WARN, "gets none for 4 s", "tail")
    lost = replica(state="unreachable", detail="no answer", **both)
    expect(check(lost, good), Level.WARN, "its actor does not (no answer)", "tandem stop")
    expect(check(num=1), Level.FAIL, "no replica is in service")


def test_bases_need_no_adapter_and_no_gateway_no_replica(tmp_path: Path) -> None:
    config = configured(tmp_path)
    expect(check_replicas(Context(config, running=running(config, replica()))), Level.OK, "holds its base")
    expect(check_replicas(Context(config)), Level.OK, "no gateway answers")


def write_head(config: TandemConfig, **fields: Any) -> None:
    head = {
        "address": f"127.0.0.1:{free_port()}",
        "dashboard": "http://127.0.0.1:1",
        "token_path": str(config.run_root / "ray.token"),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
    }
    config.run_root.mkdir(parents=True, exist_ok=True)
    (config.run_root / "ray.token").write_text("0" * 64)
    (config.run_root / "ray.json").write_text(json.dumps(head | fields))


def test_a_head_of_our_own_that_died_is_said(tmp_path: Path) -> None:
    config = configured(tmp_path)
    expect(check_ray(Context(config)), Level.OK, "no head of ours runs")
    write_head(config, pid=2**22 + 1)
    expect(check_ray(Context(config)), Level.FAIL, "which is gone", "tandem stop && tandem serve --detach")
    write_head(config)
    expect(check_ray(Context(config)), Level.FAIL, "refuses connections", "tandem stop")
    (config.run_root / "ray.json").write_text("{")
    expect(check_ray(Context(config)), Level.FAIL, "cannot be read", "tandem stop")


def test_a_head_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_TIMEOUT_S", 1.0)
    config = configured(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        write_head(config, address=f"127.0.0.1:{server.getsockname()[1]}")
        expect(check_ray(Context(config)), Level.FAIL, "gives no answer within 1 s", "tandem stop")


def test_a_configured_cluster_must_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ray_current_cluster"
    automatic = Context(configured(tmp_path, ray="auto"), machine=Machine(ray_address_file=file))
    expect(check_ray(automatic), Level.FAIL, "no Ray cluster runs", "ray start --head")
    address = f"127.0.0.1:{free_port()}"
    file.write_text(address)
    expect(check_ray(automatic), Level.FAIL, f"{address} refuses connections", f"ray status --address {address}")
    expect(check_ray(Context(configured(tmp_path, ray=address))), Level.FAIL, "refuses connections")


@contextmanager
def engine(log_root: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process as an engine's: it has a token, a group of its own, and logs under `log_root`."""
    log_root.mkdir(parents=True, exist_ok=True)
    with (log_root / "small.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, env={**os.environ, TOKEN_VARIABLE: "secret"}, start_new_session=True
        )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # nothing of it is left
            pass
        process.wait(10)


def test_an_engine_with_its_supervisor_is_no_orphan(tmp_path: Path) -> None:
    config = configured(tmp_path)
    expect(check_orphans(Context(config)), Level.OK, "0 engine processes")
    with engine(config.log_root / "small-0", "sleep", "60"):
        expect(check_orphans(Context(config)), Level.OK, "1 engine processes")
        expect(check_orphans(Context(configured(tmp_path / "other"))), Level.OK, "0 engine processes")


def test_an_engine_whose_supervisor_is_gone_is_an_orphan_and_the_command_ends_it(tmp_path: Path) -> None:
    config = configured(tmp_path)
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    with engine(config.log_root / "small-0", sys.executable, "-c", code) as leader:
        assert leader.wait(30) == 0
        finding = check_orphans(Context(config))
        expect(finding, Level.FAIL, f"groups {leader.pid} outlived", f"kill -9 -{leader.pid}")
        orphan = psutil.Process(int((config.log_root / "small-0" / "small.log").read_text()))
        subprocess.run(["sh", "-c", finding.mend], check=True, timeout=10)
        psutil.wait_procs([orphan], timeout=10)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    expect(check_orphans(Context(config)), Level.OK)
