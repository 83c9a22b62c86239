"""Corrections become rows that a learner reads, and nothing is lost on the way without being said."""

import hashlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engines.errors import BadRequest
from engines.types import VersionName
from gateway.config import TandemConfig, load_config
from gateway.datasets import build_corrections
from gateway.media import CheckedImage, ImageStore
from gateway.store import Store, open_store
from gateway.types import Feedback, FeedbackStatus, Interaction

TEAL = (0, 128, 128)
RED = (255, 0, 0)


@pytest.fixture
def config(tmp_path: Path) -> TandemConfig:
    return load_config(None, {"data": str(tmp_path / "data")})


def test_a_correction_becomes_a_row_that_a_learner_reads(config: TandemConfig, tmp_path: Path) -> None:
    from learners.data.report import check

    sha256 = put_image(config, TEAL)
    store = open_store(config.store.url)
    ask(store, "1", [user(image(sha256), "which colour?")], (sha256,))
    correct(store, "a", "1", "teal")
    store.close()
    out = tmp_path / "set.jsonl"
    report = build_corrections(config, out)
    (row,) = rows(out)
    assert (row["text"], row["answer"], row["completion_id"], row["feedback_id"]) == ("which colour?", "teal", "1", "a")
    with Image.open(tmp_path / row["image"]) as picture:
        assert picture.getpixel((0, 0)) == TEAL
    assert (report.rows, report.images, report.superseded, report.left_out) == (1, 1, 0, 0)
    checked = check(out)
    assert (checked.num_examples, checked.num_rejected, checked.num_images) == (1, 0, 1)


def test_the_newest_correction_of_an_answer_wins(config: TandemConfig, tmp_path: Path) -> None:
    store = open_store(config.store.url)
    ask(store, "1", [user("which colour?")])
    for name, value in (("a", "cyan"), ("b", "teal")):
        correct(store, name, "1", value)
    store.close()
    report = build_corrections(config, tmp_path / "set.jsonl")
    assert [row["answer"] for row in rows(tmp_path / "set.jsonl")] == ["teal"]
    assert (report.rows, report.superseded) == (1, 1)


def test_other_signals_and_other_aliases_are_not_taken(config: TandemConfig, tmp_path: Path) -> None:
    store = open_store(config.store.url)
    ask(store, "1", [user("one?")])
    ask(store, "2", [user("two?")], alias="other")
    correct(store, "a", "1", "teal")
    correct(store, "b", "2", "red")
    correct(store, "d", "2", "teal")
    store.feedback.add_all([make_feedback("c", "1", "rating", 0.5)])
    store.close()
    report = build_corrections(config, tmp_path / "set.jsonl", alias="vqa")
    assert [row["text"] for row in rows(tmp_path / "set.jsonl")] == ["one?"]
    assert report.superseded == 0
    assert build_corrections(config, tmp_path / "other.jsonl", alias="other").superseded == 1


def test_another_shape_keeps_its_order_as_messages(config: TandemConfig, tmp_path: Path) -> None:
    from learners.data.report import check

    teal, red = put_image(config, TEAL), put_image(config, RED)
    store = open_store(config.store.url)
    messages = [{"role": "system", "content": "be brief"}, user("compare", image(teal), "with", image(red))]
    ask(store, "1", messages, (teal, red))
    correct(store, "a", "1", "darker")
    store.close()
    out = tmp_path / "set.jsonl"
    build_corrections(config, out)
    (row,) = rows(out)
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert [part["type"] for part in row["messages"][1]["content"]] == ["text", "image", "text", "image"]
    checked = check(out)
    assert (checked.num_examples, checked.num_rejected, checked.num_images) == (1, 0, 2)


def test_what_is_left_out_is_counted_and_named_with_its_reason(config: TandemConfig, tmp_path: Path) -> None:
    store = open_store(config.store.url)
    ask(store, "1", [user("a"), {"role": "assistant", "content": "b"}, user("c")])
    gone = hashlib.sha256(b"gone").hexdigest()
    ask(store, "2", [user(image(gone), "d")], (gone,))
    ask(store, "3", [user("e")])
    ask(store, "4", [user({"type": "refusal", "refusal": "no"}, "f")])
    ask(store, "5", [{"role": "user", "content": None}])
    for name in ("1", "2", "3", "4", "5"):
        correct(store, f"f{name}", name, "x")
    store.close()
    report = build_corrections(config, tmp_path / "set.jsonl")
    assert (report.rows, report.left_out, sum(report.reasons.values())) == (1, 4, 4)
    assert report.rejected_file == str(tmp_path / "set.rejected.jsonl")
    rejected = rows(tmp_path / "set.rejected.jsonl")
    assert {(row["completion_id"], row["feedback_id"], row["reason"].split(":")[0]) for row in rejected} == {
        ("1", "f1", "a conversation of several turns"),
        ("2", "f2", "an image is not in the media store any more"),
        ("4", "f4", "parts that no learner reads"),
        ("5", "f5", "a message without content"),
    }


def test_a_whole_set_leaves_no_file_of_rejected_rows(config: TandemConfig, tmp_path: Path) -> None:
    (tmp_path / "set.rejected.jsonl").write_text("of an earlier set")
    store = open_store(config.store.url)
    ask(store, "1", [user("e")])
    correct(store, "f", "1", "x")
    store.close()
    assert build_corrections(config, tmp_path / "set.jsonl").rejected_file is None
    assert not (tmp_path / "set.rejected.jsonl").exists()


def test_without_corrections_the_next_step_is_said(config: TandemConfig, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="tandem feedback"):
        build_corrections(config, tmp_path / "set.jsonl")
    assert not (tmp_path / "set.jsonl").exists()


def put_image(config: TandemConfig, colour: tuple[int, int, int]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    ImageStore(config.store.media).put(CheckedImage(sha256, buffer.getvalue()))
    return sha256


def image(sha256: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"sha256:{sha256}"}}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def ask(store: Store, name: str, messages: list[Any], images: tuple[str, ...] = (), alias: str = "vqa") -> None:
    row = Interaction(
        id=name,
        created=datetime.now(UTC),
        alias=alias,
        version=VersionName("small", 0),
        replica="small/0",
        request=json.dumps({"model": alias, "messages": messages}),
        answer="cyan",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        ttft_ms=1.0,
        latency_ms=1.0,
        status=200,
        stream=False,
        images=images,
    )
    store.interactions.add_all([row])


def correct(store: Store, name: str, completion_id: str, value: str) -> None:
    store.feedback.add_all([make_feedback(name, completion_id, "correction", value)])


def make_feedback(name: str, completion_id: str, metric: str, value: object) -> Feedback:
    now = datetime.now(UTC)
    return Feedback(name, completion_id, metric, json.dumps(value), None, now, FeedbackStatus.ACCEPTED)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
