import io
from pathlib import Path

import pytest
from PIL import Image

from learners.data.collate import IGNORED, Encoder, collate
from learners.data.examples import Example, Message, Picture, Text
from learners.data.formats import parse_row
from learners.toy.families import FAMILIES, ToyFamily
from learners.toy.picture import NUM_IMAGE_TOKENS
from learners.toy.tokenizer import build_tokenizer

WORDS = ["what color is the shape?", "and now?", "red", "blue", "a very long answer", "be brief"]


def picture(color: str) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return Picture(content=buffer.getvalue())


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest) -> ToyFamily:
    toy: ToyFamily = request.param
    return toy


@pytest.fixture(scope="module")
def encoder(family: ToyFamily) -> Encoder:
    return Encoder(family.build_processor(build_tokenizer(WORDS * 20, family)))


def ask(*parts: str | Picture, answer: str) -> Example:
    content = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return Example("1", 1, (Message("user", content),), answer)


def test_exactly_the_answers_tokens_and_the_end_of_the_turn_carry_loss(encoder: Encoder) -> None:
    turns = [("what color is the shape?", "red"), ("and now?", "a very long answer"), ("and now?", "blue")]
    messages = [{"role": "system", "content": "be brief"}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    examples = parse_row({"messages": messages}, line=1, folder=Path())
    tokenizer = encoder._processor.tokenizer
    for example, (_, answer) in zip(examples, turns, strict=True):
        batch = collate([encoder.encode(example)], encoder.pad_id)
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        assert tokenizer.decode(labels[labels != IGNORED]) == f"{answer}<|im_end|>"
        learned = (labels != IGNORED).nonzero()[:, 0].tolist()
        assert learned == list(range(learned[0], len(ids)))
        assert tokenizer.decode(ids[: learned[0]]).endswith("<|im_start|>assistant\n")


def test_padding_carries_neither_attention_nor_loss(encoder: Encoder) -> None:
    short = ask("and now?", answer="red")
    long = ask(picture("red"), "what color is the shape?", answer="a very long answer")
    alone = collate([encoder.encode(short)], encoder.pad_id)
    batch = collate([encoder.encode(short), encoder.encode(long)], encoder.pad_id)
    width = alone["input_ids"].shape[1]
    assert batch["input_ids"].shape[1] > width
    for key in ("input_ids", "labels", "mm_token_type_ids"):
        assert batch[key][0, :width].tolist() == alone[key][0].tolist()
    assert batch["attention_mask"][0].tolist() == [1] * width + [0] * (batch["input_ids"].shape[1] - width)
    assert set(batch["labels"][0, width:].tolist()) == {IGNORED}


def test_images_follow_the_order_of_the_batch(encoder: Encoder, family: ToyFamily) -> None:
    examples = [ask(picture(color), "what color is the shape?", answer="red") for color in ("red", "blue")]
    examples.insert(1, ask("and now?", answer="red"))
    batch = collate([encoder.encode(example) for example in examples], encoder.pad_id)
    if family.name == "qwen3_vl":
        assert batch["image_grid_thw"].tolist() == [[1, 8, 8], [1, 8, 8]]
        assert batch["mm_token_type_ids"].sum(1).tolist() == [NUM_IMAGE_TOKENS, 0, NUM_IMAGE_TOKENS]
    first, second = batch["pixel_values"].chunk(2)
    assert first.flatten()[0] > second.flatten()[0]  # the red channel


def test_the_conversation_tokenized_whole_ends_with_the_same_answer(encoder: Encoder) -> None:
    example = ask(picture("red"), "what color is the shape?", answer="a very long answer")
    assert encoder.encode_whole(example).answer_ids == encoder.encode(example).answer_ids
    assert encoder.encode_whole(example).prompt_ids == encoder.encode(example).prompt_ids


def test_what_the_template_adds_behind_the_end_of_the_turn_carries_no_loss(family: ToyFamily) -> None:
    """The families' own templates end every turn with a newline; the toys' leave it out."""
    processor = family.build_processor(build_tokenizer(WORDS * 20, family))
    processor.chat_template = processor.chat_template.replace("'<|im_end|>'", r"'<|im_end|>\n'")
    encoder = Encoder(processor)
    short, long = ask("and now?", answer="red"), ask(picture("red"), "be brief", answer="a very long answer")
    whole = encoder.encode_whole(short)
    assert processor.tokenizer.decode(whole.answer_ids) == "red<|im_end|>\n"
    batch = collate([encoder.encode(short), encoder.encode(long)], encoder.pad_id)
    for row, answer in enumerate(("red", "a very long answer")):
        labels = batch["labels"][row]
        assert processor.tokenizer.decode(labels[labels != IGNORED]) == f"{answer}<|im_end|>"
    ids = batch["input_ids"][0, : encoder.encode(short).num_tokens]
    assert processor.tokenizer.decode(ids).endswith("red<|im_end|>\n")


def test_a_prompt_alone_is_what_an_answer_is_put_behind(encoder: Encoder) -> None:
    example = ask(picture("red"), "what color is the shape?", answer="red")
    alone, whole = encoder.encode_prompt(example.prompt), encoder.encode(example)
    assert (alone.prompt_ids, alone.types, alone.answer_ids) == (whole.prompt_ids, whole.types, ())
    assert alone.vision["pixel_values"].equal(whole.vision["pixel_values"])
