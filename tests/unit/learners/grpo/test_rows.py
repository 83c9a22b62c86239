"""How samples of one prompt share a row, and what each token of it sees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learners.data.collate import Encoded
from learners.grpo.batch import Batch, Sample
from learners.grpo.rows import collate_samples, micro_batches, rows_of

GROUPS = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=5)), min_size=1)


def prompt(num_tokens: int) -> Encoded:
    return Encoded(tuple(range(100, 100 + num_tokens)), (), 0, (0,) * num_tokens)


def sample(prompt: Encoded, *ids: int, advantage: float = 0.0) -> Sample:
    return Sample("1", prompt, ids, (0.0,) * len(ids), advantage)


def samples_of_groups(groups: list[tuple[int, list[int]]]) -> list[Sample]:
    """Sampled ids count on, so that each is found again; the advantage is the sample's place."""
    samples: list[Sample] = []
    for num_prompt, lengths in groups:
        shared = prompt(num_prompt)
        for length in lengths:
            first = 1000 * (len(samples) + 1)
            samples.append(sample(shared, *range(first, first + length), advantage=float(len(samples))))
    return samples


@given(groups=GROUPS, max_tokens=st.integers(1, 200))
def test_batches_keep_every_sample_once_within_the_bound(groups: list[tuple[int, list[int]]], max_tokens: int) -> None:
    samples = samples_of_groups(groups)
    batches = micro_batches(samples, 0, max_tokens)
    assert sorted(a for batch in batches for a in batch.advantages.tolist()) == [float(i) for i in range(len(samples))]
    assert sum(int(batch.mask.sum()) for batch in batches) == sum(len(one.token_ids) for one in samples)
    for batch in batches:
        rows, width = batch.inputs["input_ids"].shape
        assert len(batch.rows) == 1 or rows * width <= max_tokens
    again = micro_batches(samples, 0, max_tokens)
    assert [b.advantages.tolist() for b in batches] == [b.advantages.tolist() for b in again]


@given(groups=GROUPS)
def test_each_sampled_token_is_predicted_where_the_one_before_it_stands(groups: list[tuple[int, list[int]]]) -> None:
    samples = samples_of_groups(groups)
    batch = collate_samples(samples, 0)
    for place, number in enumerate(batch.advantages.int().tolist()):
        one = samples[number]
        ids = batch.inputs["input_ids"][batch.rows[place]]
        behind = [one.prompt.prompt_ids[-1], *one.token_ids[:-1]]
        assert ids[batch.positions[place]][batch.sampled[place]].tolist() == behind
        assert batch.token_ids[place][batch.sampled[place]].tolist() == list(one.token_ids)


def test_a_row_ends_before_its_answers_are_longer_than_its_prompt() -> None:
    shared, other = prompt(5), prompt(5)
    samples = [sample(shared, 1, 2), sample(other, 3), sample(shared, 4, 5, 6), sample(shared, 7), sample(shared, 8)]
    rows = [[one.token_ids for one in row.samples] for row in rows_of(samples)]
    assert rows == [[(1, 2), (4, 5, 6)], [(7,), (8,)], [(3,)]]
    short = [[one.token_ids for one in row.samples] for row in rows_of(samples, max_tokens=8)]
    assert short == [[(1, 2)], [(4, 5, 6)], [(7,), (8,)], [(3,)]]


def seen(batch: Batch, place: int) -> list[int]:
    from learners.grpo.attention import attention_mask

    ids = batch.inputs["input_ids"][0]
    found: list[int] = ids[attention_mask(batch.segments)[0, 0, place]].tolist()
    return found


def test_an_answer_sees_its_prompt_and_itself_and_stands_right_behind_the_prompt() -> None:
    from learners.grpo.attention import position_ids

    shared = prompt(4)
    batch = collate_samples([sample(shared, 1, 2), sample(shared, 3, 4)], 0)
    assert batch.inputs["input_ids"].tolist() == [[100, 101, 102, 103, 1, 2, 3, 4]]
    assert seen(batch, 2) == [100, 101, 102]
    assert seen(batch, 5) == [100, 101, 102, 103, 1, 2]
    assert seen(batch, 7) == [100, 101, 102, 103, 3, 4]
    assert position_ids(object(), batch).tolist() == [[0, 1, 2, 3, 4, 5, 4, 5]]


def test_rows_of_one_answer_are_left_to_the_kernels_for_causal_attention() -> None:
    from learners.grpo.attention import attention_mask

    batch = collate_samples([sample(prompt(2), 1, 2), sample(prompt(1), 3)], 0)
    assert attention_mask(batch.segments).tolist() == [[True] * 4, [True, True, False, False]]
