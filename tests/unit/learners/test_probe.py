"""Which examples prove a delivery, and what of them is scored."""

import io

from PIL import Image

from learners.data.examples import Example, Message, Picture, Text
from learners.probe import choose


def picture(color: str) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return Picture(content=buffer.getvalue())


def example(line: int, *prompt: Message, answer: str = "red") -> Example:
    return Example(str(line), line, prompt, answer)


ASK = Message("user", (picture("red"), Text("what color?")))
SYSTEM = Message("system", (Text("be brief"),))
LATER = example(
    1, ASK, Message("assistant", (Text("red"),)), Message("user", (Text("and its shape?"),)), answer="round"
)
TWO_IMAGES = example(2, Message("user", (picture("red"), picture("blue"), Text("which one?"))), answer="the first")
WITH_SYSTEM = example(3, SYSTEM, ASK)
TEXT_ONLY = example(4, Message("user", (Text("hello"),)), answer="hi")


def test_only_single_questions_with_at_most_one_image_are_chosen() -> None:
    chosen = choose([LATER, TWO_IMAGES, WITH_SYSTEM, TEXT_ONLY], 4)
    assert [(item.id, item.answer) for item in chosen] == [("3", "red"), ("4", "hi")]
    assert [len(item.prompt) for item in chosen] == [1, 1]
    assert choose([LATER, TWO_IMAGES], 4) == ()
