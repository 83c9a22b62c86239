"""The whole loop on the real small base, over workers and replicas that a test scripts: no engine, no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scripted_workers import ScriptedWorker, SilentWorker
from test_delivery import ScriptedReplica

import learners.toy
from engines.adapter import read_base
from engines.errors import DeadlineExceeded, Unavailable
from engines.types import LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from learners.cancel import CancelRequest
from learners.checkpoint import list_checkpoints
from learners.config import GrpoConfig, validate
from learners.data.prompts import parse_prompt
from learners.data.readers import read_rows
from learners.events import Event, consumed_rows, read_events
from learners.job import open_job
from learners.run import Run
from learners.schedule import build_schedule
from learners.status import JobStatus
from rollout.pump import PumpSnapshot
from rollout.types import FinishReason, Group, Score, Trajectory

if TYPE_CHECKING:
    from learners.data.collate import Encoder

BASE = Path(learners.toy.__file__).parent / "weights" / "base"
NUM_ROWS = 8


class HonestReplica(ScriptedReplica):
    """Its probe says what the learner said: the proof holds."""

    async def load(self, owner: str, name: VersionName, ttl_s: float) -> LoadedAdapter:
        loaded = await super().load(owner, name, ttl_s)
        return replace(loaded, modules=tuple(read_base(BASE).modules))

    async def probe(self, name: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        manifest = json.loads(next(f.data for f in list(self.copies.values())[-1].files if f.name == "manifest.json"))
        key = "base_logprobs" if name.is_base else "adapter_logprobs"
        return tuple(ProbeScore(tuple(one["token_ids"]), tuple(one[key])) for one in manifest["probe"])


class Job:
    """One job directory, run in pieces."""

    def __init__(self, root: Path, **settings: Any) -> None:
        data = root / "rows.jsonl"
        data.write_text("".join(json.dumps({"text": f"is it {n}?", "answer": "yes"}) + "\n" for n in range(NUM_ROWS)))
        values = {
            **{"method": "grpo", "model": str(BASE), "data": str(data), "output": str(root / "job"), "rank": 8},
            **{"prompts_per_step": 2, "group_size": 3, "probe_size": 1, "save_every": 2, "max_staleness": 1},
            "rollout": {"engine": "small", "max_running": 4, "group_timeout_s": 10.0},
        }
        self.config = validate({**values, **settings}, GrpoConfig)
        self.request = CancelRequest()

    def run(self, worker: ScriptedWorker, *, stop_after: int | None = None) -> list[Event]:
        """As `learners.grpo.run` does, without engines; returns the events of this and earlier runs."""
        from learners.grpo import run as grpo_run

        request = self.request = CancelRequest()
        with open_job(self.config) as job, pytest.MonkeyPatch.context() as patch:
            patch.setattr("learners.grpo.opening.connect", lambda address: ())
            patch.setattr("learners.grpo.opening.open_replicas", _opened)
            patch.setattr("learners.grpo.opening.start_workers", lambda *_: (worker,))
            patch.setattr("learners.grpo.opening.check_slots", _nothing)
            run = Run(self.config, job)
            run.start()
            if stop_after is not None:
                write = job.events.write

                def write_and_stop(type: str, message: str, **data: Any) -> None:
                    write(type, message, **data)
                    request.is_requested |= type == "step" and data["step"] == stop_after

                patch.setattr(job.events, "write", write_and_stop)
            try:
                num_steps = grpo_run._run(run, request)
            except Exception as error:
                run.fail(error)
                raise
            is_whole = run.result.step == num_steps
            run.end(JobStatus.SUCCEEDED if is_whole else JobStatus.CANCELLED, "")
        return list(read_events(self.config.job_path / "events.jsonl"))


async def _opened(*_: object) -> tuple[HonestReplica, ...]:
    return (HonestReplica(0), HonestReplica(1))


async def _nothing(*_: object) -> None:
    return


def of(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event.type == kind]


def rows_of(job: Job) -> list[str]:
    return sorted(consumed_rows(job.config.job_path / "events.jsonl"))


EVERY_ROW = sorted(str(line) for line in range(1, NUM_ROWS + 1))


def test_every_row_is_learned_from_once_and_what_is_learned_is_delivered(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    made = job()
    worker = ScriptedWorker(encoder)
    events = made.run(worker)
    assert [event.data["step"] for event in of(events, "step")] == [1, 2, 3, 4]
    assert rows_of(made) == EVERY_ROW
    assert max(event.data["staleness_max"] for event in of(events, "step")) <= 1
    assert [event.data["version"] for event in of(events, "push")] == [f"grpo.1/step@{n}" for n in range(1, 6)]
    assert all(event.data["push_mismatch"] < 1e-6 for event in of(events, "push"))
    assert [path.name for path in sorted((made.config.job_path / "checkpoints").iterdir())] == ["step-2", "step-4"]


def test_without_staleness_each_step_learns_from_its_own_version_only(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    worker = ScriptedWorker(encoder)
    events = job(max_staleness=0).run(worker)
    assert {event.data["staleness_max"] for event in of(events, "step")} == {0}
    assert [version.number for version in worker.asked] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_resumed_job_uses_every_row_once_and_no_versions_name_twice(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    made = job()
    made.run(ScriptedWorker(encoder), stop_after=1)
    events = made.run(ScriptedWorker(encoder))
    assert [event.data["step"] for event in of(events, "step")] == [1, 2, 3, 4]
    assert rows_of(made) == EVERY_ROW
    names = [event.data["version"] for event in of(events, "push")]
    assert len(set(names)) == len(names)
    assert names[-1] == "grpo.2/step@5"


def test_constant_rewards_are_named_and_change_nothing(job: Callable[..., Job], encoder: Encoder) -> None:
    def flatten(group: Group) -> Group:
        return replace(group, scores=tuple(Score(0.5, {"exact_match": 0.5}) for _ in group.scores))

    events = job(max_steps=1).run(ScriptedWorker(encoder, flatten))
    assert [event.message for event in of(events, "flat")] == [
        "every group of step 1 was rewarded alike: there is nothing to learn from; are the rewards constant?"
    ]
    assert [event.message for event in of(events, "skipped")] == [
        "step 1 changed nothing: no answer was better than its group"
    ]


def test_answers_that_were_all_cut_off_are_named(job: Callable[..., Job], encoder: Encoder) -> None:
    def cut(group: Group) -> Group:
        turns = [replace(trajectory.turns[0], finish=FinishReason.LENGTH) for trajectory in group.trajectories]
        return replace(group, trajectories=tuple(Trajectory((turn,)) for turn in turns))

    events = job(max_steps=1).run(ScriptedWorker(encoder, cut))
    assert len(of(events, "truncated")) == 1


def test_groups_that_come_to_nothing_are_sampled_again_and_named(job: Callable[..., Job], encoder: Encoder) -> None:
    first = iter((True,))

    def lose(group: Group) -> Group:
        if not next(first, False):
            return group
        return replace(group, trajectories=(), scores=(), num_lost=3, losses=("the reward is NaN",) * 3)

    made = job()
    events = made.run(ScriptedWorker(encoder, lose))
    assert rows_of(made) == EVERY_ROW
    (dropped,) = of(events, "dropped")
    assert "the reward is NaN" in dropped.message


def test_another_versions_answers_are_never_learned_from(job: Callable[..., Job], encoder: Encoder) -> None:
    first = iter((True,))

    def mistake(group: Group) -> Group:
        return replace(group, version=VersionName("other.1/step", 7)) if next(first, False) else group

    made = job()
    events = made.run(ScriptedWorker(encoder, mistake))
    assert rows_of(made) == EVERY_ROW
    assert "other.1/step@7" in of(events, "dropped")[0].message


def test_the_best_checkpoint_is_the_one_with_the_best_rewards(job: Callable[..., Job], encoder: Encoder) -> None:
    def worsen(group: Group) -> Group:
        late = group.version.number >= 2
        return replace(group, scores=tuple(Score(s.total - late, dict(s.parts)) for s in group.scores))

    made = job(max_staleness=0)
    made.run(ScriptedWorker(encoder, worsen))
    result = json.loads((made.config.job_path / "result.json").read_text())
    assert result["best_checkpoint"] == "checkpoints/step-2"


def test_the_data_of_the_tests_is_read_as_prompts(tmp_path: Path, job: Callable[..., Job]) -> None:
    made = job()
    data = read_rows(Path(made.config.data), parse_prompt)
    schedule = build_schedule(len(data.examples), batch_size=2, epochs=None, max_steps=None, seed=0)
    assert (len(data.examples), schedule.num_steps) == (NUM_ROWS, 4)


def test_a_resumed_job_learns_from_the_groups_that_its_checkpoint_holds(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    from learners.grpo.state import load_state

    made = job()
    made.run(ScriptedWorker(encoder), stop_after=1)
    (checkpoint,) = list_checkpoints(made.config.job_path / "checkpoints")
    held = load_state(checkpoint.trainer_state, PumpSnapshot).snapshot.buffered
    rows = {buffered.group.prompt.id for buffered in held}
    learned = set(rows_of(made))
    assert rows
    again = ScriptedWorker(encoder)
    events = made.run(again)
    assert sorted(again.asked_rows) == sorted(set(EVERY_ROW) - rows - learned)
    assert rows <= set(of(events, "step")[1].data["rows"]) | set(of(events, "step")[2].data["rows"])
    assert max(event.data["staleness_max"] for event in of(events, "step")) <= 1


def test_a_run_that_waits_for_groups_ends_when_asked_with_a_checkpoint(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    made = job(max_staleness=0)

    def ask_to_end() -> None:
        made.request.is_requested = True

    events = made.run(SilentWorker(encoder, 2, ask_to_end))
    assert [event.type for event in events[-2:]] == ["checkpoint", "cancelled"]
    assert [path.step for path in list_checkpoints(made.config.job_path / "checkpoints")] == [1]
    assert rows_of(made) == sorted(of(events, "step")[0].data["rows"])
    made.run(ScriptedWorker(encoder))
    assert rows_of(made) == EVERY_ROW


def test_groups_that_never_come_end_the_run_which_says_what_is_missing(
    job: Callable[..., Job], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learners.grpo.rollouts.MARGIN_S", 0.0)
    monkeypatch.setattr("learners.grpo.rollouts.LOOK_EVERY_S", 0.1)
    rollout = {"engine": "small", "max_running": 4, "group_timeout_s": 0.1, "max_attempts": 1}
    made = job(rollout=rollout)
    with pytest.raises(DeadlineExceeded, match="4 are being sampled"):
        made.run(SilentWorker(encoder, 0))
    assert "4 are being sampled" in of(list(read_events(made.config.job_path / "events.jsonl")), "failed")[0].message


def test_a_run_in_which_nothing_could_be_scored_fails_and_says_why(job: Callable[..., Job], encoder: Encoder) -> None:
    def lose(group: Group) -> Group:
        return replace(group, trajectories=(), scores=(), num_lost=3, losses=("the reward is NaN",) * 3)

    rollout = {"engine": "small", "max_running": NUM_ROWS, "max_attempts": 1}
    made = job(rollout=rollout, prompts_per_step=NUM_ROWS)
    with pytest.raises(Unavailable, match="the reward is NaN"):
        made.run(ScriptedWorker(encoder, lose))
    events = list(read_events(made.config.job_path / "events.jsonl"))
    assert len(of(events, "dropped")[0].data["reasons"]) == NUM_ROWS
    assert rows_of(made) == []


def test_a_group_that_lost_a_member_is_learned_from_and_the_loss_is_counted(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    def lose_one(group: Group) -> Group:
        kept = replace(group, trajectories=group.trajectories[:2], scores=group.scores[:2])
        return replace(kept, num_lost=1, losses=("the reward is NaN",))

    events = job(max_steps=1).run(ScriptedWorker(encoder, lose_one))
    assert of(events, "step")[0].data["lost"] == 2
    assert of(events, "step")[0].data["dropped"] == 0


def test_a_run_ends_early_when_its_evaluations_get_no_better(
    job: Callable[..., Job], encoder: Encoder, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"text": "is it new?", "answer": "yes"}) + "\n")
    made = job(eval_data=str(held_out), early_stop_evals=1, save_every=1)
    worker = ScriptedWorker(encoder)
    events = made.run(worker)
    assert [event.data["is_best"] for event in of(events, "checkpoint")] == [True, False]
    assert [event.data["reward"] for event in of(events, "evaluation")] == [1.0, 1.0]
    assert worker.asked_to_evaluate == [VersionName("grpo.1/step", 1), VersionName("grpo.1/step", 2)]
    result = json.loads((made.config.job_path / "result.json").read_text())
    assert (result["status"], result["step"], result["best_checkpoint"]) == ("succeeded", 1, "checkpoints/step-0")


@pytest.mark.parametrize(("better", "best"), [(None, 0), (1, 0), (4, 3)])
def test_the_best_checkpoint_is_what_the_run_began_with_until_an_evaluation_is_better(
    job: Callable[..., Job], encoder: Encoder, tmp_path: Path, better: int | None, best: int
) -> None:
    """`better`: the number of the only version whose answers are rewarded more than those of the others."""

    def reward(group: Group) -> Group:
        is_better = group.version == VersionName("grpo.1/step", better or 0)
        return replace(group, scores=tuple(Score(s.total + is_better, dict(s.parts)) for s in group.scores))

    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"text": "is it new?", "answer": "yes"}) + "\n")
    made = job(eval_data=str(held_out), save_every=1)
    made.run(ScriptedWorker(encoder, reward))
    result = json.loads((made.config.job_path / "result.json").read_text())
    assert (result["step"], result["best_checkpoint"]) == (4, f"checkpoints/step-{best}")


@pytest.mark.parametrize(("best", "named"), [(1, 1), (2, 1)])
def test_a_resumed_run_knows_the_best_checkpoint(
    job: Callable[..., Job], encoder: Encoder, best: int, named: int
) -> None:
    """The best one may be older than the newest, or newer than what a run that was killed wrote into its result."""

    def worsen(group: Group) -> Group:
        is_best = group.version == VersionName("grpo.1/step", best)
        return replace(group, scores=tuple(Score(s.total - (not is_best), dict(s.parts)) for s in group.scores))

    made = job(max_staleness=0, save_every=1)
    result = made.config.job_path / "result.json"
    made.run(ScriptedWorker(encoder, worsen), stop_after=2)
    written = json.loads(result.read_text())
    assert written["best_checkpoint"] == f"checkpoints/step-{best}"
    result.write_text(json.dumps({**written, "status": "running", "best_checkpoint": f"checkpoints/step-{named}"}))
    made.run(ScriptedWorker(encoder, worsen))
    assert json.loads(result.read_text())["best_checkpoint"] == f"checkpoints/step-{best}"


def test_patience_goes_on_over_a_resume(job: Callable[..., Job], encoder: Encoder, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"text": "is it new?", "answer": "yes"}) + "\n")
    made = job(eval_data=str(held_out), early_stop_evals=2, save_every=1)
    made.run(ScriptedWorker(encoder), stop_after=1)
    events = made.run(ScriptedWorker(encoder))
    assert [event.data["step"] for event in of(events, "step")] == [1, 2]
    assert [event.data["step"] for event in of(events, "evaluation")] == [0, 1, 2]
