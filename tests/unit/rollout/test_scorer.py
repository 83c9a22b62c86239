"""The scorer: whatever a reward does in its process, the caller's loop goes on and every trajectory is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.errors import BadRequest, Unavailable
from rollout.config import RewardConfig
from rollout.messages import Message, Text
from rollout.rewards import Scorer, check_rewards
from rollout.rewards.registry import make_rewards
from rollout.types import FinishReason, Loss, Prompt, Score, Trajectory, Turn

pytestmark = pytest.mark.timeout(60)

OWN = '''
import asyncio, os, pathlib, re, sys, time

def obey(**options):
    """Does what the answer says, word for word."""
    def reward(prompt, trajectory):
        match trajectory.text.split():
            case ["block"]: time.sleep(3600)
            case ["spin"]:
                while True: pass
            case ["touch", path]:
                pathlib.Path(path).touch()
                time.sleep(3600)
            case ["die"]: os._exit(3)
            case ["exit"]: sys.exit(3)
            case ["raise"]: raise KeyError("no such thing")
            case ["nan"]: return float("nan")
            case ["text"]: return "1.0"
            case ["none"]: return None
            case ["print", words]: print(words)
            case ["where"]: return os.getpid()
        return prompt.fields.get("worth", 1)
    return reward

def obey_later(together="", **options):
    async def reward(prompt, trajectory):
        match trajectory.text.split():
            case ["later-block"]: time.sleep(3600)
            case ["later-wait"]: await asyncio.sleep(3600)
            case ["later-die"]: os._exit(3)
            case ["later-exit"]: sys.exit(3)
            case ["later-raise"]: raise KeyError("no such thing")
            case ["meet", name]:
                (pathlib.Path(together) / name).touch()
                while len(list(pathlib.Path(together).iterdir())) < 3: await asyncio.sleep(0.005)
        return 0.5
    return reward

class picky:
    def __init__(self, *, known): pass
    def __call__(self, prompt, trajectory): return 1

def wrong(**options): return 3
'''
ENTRY_POINTS = """[tandem.rewards]
obey = tandem_test_rewards:obey
obey_later = tandem_test_rewards:obey_later
picky = tandem_test_rewards:picky
wrong = tandem_test_rewards:wrong
gone = tandem_test_rewards:gone
"""


@pytest.fixture(autouse=True)
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with entry points, as far as anybody can see."""
    site = tmp_path / "site"
    info = site / "tandem_test_rewards-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "tandem_test_rewards.py").write_text(OWN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tandem-test-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))


@asynccontextmanager
async def scorer(*rewards: RewardConfig, timeout_s: float = 20.0) -> AsyncIterator[Scorer]:
    made = Scorer(rewards or (RewardConfig(name="obey"),), timeout_s)
    try:
        yield made
    finally:
        await made.close()


def said(text: str) -> Trajectory:
    return Trajectory((Turn((), (), (1, 2), (-0.1, -0.2), text, FinishReason.STOP),))


def row(**fields: Any) -> Prompt:
    return Prompt("r17", (Message("user", (Text("do"),)),), fields)


async def reasons(scorer: Scorer, *texts: str) -> list[float | str]:
    """The totals, or why there is none."""
    answers = await scorer.score(row(), [said(text) for text in texts])
    return [answer.total if isinstance(answer, Score) else answer.reason for answer in answers]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - another process makes it hold
            await asyncio.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_scores_come_in_order_with_weights_and_parts() -> None:
    configs = (RewardConfig(name="obey", weight=2), RewardConfig(name="obey_later", label="later"))
    async with scorer(*configs, RewardConfig(name="exact_match", veto=True, veto_reward=-1)) as it:
        scores = await it.score(row(worth=3, answer="good"), [said("good"), said("bad"), said("good")])
    good = Score(6.5, {"obey": 3.0, "later": 0.5, "exact_match": 1.0})
    assert scores == (good, Score(-1.0, {"obey": 3.0, "later": 0.5, "exact_match": 0.0}, is_vetoed=True), good)


async def test_a_reward_that_gives_no_number_costs_its_own_trajectory_and_no_process() -> None:
    plain, later = ("raise", "exit", "nan", "text", "none"), ("later-raise", "later-exit")
    async with scorer(RewardConfig(name="obey"), RewardConfig(name="obey_later")) as it:
        first, *bad, last = await reasons(it, f"print {'x' * 10_000}", *plain, *later, "ok")
        assert it.num_restarts == 0
    assert (first, last) == (1.5, 1.5)
    for name, why in zip(["obey"] * len(plain) + ["obey_later"] * len(later), bad, strict=True):
        assert isinstance(why, str)
        assert why.startswith(f"reward '{name}' of row 'r17': ")


async def test_one_that_ends_the_process_is_named_and_the_rest_is_computed() -> None:
    async with scorer() as it:
        died = "reward 'obey' of row 'r17': it ended the process that computes rewards"
        assert await reasons(it, "ok", "die", "ok") == [1, died, 1]
        assert it.num_restarts == 1


@pytest.mark.slow
async def test_an_async_one_that_ends_the_process_is_tried_in_another_and_given_up() -> None:
    async with scorer(RewardConfig(name="obey_later")) as it:
        assert await reasons(it, "later-die") == [
            "rewards of row 'r17': the process that computes rewards ended before it answered"
        ]
        assert await reasons(it, "ok") == [0.5]


@pytest.mark.parametrize("of", ["block", pytest.param("spin", marks=pytest.mark.slow)])
async def test_the_callers_loop_turns_while_a_reward_never_ends(of: str) -> None:
    async with scorer(timeout_s=0.5) as it:
        await it.start()
        scoring = asyncio.create_task(reasons(it, of))
        turns = 0
        while not scoring.done():  # were the loop blocked, it would turn but once
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100
        assert scoring.result() == ["reward 'obey' of row 'r17': did not end within 0.5 s; the process was killed"]


