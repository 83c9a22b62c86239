"""The built-in rewards: tables of examples, and what holds for any input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import BadRequest
from rollout.config import RewardConfig
from rollout.messages import Message, Text
from rollout.rewards.anls import levenshtein, similarity
from rollout.rewards.boxes import Box, iou
from rollout.rewards.combine import combine
from rollout.rewards.numeric import last_number
from rollout.rewards.registry import BUILT_IN, check_fields, check_rewards, make_rewards
from rollout.rewards.shape import repeated_share
from rollout.rewards.text import normalise
from rollout.rewards.wire import Job, to_frame, to_order
from rollout.types import FinishReason, Prompt, Trajectory, Turn

pytestmark = pytest.mark.timeout(30)
quick = settings(max_examples=25, deadline=None)


def said(text: str, *token_ids: int) -> Trajectory:
    logprobs = tuple(-0.5 for _ in token_ids)
    return Trajectory((Turn((), (1,), token_ids, logprobs, text, FinishReason.STOP),))


def row(**fields: Any) -> Prompt:
    return Prompt("r17", (Message("user", (Text("how many?"),)),), fields)


def value(name: str, text: str, answer: Any = None, num_tokens: int = 0, /, **options: Any) -> float:
    (reward,) = make_rewards((RewardConfig(name=name, options=options),))
    result = reward(row() if answer is None else row(answer=answer), said(text, *range(num_tokens)))
    assert isinstance(result, float)
    return result


@pytest.mark.parametrize(
    ("text", "answer", "options", "expected"),
    [
        ("circle", "circle", {}, 1),
        ("  a \n circle ", "a circle", {}, 1),
        (" circle", "circle", {"normalise_whitespace": False}, 0),
        ("Circle", "circle", {}, 0),
        ("CIRCLE", "circle", {"ignore_case": True}, 1),
        ("a circle", "circle", {}, 0),
        ("disc", ["circle", "disc"], {}, 1),
        ("7", 7, {}, 1),
        ("", "circle", {}, 0),
    ],
)
def test_exact_match(text: str, answer: Any, options: dict[str, Any], expected: float) -> None:
    assert value("exact_match", text, answer, **options) == expected


@pytest.mark.parametrize(
    ("text", "answer", "options", "expected"),
    [
        ("<answer>7</answer>", None, {"pattern": r"<answer>.*</answer>"}, 1),
        ("<answer>7", None, {"pattern": r"<answer>.*</answer>"}, 0),
        ("thus\nANSWER: 7", None, {"pattern": r"^answer: \d+$", "ignore_case": True}, 1),
        ("<a> Yes </a>", "Yes", {"pattern": r"<a>(.*?)</a>", "field": "answer"}, 1),
        ("<a>yes</a>", "Yes", {"pattern": r"<a>(.*?)</a>", "field": "answer"}, 0),
        ("<a>no</a><a>yes</a>", "yes", {"pattern": r"<a>(.*?)</a>", "field": "answer"}, 0),
        ("b", "yes", {"pattern": r"(a)?b", "field": "answer"}, 0),
    ],
)
def test_regex(text: str, answer: Any, options: dict[str, Any], expected: float) -> None:
    assert value("regex", text, answer, **options) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 of 4", 4),
        ("it costs 1,234,567.50 in all", 1234567.5),
        ("in 2019,2020", 2020),
        ("minus -7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("3-5", 5),
        ("1e3", 1000),
        ("-.5", -0.5),
        ("it is 12.", 12),
        ("none", None),
        ("1e999", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer", "options", "expected"),
    [
        ("42", 42, {}, 1),
        ("42", "42.0", {}, 1),
        ("1,000", "1000", {}, 1),
        ("43", 42, {}, 0),
        ("43", 42, {"absolute": 1}, 1),
        ("101", 100, {"relative": 0.01}, 1),
        ("101.1", 100, {"relative": 0.01}, 0),
        ("many", 42, {}, 0),
    ],
)
def test_numeric(text: str, answer: Any, options: dict[str, Any], expected: float) -> None:
    assert value("numeric", text, answer, **options) == expected


@given(st.floats(-1e12, 1e12, allow_nan=False))
@quick
def test_any_number_is_read_back_as_printed(number: float) -> None:
    assert last_number(f"so it is {number!r}.") == number
    assert last_number(f"{number:,.2f}") == pytest.approx(number, abs=0.0051)


@pytest.mark.parametrize(
    ("text", "answer", "options", "expected"),
    [
        ('{"shape": "disc"}', "disc", {"path": "shape"}, 1),
        ('```json\n{"shape": "disc"}\n```', "disc", {"path": "shape"}, 1),
        ('{"shape": "Disc"}', "disc", {"path": "shape"}, 0),
        ('{"shape": "Disc"}', "disc", {"path": "shape", "ignore_case": True}, 1),
        ('{"items": [{"n": 3}]}', 3, {"path": "items.0.n"}, 1),
        ('{"items": [{"n": 3.0}]}', 3, {"path": "items.0.n"}, 1),
        ('{"items": []}', 3, {"path": "items.0.n"}, 0),
        ("true", 1, {}, 0),
        ("[1, true]", [1, True], {}, 1),
        ("[1, 1]", [1, True], {}, 0),
        ("NaN", 1, {}, 0),
        ("disc", "disc", {}, 0),
        ("[" * 100_000, "disc", {}, 0),
    ],
)
def test_json_field(text: str, answer: Any, options: dict[str, Any], expected: float) -> None:
    assert value("json_field", text, answer, **options) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Total  Due", "total due", 1),
        ("totl due", "total due", 8 / 9),
        ("abcd", "abxy", 0),  # half of it is wrong, and below the threshold means less than half
        ("abcde", "abcxy", 0.6),
        ("anything long " * 100, "total", 0),
        ("cat", ["dog", "cats"], 0.75),
        ("", "", 1),
    ],
)
def test_anls(text: str, answer: Any, expected: float) -> None:
    assert value("anls", text, answer) == pytest.approx(expected)


@given(st.text("ab ", max_size=12), st.text("abB ", max_size=12), st.floats(0.01, 1))
@quick
def test_anls_is_one_just_for_equal_texts(a: str, b: str, threshold: float) -> None:
    result = value("anls", a, b, threshold=threshold)
    assert 0 <= result <= 1
    plain = [normalise(text, whitespace=True, ignore_case=True) for text in (a, b)]
    assert (result == 1) == (plain[0] == plain[1])
    assert result == similarity(plain[1], plain[0], threshold)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
@quick
def test_levenshtein_is_a_metric(a: str, b: str, c: str) -> None:
    assert levenshtein(a, b) == levenshtein(b, a)
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        (0, {"kind": "shorter", "tokens": 8}, 1),
        (2, {"kind": "shorter", "tokens": 8}, 0.75),
        (9, {"kind": "shorter", "tokens": 8}, 0),
        (8, {"kind": "at_most", "tokens": 8}, 1),
        (10, {"kind": "at_most", "tokens": 8, "slack": 4}, 0.5),
        (9, {"kind": "at_most", "tokens": 8, "slack": 0}, 0),
        (8, {"kind": "target", "tokens": 8, "slack": 0}, 1),
        (6, {"kind": "target", "tokens": 8}, 0.75),
        (10, {"kind": "target", "tokens": 8, "slack": 2}, 0),
    ],
)
def test_length(tokens: int, options: dict[str, Any], expected: float) -> None:
    assert value("length", "", None, tokens, **options) == expected


def test_length_counts_every_turn() -> None:
    (reward,) = make_rewards((RewardConfig(name="length", options={"kind": "shorter", "tokens": 8}),))
    assert reward(row(), Trajectory(said("a", 1, 2).turns + said("b", 3, 4).turns)) == 0.5


@pytest.mark.parametrize(
    ("token_ids", "ngram", "share"),
    [((), 2, 0), ((5,), 2, 0), ((1, 2, 3), 2, 0), ((1, 1, 1, 1), 2, 2 / 3), ((1, 2, 1, 2), 2, 1 / 3), ((7, 7), 1, 0.5)],
)
def test_repeated_share(token_ids: tuple[int, ...], ngram: int, share: float) -> None:
    assert repeated_share(token_ids, ngram) == pytest.approx(share)


def test_repetition_falls_to_nothing_at_its_bound() -> None:
    half = RewardConfig(name="repetition", options={"ngram": 1, "max_share": 0.5})
    (reward,) = make_rewards((half,))
    assert [reward(row(), said("", *ids)) for ids in ((1, 2, 3, 4), (1, 2, 3, 3), (1, 1, 1, 1))] == [1.0, 0.5, 0.0]
    assert reward(row(), Trajectory(())) == 1


@pytest.mark.parametrize(
    ("text", "answer", "options", "expected"),
    [
        ("[0, 0, 10, 10]", [0, 0, 10, 10], {}, 1),
        ("The dog is at [0, 0, 10, 5].", [0, 0, 10, 10], {}, 0.5),
        ("(5, 0, 15, 10)", [0, 0, 10, 10], {}, 1 / 3),
        ('[{"bbox_2d": [0, 0, 10, 10], "label": "dog"}]', [0, 0, 10, 10], {}, 1),
        ('```json\n{"boxes": [[0, 0, 1, 1], [2, 2, 3, 3]]}\n```', [[2, 2, 3, 3], [0, 0, 1, 1]], {}, 1),
        ("[0, 0, 1, 1]", [[0, 0, 1, 1], [2, 2, 3, 3]], {}, 0.5),
        ("[[0, 0, 1, 1], [2, 2, 3, 3]]", [0, 0, 1, 1], {}, 0.5),
        ("[[0, 0, 1, 1], [2, 2, 3, 3]]", [0, 0, 1, 1], {"penalise_extra": False}, 1),
        ("[10, 10, 0, 0]", [0, 0, 10, 10], {}, 0),
        ("[0, 0, 1e400, 10]", "[0, 0, 10, 10]", {}, 0),
        ("nowhere", [0, 0, 10, 10], {}, 0),
        ("[" * 500 + "]" * 500, [0, 0, 10, 10], {}, 0),
    ],
)
def test_box_iou(text: str, answer: Any, options: dict[str, Any], expected: float) -> None:
    assert value("box_iou", text, answer, **options) == pytest.approx(expected)


coordinates = st.floats(-1e6, 1e6, allow_nan=False)
boxes = st.builds(Box, coordinates, coordinates, coordinates, coordinates)


@given(boxes, boxes)
@quick
def test_iou_is_symmetric_and_a_share(a: Box, b: Box) -> None:
    assert iou(a, b) == iou(b, a)
    assert 0 <= iou(a, b) <= 1
    assert iou(a, a) == (1 if a.area > 0 else 0)


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(51, 99)] * 2), min_size=1, max_size=5), st.data())
@quick
def test_the_rows_own_boxes_in_any_order_are_worth_one(gold: list[tuple[int, ...]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(gold))
    assert value("box_iou", json.dumps(shuffled), gold) == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"judge"}))
@given(text=st.text(max_size=40) | st.text("[]{},0123456789. -\"'`jsonbx_2d:", max_size=40), tokens=st.integers(0, 30))
@quick
def test_every_reward_is_a_share_whatever_a_model_says(name: str, text: str, tokens: int) -> None:
    answer: Any = {"numeric": 3, "box_iou": [0, 0, 3, 3]}.get(name, "3")
    options: dict[str, Any] = {"regex": {"pattern": "(3)"}, "length": {"kind": "target", "tokens": 3}}.get(name, {})
    assert 0 <= value(name, text, answer, tokens, **options) <= 1


@pytest.mark.parametrize(
    ("name", "options", "param"),
    [
        ("exact_match", {"ignore_cas": True}, "rewards[1].options.ignore_cas"),
        ("exact_match", {"field": ""}, "rewards[1].options.field"),
        ("regex", {}, "rewards[1].options.pattern"),
        ("regex", {"pattern": "("}, "rewards[1].options.pattern"),
        ("regex", {"pattern": "a", "field": "answer"}, "rewards[1].options"),
        ("numeric", {"relative": -1}, "rewards[1].options.relative"),
        ("numeric", {"absolute": float("nan")}, "rewards[1].options.absolute"),
        ("anls", {"threshold": 0}, "rewards[1].options.threshold"),
        ("length", {"kind": "longer", "tokens": 3}, "rewards[1].options.kind"),
        ("repetition", {"ngram": 0}, "rewards[1].options.ngram"),
        ("judge", {"url": "host:8000", "model": "m"}, "rewards[1].options.url"),
        ("judge", {"url": "http://h/v1", "model": "m", "template": "grade {reponse}"}, "rewards[1].options.template"),
        ("judge", {"url": "http://h/v1", "model": "m", "template": "{response.x}"}, "rewards[1].options.template"),
        ("judge", {"url": "http://h/v1", "model": "m", "template": "{response!z:{x}}"}, "rewards[1].options.template"),
        ("judge", {"url": "http://h/v1", "model": "m", "template": "{response"}, "rewards[1].options.template"),
        ("judge", {"url": "http://h/v1", "model": "m", "template": "grade it"}, "rewards[1].options.template"),
        ("exakt_match", {}, "rewards[1].name"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_rewards((RewardConfig(name="anls"), RewardConfig(name=name, options=options)))
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("exact_match", None),
        ("exact_match", {"a": 1}),
        ("anls", []),
        ("numeric", "many"),
        ("numeric", True),
        ("json_field", None),
        ("box_iou", [3, 3, 1, 1]),
        ("box_iou", "here"),
    ],
)
def test_a_row_without_what_a_reward_reads_is_named(name: str, answer: Any) -> None:
    bad = row() if answer is None else row(answer=answer)
    good = row(answer=[0, 0, 1, 1] if name == "box_iou" else "3")
    check_fields((RewardConfig(name=name),), (good,))
    with pytest.raises(BadRequest, match=r"row 'r17'.*'answer'"):
        check_fields((RewardConfig(name=name),), (good, bad))
    (reward,) = make_rewards((RewardConfig(name=name),))
    with pytest.raises(BadRequest, match=r"row 'r17'.*'answer'"):
        reward(bad, said("3"))


def test_the_column_is_an_option() -> None:
    config = RewardConfig(name="exact_match", options={"field": "label"})
    check_fields((config,), (row(label="dog"),))
    with pytest.raises(BadRequest, match=r"'label'.*its columns: answer"):
        check_fields((config,), (row(answer="dog"),))


def test_a_reward_is_the_weighted_sum_and_parts_are_not_weighted() -> None:
    configs = (RewardConfig(name="anls", weight=2), RewardConfig(name="length", label="brief", weight=-0.5))
    score = combine(configs, {"anls": 0.75, "brief": 1.0})
    assert (score.total, dict(score.parts), score.is_vetoed) == (1.0, {"anls": 0.75, "brief": 1.0}, False)


def test_a_veto_replaces_the_sum_and_adds_nothing_where_it_does_not_hold() -> None:
    veto = RewardConfig(name="regex", veto=True, veto_reward=-1, weight=5)
    configs = (RewardConfig(name="anls"), veto, RewardConfig(name="x", veto=True, veto_reward=-2))
    assert combine(configs, {"anls": 1, "regex": 1, "x": 1}).total == 1
    for values, total in (
        ({"regex": 0.0, "x": 1.0}, -1),
        ({"regex": 1.0, "x": -3.0}, -2),
        ({"regex": 0.0, "x": 0.0}, -1),
    ):
        score = combine(configs, {"anls": 1.0, **values})
        assert (score.total, score.is_vetoed) == (total, True)
        assert score.parts == {"anls": 1.0, **values}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4), st.text(max_size=20))
@quick
def test_what_rewards_read_arrives_in_the_other_process(fields: dict[str, Any], text: str) -> None:
    prompt = Prompt("r1", (Message("user", (Text(text),)),), fields)
    job = to_order(to_frame(Job.of(3, prompt, said(text, 5, 6)))[4:])
    assert isinstance(job, Job)
    assert job.prompt == prompt
    assert (job.trajectory.text, job.trajectory.num_tokens) == (text, 2)
    assert job.trajectory.turns[0].finish is FinishReason.STOP
