"""A supervised process: ready, watched, ended with everything it spawned."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from engines.errors import EngineDown
from engines.lifeline import group_members
from engines.process import ServerProcess, free_port, log_tail, new_token

pytestmark = pytest.mark.timeout(30)

SLEEPER = "import signal, time; print('up', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
LISTENER = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
    "print('up', s.getsockname()[1], flush=True); time.sleep(60)"
)
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); {SLEEPER}"


def python(code: str, tmp_path: Path) -> ServerProcess:
    return ServerProcess((sys.executable, "-c", code), dict(os.environ), tmp_path / "server.log", name="it")


async def until_logged(process: ServerProcess, lines: int = 1) -> None:
    async def has_said() -> bool:
        return process.tail().count("up") == lines

    await process.wait_ready(has_said, 20, poll_s=0.02)


async def test_it_is_ready_when_it_answers_and_ends_on_sigterm(tmp_path: Path) -> None:
    process = python(SLEEPER, tmp_path)
    process.start()
    await until_logged(process)
    assert process.is_running
    await process.stop()
    assert process.exit_code == 128 + signal.SIGTERM
    assert not process.is_running
    assert group_members(process.group) == ()
    await process.stop()


async def test_one_that_ignores_sigterm_is_killed_in_bounded_time(tmp_path: Path) -> None:
    process = python(STUBBORN, tmp_path)
    process.start()
    await until_logged(process)
    began_s = time.monotonic()
    await process.stop(term_timeout_s=0.2)
    assert time.monotonic() - began_s < 5
    assert process.exit_code == -signal.SIGKILL
    assert group_members(process.group) == ()


async def test_a_cancelled_stop_kills(tmp_path: Path) -> None:
    process = python(STUBBORN, tmp_path)
    process.start()
    await until_logged(process)
    stopping = asyncio.create_task(process.stop(term_timeout_s=60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert await asyncio.wait_for(process.wait_exit(), 10) == -signal.SIGKILL
    assert group_members(process.group) == ()


async def test_only_our_own_groups_listener_counts(tmp_path: Path) -> None:
    process = python(LISTENER, tmp_path)
    process.start()
    await until_logged(process)
    assert process.listens(int(process.tail().split()[1]))
    assert not process.listens(free_port())
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        assert not process.listens(somebody.getsockname()[1])
    await process.stop()


async def test_grandchildren_end_with_it(tmp_path: Path) -> None:
    process = python(WITH_CHILD, tmp_path)
    process.start()
    await until_logged(process, lines=2)
    assert len(group_members(process.group)) == 4  # lifeline, its second watch, the command and its child
    await process.stop()
    assert group_members(process.group) == ()


async def test_grandchildren_end_when_the_lifeline_itself_is_killed(tmp_path: Path) -> None:
    process = python(WITH_CHILD, tmp_path)
    process.start()
    await until_logged(process, lines=2)
    os.kill(process.group, signal.SIGKILL)
    assert await process.wait_exit() == -signal.SIGKILL
    assert group_members(process.group) == ()


async def test_death_while_starting_names_the_code_and_quotes_the_log(tmp_path: Path) -> None:
    process = python("import sys; print('no weights here'); sys.exit(3)", tmp_path)
    process.start()
    with pytest.raises(EngineDown) as caught:
        await process.wait_ready(never, 20)
    assert caught.value.detail == "no weights here"
    assert "exit code 3" in caught.value.message
    assert "no weights" not in caught.value.message


async def test_a_missed_deadline_is_an_engine_down(tmp_path: Path) -> None:
    process = python(SLEEPER, tmp_path)
    process.start()
    with pytest.raises(EngineDown, match="did not answer within 0 s"):
        await process.wait_ready(never, 0.1, poll_s=0.01)
    await process.stop()


async def test_a_command_that_is_not_there_is_an_engine_down(tmp_path: Path) -> None:
    process = ServerProcess((str(tmp_path / "no-python"),), {}, tmp_path / "log", name="it")
    process.start()
    with pytest.raises(EngineDown, match=r"exit code 127\)(.|\n)*no-python"):
        await process.wait_ready(never, 20)


async def test_exit_callbacks_get_the_code(tmp_path: Path) -> None:
    codes: list[int] = []
    process = python("raise SystemExit(7)", tmp_path)
    process.on_exit(codes.append)
    process.start()
    assert await process.wait_exit() == 7
    assert codes == [7]


def test_the_log_of_an_earlier_run_and_noise_are_not_quoted(tmp_path: Path) -> None:
    import re

    log = tmp_path / "log"
    log.write_text("old\nnew\nnoise: leaked\n")
    assert log_tail(log, re.compile("^noise"), start=4) == "new"
    assert log_tail(tmp_path / "none") == "(no log was written)"


def test_ports_and_tokens_are_fresh() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert len(new_token()) >= 43
    assert 1024 < free_port() < 65536


async def never() -> bool:
    return False
