import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engines.errors import BadRequest
from learners.data.examples import Example, Picture, Text, to_data_url
from learners.data.formats import parse_row


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png("red"), png("blue")
ASK = {"role": "user", "content": "what color?"}
ANSWER = {"role": "assistant", "content": "red"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "blue.png").write_bytes(BLUE)
    return tmp_path


def shown(example: Example) -> list[list[str | bytes]]:
    """Per message: texts, and images as their bytes, in order."""
    return [[part.text if isinstance(part, Text) else part.read() for part in m.parts] for m in example.prompt]


@pytest.mark.parametrize(
    "image",
    [
        "red.png",
        to_data_url(RED),
        {"bytes": RED},
        {"bytes": base64.b64encode(RED).decode()},
        {"bytes": None, "path": "red.png"},
    ],
)
def test_each_form_of_an_image_is_the_same_image(folder: Path, image: Any) -> None:
    (example,) = parse_row({"image": image, "text": "what color?", "answer": "red"}, line=3, folder=folder)
    assert shown(example) == [[RED, "what color?"]]
    assert (example.id, example.line, example.answer) == ("3", 3, "red")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "<image>what color?"}, ANSWER], "images": ["red.png"]},
        {"messages": [ASK, ANSWER], "images": ["red.png"]},
        {"messages": [ASK, ANSWER], "image": "red.png"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "red.png"}},
                        {"type": "text", "text": "what color?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": to_data_url(RED)},
                        {"type": "text", "text": "what color?"},
                    ],
                },
                ANSWER,
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]},
                ANSWER,
            ],
            "images": ["red.png"],
            "interaction_id": "chatcmpl-1",
        },
    ],
)
def test_each_form_of_a_conversation_is_the_same_example(folder: Path, row: Any) -> None:
    (example,) = parse_row(row, line=1, folder=folder)
    assert shown(example) == [[RED, "what color?"]]
    assert example.answer == "red"


def test_tags_take_images_in_order_and_the_rest_go_first(folder: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "is <image> like <image>?"}, {"role": "assistant", "content": "no"}],
        "images": ["red.png", "blue.png", "red.png"],
    }
    (example,) = parse_row(row, line=1, folder=folder)
    assert shown(example) == [[RED, "is ", RED, " like ", BLUE, "?"]]


def test_a_row_may_have_no_image(folder: Path) -> None:
    (example,) = parse_row({"image": None, "text": "hello", "answer": "hi"}, line=1, folder=folder)
    assert shown(example) == [["hello"]]


def test_several_assistant_turns_become_an_example_each(folder: Path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "<image>color?"},
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": "<image>and this?"},
            {"role": "assistant", "content": "blue"},
        ],
        "images": ["red.png", "blue.png"],
    }
    first, second = parse_row(row, line=9, folder=folder)
    assert (first.id, first.answer, shown(first)) == ("9#1", "red", [["be brief"], [RED, "color?"]])
    assert (second.id, second.answer) == ("9#2", "blue")
    assert shown(second) == [["be brief"], [RED, "color?"], ["red"], [BLUE, "and this?"]]
    assert all(isinstance(image, Picture) for image in second.images)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "a row is an object, not list"),
        (
            {"question": "a", "answer": "b"},
            "neither 'messages' nor 'text' and 'answer' among its keys: question, answer; "
            'rows are {"image", "text", "answer"} or {"messages", "images"}',
        ),
        ({"text": "", "answer": "b"}, "text: "),
        ({"text": "a", "answer": ""}, "answer: "),
        ({"text": "a", "answer": 3}, "answer: "),
        ({"text": "a", "answer": "b", "image": "none.png"}, "no image file at"),
        ({"text": "a", "answer": "b", "image": base64.b64encode(RED * 20).decode()}, "no image file at"),
        ({"text": "a", "answer": "b", "image": "\0.png"}, "no image file at"),
        ({"text": "a", "answer": "b", "image": "https://x.org/a.png"}, "images are not fetched"),
        ({"text": "a", "answer": "b", "image": "data:image/png;base64,@@"}, "base64 text is broken"),
        ({"text": "a", "answer": "b", "image": "data:text/plain,x"}, "starts with data:image/png"),
        ({"text": "a", "answer": "b", "image": 7}, "an image is a path"),
        ({"text": "a", "answer": "b", "image": {"bytes": 7}}, "an image's bytes are bytes"),
        (
            {"text": "<image><image>a", "answer": "b", "image": "red.png"},
            "more <image> tags or image parts than images",
        ),
        ({"text": "a<|image_pad|>", "answer": "b"}, "contains <|image_pad|>"),
        ({"text": "a", "answer": "b<|im_end|>"}, "contains <|im_end|>"),
        ({"text": "a", "answer": "b", "videos": ["v.mp4"]}, "'videos': only text and images"),
        ({"messages": []}, "messages: "),
        ({"messages": [ASK, {"role": "tool", "content": "x"}]}, "messages.1.role: "),
        ({"messages": [ASK, ASK]}, "there is no assistant message"),
        ({"messages": [ANSWER, ASK]}, "must take turns"),
        ({"messages": [ASK, ANSWER, ASK]}, "must take turns"),
        ({"messages": [ASK, ANSWER, {"role": "system", "content": "x"}]}, "a system message must be the first"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, "an assistant message is empty"),
        ({"messages": [ASK, {"role": "assistant", "content": "<image>"}], "images": ["red.png"]}, "cannot show images"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, ANSWER]}, "messages.0.content"),
    ],
)
def test_a_bad_row_is_named_with_its_reason(folder: Path, row: Any, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_row(row, line=1, folder=folder)
    assert reason in caught.value.message
