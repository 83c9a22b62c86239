from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from scripted_engine import prompt

from engines.errors import BadRequest
from rollout.environments import load_environment, registry
from rollout.environments.retry import Retry
from rollout.environments.single_turn import SingleTurn
from rollout.messages import Message, Picture, Text
from rollout.types import Prompt


def answered(text: str, row: Prompt) -> tuple[Message, ...]:
    return (*row.messages, Message("assistant", (Text(text),)))


async def test_a_single_turn_is_the_rows_messages_and_no_reply() -> None:
    environment = load_environment("single_turn", {})
    assert isinstance(environment, SingleTurn)
    assert environment.start(prompt()) == prompt().messages
    assert await environment.reply(prompt(), answered("teal", prompt()), 1) is None


@pytest.mark.parametrize(("said", "ends"), [("teal", True), (" Teal\n", True), ("cyan", False), ("", False)])
async def test_retry_ends_with_the_right_answer(said: str, ends: bool) -> None:
    reply = await load_environment("retry", {}).reply(prompt(), answered(said, prompt()), 1)
    assert (reply is None) is ends


async def test_retry_takes_any_of_several_answers() -> None:
    row = prompt(answer=["teal", "cyan"])
    assert await Retry().reply(row, answered("cyan", row), 1) is None


async def test_retry_says_its_text_and_may_show_the_images_again() -> None:
    picture = Picture(content=b"\x89PNG")
    row = Prompt("row-7", (Message("user", (picture, Text("which colour?"))),), {"answer": "teal"})
    environment = load_environment("retry", {"text": "no", "repeat_images": True})
    assert await environment.reply(row, answered("cyan", row), 1) == (Message("user", (picture, Text("no"))),)


def test_retry_names_the_row_that_has_no_answer() -> None:
    with pytest.raises(BadRequest, match=r"row-7.*'label'"):
        Retry(field="label").start(prompt())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("retry", {"txet": "no"}, "txet"),
        ("retry", {"repeat_images": "perhaps"}, "repeat_images"),
        ("single_turn", {"text": "no"}, "text"),
    ],
)
def test_options_that_it_does_not_take_are_refused_by_name(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=f"'{name}'.*{words}") as caught:
        load_environment(name, options)
    assert caught.value.param == "rollout.environment_options"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"no 'chess'.*retry, single_turn.*tandem\.environments"):
        load_environment("chess", {})


def test_others_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "rollout.environments.retry:Retry", registry.GROUP)

    def entry_points(group: str) -> EntryPoints:
        return EntryPoints([point]).select(group=group)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert load_environment("mine", {"text": "again"}) == Retry(text="again")
    with pytest.raises(BadRequest, match="mine, retry, single_turn"):
        load_environment("chess", {})
