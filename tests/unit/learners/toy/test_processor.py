"""The chat templates and the tokenizers of the committed bases."""

from typing import Any

import pytest
from PIL import Image
from toys import TOYS

from engines.profiles import PROFILES
from learners.toy.build import toy_tokenizer
from learners.toy.families import FAMILIES, ToyFamily
from learners.toy.tokenizer import VOCABULARY

PICTURES = {"qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>\n"}
IMAGE = {"type": "image"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ToyFamily:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def processor(family: ToyFamily) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(TOYS[family.name].base)


def render(processor: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
    return str(processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_one_picture_and_a_question_render_as_the_model_was_trained(processor: Any, family: ToyFamily) -> None:
    text = render(processor, [user(IMAGE, {"type": "text", "text": "is there a circle?"})])
    assert text == family.prompt_text("is there a circle?")


def test_string_content_equals_one_text_part(processor: Any) -> None:
    parts = render(processor, [user({"type": "text", "text": "hello"})])
    assert parts == render(processor, [{"role": "user", "content": "hello"}])
    assert parts == "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\n"


def test_several_turns_several_pictures_and_a_system_prompt(processor: Any, family: ToyFamily) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        user(IMAGE, {"type": "image_url", "image_url": "data:"}, {"type": "text", "text": "which?"}),
        {"role": "assistant", "content": "both"},
        user({"type": "text", "text": "sure?"}),
    ]
    picture = PICTURES[family.name]
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


@pytest.mark.parametrize("size", [(64, 64), (640, 640), (32, 32)])
def test_image_tokens_by_size(processor: Any, family: ToyFamily, size: tuple[int, int]) -> None:
    """Qwen3-VL scales down to one grid; InternVL cuts into tiles and adds a thumbnail."""
    of_family = {"qwen3_vl": {64: 16, 640: 16, 32: 4}, "internvl": {64: 16, 640: (9 + 1) * 16, 32: 16}}
    num_tokens = of_family[family.name][size[0]]
    message = user({"type": "image", "image": Image.new("RGB", size)}, {"type": "text", "text": "what?"})  # type: ignore[dict-item]
    ids = processor.apply_chat_template([message], tokenize=True, return_dict=True)["input_ids"][0]
    assert ids.count(processor.image_token_id) == num_tokens


def test_a_prompt_is_expanded_as_the_processor_does(processor: Any, family: ToyFamily) -> None:
    prompt = family.prompt_text("is there a circle?")
    ids = processor(text=[prompt], images=[Image.new("RGB", (64, 64))])["input_ids"][0]
    assert processor.tokenizer(family.expanded(prompt))["input_ids"] == list(ids)


def test_no_vision_token_may_be_sampled(processor: Any, family: ToyFamily) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    assert processor.image_token_id in [vocabulary[t] for t in PROFILES[family.name].vision_tokens if t in vocabulary]


def test_the_committed_templates_are_the_familys(processor: Any, family: ToyFamily) -> None:
    toy = TOYS[family.name]
    written = family.build_processor(processor.tokenizer).chat_template
    assert {(base / "chat_template.jinja").read_text() for base in (toy.base, toy.fp8)} == {written}


def test_the_committed_tokenizer_is_what_the_command_trains(processor: Any, family: ToyFamily) -> None:
    made = toy_tokenizer(family)
    assert made.get_vocab() == processor.tokenizer.get_vocab()
    assert len(made) == VOCABULARY
    assert VOCABULARY % 32 == 0
    text = "does the image not contain a rectangle? \u00e9\u4e2d"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
