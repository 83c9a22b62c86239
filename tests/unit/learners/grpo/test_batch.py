"""How trajectories become sequences of tensors."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from engines.errors import EngineFault
from engines.types import VersionName
from learners.data.collate import Encoded, Encoder
from learners.grpo.batch import Batch, samples_of
from learners.grpo.rows import collate_samples
from learners.toy.families import FAMILIES, ToyFamily
from learners.toy.tokenizer import build_tokenizer
from rollout.messages import Message, Picture, Text
from rollout.types import FinishReason, Group, Prompt, Score, Trajectory, Turn

WORDS = ["what color is the shape?", "and now?", "red", "blue"]


class CountingEncoder(Encoder):
    """Counts what it encodes."""

    num_encoded = 0

    def encode_prompt(self, messages: tuple[Message, ...]) -> Encoded:  # type: ignore[override]
        self.num_encoded += 1
        return super().encode_prompt(messages)


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def encoder(request: pytest.FixtureRequest) -> CountingEncoder:
    family: ToyFamily = request.param
    return CountingEncoder(family.build_processor(build_tokenizer(WORDS * 20, family)))


def picture(color: str) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return Picture(content=buffer.getvalue())


def turn(
    encoder: Encoder, *parts: str | Picture, ids: tuple[int, ...], finish: FinishReason = FinishReason.STOP
) -> Turn:
    content = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    messages = (Message("user", content),)
    prompt_ids = Encoder.encode_prompt(encoder, messages).prompt_ids
    return Turn(messages, prompt_ids, ids, tuple(-0.1 * token for token in ids), "", finish)


def group(row: str, *trajectories: tuple[Turn, ...]) -> Group:
    prompt = Prompt(row, trajectories[0][0].messages)
    scores = tuple(Score(0.0, {}) for _ in trajectories)
    return Group(prompt, VersionName("job.1/step", 1), tuple(map(Trajectory, trajectories)), scores)


def test_each_turn_that_sampled_something_is_a_sequence_and_only_its_own_tokens_are_learned(encoder: Encoder) -> None:
    first, second = turn(encoder, "and now?", ids=(1, 2)), turn(encoder, picture("red"), "and now?", ids=(3, 4, 5))
    nothing = turn(encoder, "red", ids=(), finish=FinishReason.ABORT)
    samples = samples_of([group("7", (first, second), (nothing,))], [[0.5, -0.5]], encoder)
    assert [(sample.row, sample.token_ids, sample.advantage) for sample in samples] == [
        ("7", (1, 2), 0.5),
        ("7", (3, 4, 5), 0.5),
    ]
    batch = collate_samples(samples, encoder.pad_id)
    assert batch.sampled.tolist() == [[True, True, False], [True, True, True]]
    assert batch.mask.equal(batch.sampled)
    assert batch.advantages.tolist() == [0.5, 0.5]
    assert batch.rollout_logprobs[0].tolist() == pytest.approx([-0.1, -0.2, 0.0])
    next_ids = batch.inputs["input_ids"].gather(1, (batch.positions + 1).clamp(max=last_place(batch)))
    assert next_ids[batch.sampled].tolist() == [1, 2, 3, 4, 5]
    assert (batch.segments >= 0).sum(1).tolist() == [len(s.prompt.prompt_ids) + len(s.token_ids) for s in samples]
    assert batch.inputs["pixel_values"].equal(samples[1].prompt.vision["pixel_values"])


def last_place(batch: Batch) -> int:
    return batch.inputs["input_ids"].shape[1] - 1


def test_trajectories_that_were_cut_off_can_be_left_without_loss(encoder: Encoder) -> None:
    cut = turn(encoder, "and now?", ids=(1, 2), finish=FinishReason.LENGTH)
    whole = turn(encoder, "and now?", ids=(3,))
    groups = [group("1", (cut,), (whole,))]
    batch = collate_samples(samples_of(groups, [[1.0, -1.0]], encoder, mask_truncated=True), 0)
    assert batch.sampled.sum(1).tolist() == [2, 1]
    assert batch.mask.sum(1).tolist() == [0, 1]
    assert all(sample.carries_loss for sample in samples_of(groups, [[1.0, -1.0]], encoder))


def test_a_prompt_is_encoded_once_however_often_it_was_sampled_for(encoder: CountingEncoder) -> None:
    one, other = turn(encoder, picture("red"), "red", ids=(1,)), turn(encoder, picture("blue"), "red", ids=(2,))
    encoder.num_encoded = 0
    samples = samples_of([group("1", (one,), (one,), (one,)), group("2", (other,))], [[0.0] * 3, [0.0]], encoder)
    assert (len(samples), encoder.num_encoded) == (4, 2)


def test_a_prompt_that_the_engine_read_otherwise_is_named_with_the_place(encoder: Encoder) -> None:
    right = turn(encoder, "and now?", ids=(1,))
    changed = replace(right, prompt_ids=(*right.prompt_ids[:2], 299, *right.prompt_ids[3:]))
    shorter = replace(right, prompt_ids=right.prompt_ids[:-1])
    with pytest.raises(EngineFault, match=r"row 12: .* differ at token 2: engine .*299"):
        samples_of([group("12", (changed,))], [[0.0]], encoder)
    with pytest.raises(EngineFault, match=f"differ at token {len(shorter.prompt_ids)}:"):
        samples_of([group("12", (shorter,))], [[0.0]], encoder)


def test_a_sampled_token_that_stands_for_an_image_is_refused(encoder: Encoder) -> None:
    (pad,) = encoder.ids_of(["<|image_pad|>", "<IMG_CONTEXT>", "<|no such token|>"])
    with pytest.raises(EngineFault, match=f"row 3: the engine sampled token {pad}"):
        samples_of(
            [group("3", (turn(encoder, "red", ids=(1, pad)),))], [[0.0]], encoder, forbidden_ids=frozenset({pad})
        )