@pytest.mark.slow
async def test_one_that_never_ends_is_killed_and_the_rest_is_computed() -> None:
    async with scorer(RewardConfig(name="obey"), RewardConfig(name="obey_later"), timeout_s=1.0) as it:
        await it.start()
        waited, blocked, fine = await reasons(it, "later-wait", "block", "ok")
        assert waited == "reward 'obey_later' of row 'r17': did not end within 1 s"
        assert blocked == "reward 'obey' of row 'r17': did not end within 1 s; the process was killed"
        assert fine == 1.5


@pytest.mark.slow
async def test_an_async_reward_that_blocks_its_loop_is_killed() -> None:
    async with scorer(RewardConfig(name="obey_later"), timeout_s=0.2) as it:
        (late,) = await reasons(it, "later-block")
        assert late == "rewards of row 'r17': did not end within 0.2 s; the process was killed"
        assert await reasons(it, "ok") == [0.5]


@pytest.mark.slow
async def test_async_rewards_run_at_once(tmp_path: Path) -> None:
    together = tmp_path / "together"
    together.mkdir()
    async with scorer(RewardConfig(name="obey_later", options={"together": str(together)})) as it:
        assert await reasons(it, "meet a", "meet b", "meet c") == [0.5, 0.5, 0.5]  # each waits for the others


@pytest.mark.slow
async def test_a_cancelled_score_frees_the_process_for_others(tmp_path: Path) -> None:
    async with scorer() as it:
        scoring = asyncio.create_task(reasons(it, f"touch {tmp_path / 'there'}", "ok"))
        await until((tmp_path / "there").exists)
        others = asyncio.create_task(reasons(it, "ok"))
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring
        assert await others == [1]


async def test_closing_ends_the_process_and_answers_who_waits(tmp_path: Path) -> None:
    async with scorer() as it:
        (pid,) = await reasons(it, "where")
        assert isinstance(pid, float)
        assert is_running(int(pid))
        scoring = asyncio.create_task(reasons(it, f"touch {tmp_path / 'there'}", "ok"))
        await until((tmp_path / "there").exists)
        await it.close()
        await it.close()
        assert not is_running(int(pid))
        assert all(isinstance(answer, str) for answer in await scoring)
        with pytest.raises(Unavailable, match="closed"):
            await reasons(it, "ok")


@pytest.mark.slow
async def test_a_process_killed_while_idle_is_made_again() -> None:
    async with scorer() as it:
        (pid,) = await reasons(it, "where")
        assert isinstance(pid, float)
        os.kill(int(pid), signal.SIGKILL)
        assert await reasons(it, "ok") == [1]


@pytest.mark.slow
async def test_the_process_ends_with_its_parent_even_in_a_call(tmp_path: Path) -> None:
    code = f"""
import asyncio
from rollout.config import RewardConfig
from rollout.rewards import Scorer
from test_scorer import row, said
async def main():
    it = Scorer((RewardConfig(name="obey"),), 0.5)
    await it.start()
    print(it._child.pid, flush=True)
    it._timeout_s = 3600
    await it.score(row(), [said("touch {tmp_path / "there"}")])
asyncio.run(main())
"""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    parent = subprocess.Popen(  # noqa: ASYNC220
        (sys.executable, "-c", code), env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(await asyncio.to_thread(parent.stdout.readline))
    await until((tmp_path / "there").exists)
    parent.kill()
    parent.wait()
    await until(lambda: not is_running(pid))


async def test_the_process_starts_without_a_model_library() -> None:
    code = (
        "import rollout.rewards.child, sys; print({'torch', 'ray', 'vllm', 'transformers', 'aiohttp'} & {*sys.modules})"
    )
    found = await asyncio.to_thread(subprocess.run, (sys.executable, "-c", code), capture_output=True, check=True)
    assert found.stdout == b"set()\n"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("picky", r"rewards\[0\]\.options: .*known"),
        ("wrong", r"rewards\[0\]\.name: 'wrong' made a int"),
        ("gone", r"rewards\[0\]\.name: .*could not be loaded"),
    ],
)
def test_an_own_reward_that_cannot_be_made_is_a_bad_request(name: str, match: str) -> None:
    config = RewardConfig(name=name)
    check_rewards((config,))  # own ones are not loaded for this
    with pytest.raises(BadRequest, match=match):
        make_rewards((config,))


@pytest.mark.slow
async def test_functions_that_cannot_be_made_are_an_error_at_the_start_and_a_reason_later() -> None:
    async with scorer(RewardConfig(name="picky")) as it:
        with pytest.raises(BadRequest, match="known"):
            await it.start()
        (reason,) = await reasons(it, "ok")
        assert isinstance(reason, str)
        assert "rewards[0].options" in reason


def test_an_unknown_name_lists_own_rewards_besides_the_built_in() -> None:
    with pytest.raises(BadRequest, match=r"'ovey' is none of exact_match, .*judge, gone, obey, obey_later"):
        check_rewards((RewardConfig(name="ovey"),))


async def test_a_row_that_lacks_the_column_and_one_that_is_no_unicode_are_reasons() -> None:
    async with scorer(RewardConfig(name="exact_match")) as it:
        (lacks,) = await reasons(it, "ok")
        assert isinstance(lacks, str)
        assert "row 'r17' has no column 'answer'" in lacks
        (torn, fine) = await it.score(row(answer="ok"), [said("\ud800"), said("ok")])
        assert isinstance(torn, Loss)
        assert "cannot be sent" in torn.reason
        assert fine == Score(1.0, {"exact_match": 1.0})
