"""A learner that is killed at any instants, and started again each time: the rows that it learns from do not change."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_grpo_loop import EVERY_ROW

from learners.events import consumed_rows, read_events
from learners.status import JobStatus

pytestmark = pytest.mark.timeout(300)
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8)))
NUM_KILLS = 3
ROOT = Path(__file__).resolve().parents[4]


class Loop:
    """Forks of `killed_loop.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, root: Path, instant: int | None = None) -> int:
        """The exit status of one start of the job in `root`, which ends at the instant if there is one."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"root": str(root), "instant": instant}) + "\n")
        self._process.stdin.flush()
        return int(self.hear())

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (ROOT, here, ROOT / "tests" / "support", ROOT / "tests" / "unit" / "engines")))
    with subprocess.Popen(
        [sys.executable, str(here / "killed_loop.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    ) as process:
        made = Loop(process)
        assert made.hear() == "ready"
        yield made
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def num_instants(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Of a run that nobody kills."""
    root = tmp_path_factory.mktemp("whole")
    assert loop.run(root) == 0
    assert rows_of(root) == EVERY_ROW
    return int((root / "instants").read_text())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_learner_killed_at_any_instants_learns_from_the_same_rows_each_once(
    loop: Loop, num_instants: int, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    ends = []
    while len(ends) < NUM_KILLS and 0 not in ends:
        ends.append(loop.run(tmp_path, chance.randint(1, num_instants)))
        rows = rows_of(tmp_path)
        assert len(set(rows)) == len(rows)
    assert ends[0] == -signal.SIGKILL
    assert set(ends) <= {-signal.SIGKILL, 0}, ends
    assert 0 in ends or loop.run(tmp_path) == 0
    assert rows_of(tmp_path) == EVERY_ROW
    events = list(read_events(events_of(tmp_path)))
    assert events[-1].type == JobStatus.SUCCEEDED
    names = [event.data["version"] for event in events if event.type == "push"]
    assert len(set(names)) == len(names)


def events_of(root: Path) -> Path:
    return root / "job" / "events.jsonl"


def rows_of(root: Path) -> list[str]:
    return sorted(consumed_rows(events_of(root)))
