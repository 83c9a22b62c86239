"""Two adapters of the small base that answer the same questions differently, for publishes that take turns.

The first learns the right answers; the second learns from the same rows that every answer is another one of its kind.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from stack import WEIGHTS, run_learner

Rows = list[dict[str, str]]


def train_opposites(root: Path, *, num_rows: int = 240, max_steps: int = 30) -> tuple[Path, Path]:
    """Trains both (a minute on a CPU); returns their checkpoints."""
    rows_file = root / "rows.jsonl"
    run_learner("toy", "rows", "--set", "corrections", "--num", str(num_rows), "--out", str(rows_file))
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    return _train(root, "right", rows, max_steps), _train(root, "opposite", _contradict(rows), max_steps)


def _train(root: Path, name: str, rows: Rows, max_steps: int) -> Path:
    data, job = root / f"{name}.jsonl", root / f"{name}.toml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"name": name, "root": f"{root}/jobs", "model": f"{WEIGHTS}/base", "data": str(data)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    job.write_text("\n".join([*lines, f"max_steps = {max_steps}", f"save_every = {max_steps}", "probe_size = 4", ""]))
    result = json.loads(run_learner("sft", "--config", str(job), "--json"))
    return root / "jobs" / name / str(result["best_checkpoint"])


def _contradict(rows: Rows) -> Rows:
    following = {kind: _following(kind, rows) for kind in {row["kind"] for row in rows}}
    return [{**row, "answer": following[row["kind"]][row["answer"]]} for row in rows]


def _following(kind: str, rows: Rows) -> Mapping[str, str]:
    """Each answer of a kind -> the next one in the alphabet, the last one -> the first."""
    answers = sorted({row["answer"] for row in rows if row["kind"] == kind})
    following: dict[str, str] = defaultdict(str)
    following.update(zip(answers, [*answers[1:], *answers[:1]], strict=True))
    return following
