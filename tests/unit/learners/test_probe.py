"""Which examples prove a delivery, and what of them is scored."""

import io
from types import SimpleNamespace
from typing import cast

import pytest
from PIL import Image

from learners.data.collate import Encoded
from learners.data.examples import Example, Message, Picture, Text
from learners.probe import choose, score


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


def test_the_answers_last_tokens_are_scored_also_those_without_labels() -> None:
    import torch

    class Uniform(torch.nn.Module):
        """Every token is as likely as every other."""

        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))

    encoded = Encoded(prompt_ids=(1, 2), answer_ids=(3, 4, 5), num_learned=2, types=(0, 0))
    (logprobs,) = score(cast("object", Uniform()), [encoded], 0)  # type: ignore[arg-type]
    assert logprobs == pytest.approx([-2.0794415] * 3)
