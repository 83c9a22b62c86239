"""`tandem status`: against a real gateway, and where none answers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from doctor_context import TOY, configured, free_port, replica
from gateway_stack import Stack

from gateway.cli.overview import Overview, Silence
from gateway.cli.overview_table import render
from gateway.cli.parts import find_parts
from gateway.cli.pidfile import PidFile
from gateway.client import Alias, Replica

TIMEOUT_S = 60


def tandem(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=cwd)


def write_config(folder: Path) -> int:
    """Its port."""
    port = free_port()
    (folder / "tandem.toml").write_text(
        f'[engines.small]\nkind = "fake"\nmodel = "{TOY}"\n[models.vqa]\nengine = "small"\n'
        f'[gateway]\nport = {port}\n[ray]\naddress = ""\n'
    )
    return port


def overview(*replicas: Replica, is_ready: bool = True, live: str = "vqa@1") -> Overview:
    alias = Alias(id="vqa", engine="small", live=live, previous=None, generation=3)
    return Overview("http://gateway", is_ready, replicas, (alias,), ("vqa",), 1)


def words_of(seen: Overview) -> str:
    return "\n".join(f"{problem.what}. {problem.do}" for problem in seen.problems())


async def test_a_gateway_that_answers_is_shown_with_its_replicas_and_aliases(url: str, stack: Stack) -> None:
    shown = await asyncio.to_thread(tandem, "status", "--url", url)
    assert shown.returncode == 0, shown.stderr
    for word in ("1 of 1 replicas in service", "small/0", "vqa", "small@0", "generation"):
        assert word in shown.stdout
    document = json.loads((await asyncio.to_thread(tandem, "status", "--url", url, "--json")).stdout)
    assert (document["ready"], document["problems"]) == (True, [])
    assert [row["id"] for row in document["replicas"]] == ["small/0"]
    assert [(row["id"], row["live"]) for row in document["aliases"]] == [("vqa", "small@0")]


async def test_a_watch_prints_one_object_a_line_until_it_is_interrupted(url: str, stack: Stack) -> None:
    lines, code = await asyncio.to_thread(watch, 3, "--url", url, "--json")
    documents = [json.loads(line) for line in lines]
    assert [document["ready"] for document in documents] == [True, True, True]
    assert code == 0


async def test_a_watch_on_a_terminal_draws_until_it_is_interrupted(url: str, stack: Stack) -> None:
    drawn, code = await asyncio.to_thread(watch_on_terminal, "--url", url)
    assert drawn.count("small/0") > 1
    assert code == 0


async def test_a_watch_into_a_pipe_prints_one_look_after_the_other(url: str, stack: Stack) -> None:
    lines, code = await asyncio.to_thread(watch, 20, "--url", url)
    assert "".join(lines).count("small/0") > 1
    assert code == 0


def test_a_watch_goes_on_while_no_gateway_answers(tmp_path: Path) -> None:
    port = write_config(tmp_path)
    lines, code = watch(2, "--json", cwd=tmp_path)
    first = json.loads(lines[0])
    assert (first["ready"], first["parts"]["gateway_pid"], first["url"]) == (False, None, f"http://127.0.0.1:{port}")
    assert code == 0


def hear_interrupts() -> None:
    """Where the tests run in the background of a script, SIGINT is ignored, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def watch(num_lines: int, *arguments: str, cwd: Path | None = None) -> tuple[list[str], int]:
    """The first lines of a watch that is then interrupted, and its exit code."""
    command = [sys.executable, "-m", "gateway.cli", "status", "--watch", "--every", "0.05", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd, preexec_fn=hear_interrupts) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(num_lines)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        return lines, process.wait(TIMEOUT_S)


