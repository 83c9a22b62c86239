"""Rows as prompts: what is asked, and the columns that rewards read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import BadRequest
from learners.data.prompts import parse_prompt
from learners.data.readers import read_rows
from rollout.messages import Text


def parse(values: object) -> object:
    (prompt,) = parse_prompt(values, 7, Path())
    return prompt


def test_other_columns_are_kept_for_the_rewards() -> None:
    prompt = parse({"text": "how many?", "answer": 3, "boxes": [[0, 0, 1, 1]], "note": None})
    assert prompt.id == "7"
    assert prompt.fields == {"answer": 3, "boxes": [[0, 0, 1, 1]]}
    assert prompt.messages[0].parts == (Text("how many?"),)


def test_an_answer_is_not_needed() -> None:
    assert parse({"messages": [{"role": "user", "content": "say something short"}]}).fields == {}


def test_a_last_turn_of_the_assistant_is_the_answer() -> None:
    conversation = [{"role": "user", "content": "hue?"}, {"role": "assistant", "content": "teal"}]
    prompt = parse({"messages": conversation})
    assert prompt.fields == {"answer": "teal"}
    assert [message.role for message in prompt.messages] == ["user"]


def test_a_column_answer_stands_over_the_last_turn() -> None:
    conversation = [{"role": "user", "content": "hue?"}, {"role": "assistant", "content": "teal"}]
    assert parse({"messages": conversation, "answer": "cyan"}).fields == {"answer": "cyan"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "a row is an object"),
        ({"question": "?"}, "neither 'messages' nor 'text'"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "user and assistant must take turns"),
        ({"messages": [{"role": "system", "content": "be short"}]}, "user and assistant must take turns"),
        ({"text": "<image> what?"}, "more <image> tags"),
        ({"text": "look: <|image_pad|>"}, "contains <|image_pad|>"),
    ],
)
def test_a_bad_row_says_why(row: object, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        parse(row)


def test_a_file_of_prompts_is_read_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join([json.dumps({"text": "a"}), json.dumps({"image": "gone.png", "text": "b"}), ""]))
    data = read_rows(file, parse_prompt)
    assert [prompt.id for prompt in data.examples] == ["1"]
    assert [row.line for row in data.rejected] == [2]
