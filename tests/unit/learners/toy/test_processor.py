"""The chat template and the tokenizer of the committed base."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import learners.toy
from learners.toy.build import toy_tokenizer
from learners.toy.processor import NUM_IMAGE_TOKENS, VOCABULARY, prompt_text

BASE = Path(learners.toy.__file__).parent / "weights" / "base"
IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(BASE)


def render(processor: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
    return str(processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_one_picture_and_a_question_render_as_the_model_was_trained(processor: Any) -> None:
    text = render(processor, [user(IMAGE, {"type": "text", "text": "is there a circle?"})])
    assert text == prompt_text("is there a circle?")


def test_string_content_equals_one_text_part(processor: Any) -> None:
    parts = render(processor, [user({"type": "text", "text": "hello"})])
    assert parts == render(processor, [{"role": "user", "content": "hello"}])
    assert parts == "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\n"


def test_several_turns_several_pictures_and_a_system_prompt(processor: Any) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        user(IMAGE, {"type": "image_url", "image_url": "data:"}, {"type": "text", "text": "which?"}),
        {"role": "assistant", "content": "both"},
        user({"type": "text", "text": "sure?"}),
    ]
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert render(processor, messages) == (
        "<|im_start|>system\nbe brief<|im_end|>"
        f"<|im_start|>user\n{picture}{picture}which?<|im_end|>"
        "<|im_start|>assistant\nboth<|im_end|>"
        "<|im_start|>user\nsure?<|im_end|><|im_start|>assistant\n"
    )


def test_a_prompt_is_a_prefix_of_the_conversation_with_its_answer(processor: Any) -> None:
    asked = [user(IMAGE, {"type": "text", "text": "is there a circle?"})]
    answered = [*asked, {"role": "assistant", "content": "yes"}]
    whole = render(processor, answered, add_generation_prompt=False)
    assert whole == render(processor, asked) + "yes<|im_end|>"


@pytest.mark.parametrize(("size", "num_tokens"), [((64, 64), 16), ((640, 640), 16), ((32, 32), 4)])
def test_image_tokens_by_size(processor: Any, size: tuple[int, int], num_tokens: int) -> None:
    message = user({"type": "image", "image": Image.new("RGB", size)}, {"type": "text", "text": "what?"})  # type: ignore[dict-item]
    ids = processor.apply_chat_template([message], tokenize=True, return_dict=True)["input_ids"][0]
    assert ids.count(processor.image_token_id) == num_tokens
    assert NUM_IMAGE_TOKENS == 16


def test_the_committed_tokenizer_is_what_the_command_trains(processor: Any) -> None:
    made = toy_tokenizer()
    assert made.get_vocab() == processor.tokenizer.get_vocab()
    assert len(made) == VOCABULARY
    assert VOCABULARY % 32 == 0
    text = "does the image not contain a rectangle? \u00e9\u4e2d"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