def watch_on_terminal(*arguments: str) -> tuple[str, int]:
    """What is drawn until the second look, and the exit code after Ctrl-C."""
    command = [sys.executable, "-m", "gateway.cli", "status", "--watch", "--every", "0.05", *arguments]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, preexec_fn=hear_interrupts) as process:
        drawn = ""
        while drawn.count("small/0") < 2:
            drawn += os.read(ours, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        code = process.wait(TIMEOUT_S)
    os.close(ours)
    os.close(theirs)
    return drawn, code


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The pid file, as a gateway that runs holds it."""
    file = PidFile(path)
    file.acquire()
    try:
        yield
    finally:
        assert file._descriptor is not None
        os.close(file._descriptor)


def test_without_an_answer_it_says_which_parts_are_there_and_what_to_do(tmp_path: Path) -> None:
    write_config(tmp_path)
    silent = tandem("status", cwd=tmp_path)
    assert (silent.returncode, silent.stdout) == (3, "")
    assert "no process of it runs, no Ray head of its own runs" in silent.stderr
    assert "Do: tandem serve --detach" in silent.stderr


def test_the_parts_of_a_silent_gateway_lead_to_one_command(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with held(config.run_root / "gateway.pid"):
        starting = find_parts(config, Path("my.toml"))
        assert f"its process {os.getpid()} runs" in starting.words
        assert starting.do.startswith("tail -f ")
        write_head(config.run_root / "ray.json", pid=2**22 + 1)
        dead = find_parts(config, Path("my.toml"))
        assert "its Ray head is gone" in dead.words
        assert dead.do == "tandem stop -c my.toml && tandem serve --detach -c my.toml"
    write_head(config.run_root / "ray.json", pid=os.getpid())
    (problem,) = Silence("http://gateway", "no answer", find_parts(config, None)).problems()
    assert problem.what == f"no answer; no process of it runs, its Ray head (process {os.getpid()}) runs"
    assert problem.do == "tandem serve --detach"


def write_head(path: Path, pid: int) -> None:
    values: dict[str, Any] = {"address": "127.0.0.1:1", "dashboard": "http://127.0.0.1:2", "token_path": "/none"}
    path.write_text(json.dumps(values | {"pid": pid, "created": psutil.Process().create_time()}))


def test_a_gateway_where_nothing_can_answer_is_a_problem() -> None:
    assert "no replica can answer. tandem doctor" in words_of(overview(is_ready=False))
    assert overview(is_ready=True).problems() == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"in_service": False, "state": "failed", "detail": "died\nlog"}, "small/0 is failed (died) and gets no"),
        ({"versions": []}, "small/0 does not hold vqa@1"),
        ({"ejected_for_s": 8.0}, "gets them again in 8 s"),
        ({"state": "unreachable"}, "no publish waits for it"),
        ({"seen_s_ago": 60.0}, "nobody could look at small/0 for 60 s"),
        ({"num_waiting": 5, "kv_cache_usage": 0.99}, "5 requests wait"),
    ],
)
def test_each_trouble_of_a_replica_is_one_problem(fields: dict[str, object], words: str) -> None:
    assert overview(replica(versions=["vqa@1"])).problems() == ()
    seen = overview(replica(**{"versions": ["vqa@1"], **fields}))
    assert len(seen.problems()) == 1
    assert words in words_of(seen)


def test_what_is_not_known_is_drawn_as_a_dash() -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    unknown = {"num_running": None, "num_waiting": None, "kv_cache_usage": None, "state": "unreachable"}
    slots = {"used": 1, "total": None, "holders": []}
    console.print(render(overview(replica(versions=["vqa@1"], slots=slots, **unknown))))
    (row,) = (line.split() for line in console.export_text().splitlines() if line.startswith(" small/0"))
    assert row == ["small/0", "unreachable", "vqa@1", "0", "-", "-", "-", "-", "1/?"]


def test_the_jobs_that_are_guests_on_a_replica_are_shown_under_what_serves() -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    leases = [("vqa@1", "serving"), ("grpo.1/step@4", "grpo"), ("grpo.1/step@5", "grpo")]
    slots = {"used": 3, "total": 6, "holders": [{"version": version, "owner": owner} for version, owner in leases]}
    console.print(render(overview(replica(versions=["grpo.1/step@4", "vqa@1"], slots=slots))))
    lines = [line.strip() for line in console.export_text().splitlines()]
    (row,) = (number for number, line in enumerate(lines) if line.startswith("small/0"))
    assert lines[row].split()[:3] == ["small/0", "ready", "vqa@1"]
    assert lines[row + 1] == "job grpo: grpo.1/step@4, grpo.1/step@5"


def test_what_a_server_cannot_do_stands_below_its_versions() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, record=True)
    far = replica(missing=["images", "adapters"], unknown=["aborts"], slots={"used": 0, "total": 0, "holders": []})
    console.print(render(overview(far, live="small@0")))
    assert "no images, adapters; unknown: aborts" in console.export_text()
