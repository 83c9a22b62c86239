"""A job's curves are what its events say, without what a resume took back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from engines.errors import BadRequest
from gateway.curves import MAX_OTHERS, Curve, Curves, curves_of
from gateway.curves_picture import check_picture, draw_curves
from gateway.jobs import JobEvent


def event(kind: str, message: str = "", **data: Any) -> JobEvent:
    return JobEvent(time="t", level="info", type=kind, message=message, data=data)


def by_name(curves: Curves) -> dict[str, Curve]:
    return {curve.name: curve for curve in curves.curves}


def test_each_number_of_a_step_is_a_curve_and_nothing_else_is() -> None:
    rows, parts = ["a", "b"], {"exact_match": 0.5}
    curves = curves_of([event("step", step=1, reward=0.5, rows=rows, parts=parts, flag=True), event("push", kl=1.0)])
    assert by_name(curves) == {
        "reward": Curve("reward", (1,), (0.5,)),
        "reward.exact_match": Curve("reward.exact_match", (1,), (0.5,)),
    }


def test_steps_after_the_checkpoint_of_a_resume_are_replaced() -> None:
    steps = [event("step", step=step, loss=float(step)) for step in (1, 2, 3, 4)]
    again = [event("step", step=step, loss=10.0 * step) for step in (3, 4)]
    evaluations = [event("evaluation", step=2, reward=0.1), event("evaluation", step=4, reward=0.2)]
    curves = by_name(curves_of([*steps, *evaluations, event("resumed", step=2), *again]))
    assert curves["loss"] == Curve("loss", (1, 2, 3, 4), (1.0, 2.0, 30.0, 40.0))
    assert curves["eval.reward"] == Curve("eval.reward", (2,), (0.1,))


def test_a_metric_that_only_steps_taken_back_had_has_no_curve() -> None:
    assert curves_of([event("step", step=3, kl=0.1), event("resumed", step=2)]).curves == ()


def test_the_reward_comes_first_then_its_parts_then_what_is_known() -> None:
    data = {"other": 1, "loss": 1, "kl": 1, "parts": {"length": 1}, "reward": 1}
    events = [event("step", step=1, **data), event("evaluation", step=1, reward=1.0)]
    names = [curve.name for curve in curves_of(events).curves]
    assert names == ["reward", "reward.length", "eval.reward", "kl", "loss", "other"]


def test_unknown_metrics_are_drawn_up_to_a_bound_and_the_rest_is_counted() -> None:
    data = {f"metric_{number}": 1.0 for number in range(MAX_OTHERS + 3)}
    curves = curves_of([event("step", step=1, loss=1.0, **data)])
    assert (len(curves.curves), curves.num_left_out) == (MAX_OTHERS + 1, 3)


def test_the_newest_line_on_what_binds_the_run_is_kept() -> None:
    assert curves_of([event("bound", "by the learner"), event("bound", "by rollout")]).bound == "by rollout"
    assert curves_of([]).bound == ""


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_has_a_panel_for_each_curve(tmp_path: Path, ending: str) -> None:
    steps = [event("step", step=step, reward=step / 9, kl=math.nan, loss=1.0) for step in range(1, 10)]
    file = tmp_path / f"curves.{ending}"
    draw_curves(curves_of([*steps, event("bound", "by the learner")]), "sharper: running", file)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert file.read_bytes().startswith(start)


@pytest.mark.parametrize(("name", "why"), [("curves.doc", "end it with"), ("none/curves.png", "there is no folder")])
def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        check_picture(tmp_path / name)


def test_an_event_as_a_learner_writes_it_is_read() -> None:
    line = json.dumps({"time": "t", "level": "info", "type": "step", "message": "", "data": {"step": 1, "loss": 2}})
    assert curves_of([JobEvent.model_validate_json(line)]).curves == (Curve("loss", (1,), (2.0,)),)
