"""Rows that GPTQ and AWQ are fitted to, as tensors: all that a model reads of a question, its image and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from learners.data.collate import collate
from learners.data.examples import Example

if TYPE_CHECKING:
    from learners.data.collate import Encoder


def write_rows(examples: Sequence[Example], encoder: Encoder, num: int, folder: Path) -> int:
    """Writes `num` rows spread over `examples`, a safetensors file each; answers how many there were."""
    from safetensors.torch import save_file

    chosen = spread(examples, num)
    folder.mkdir()
    for place, example in enumerate(chosen):
        tensors = collate([encoder.encode(example)], encoder.pad_id)
        del tensors["labels"]
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{place:06}.safetensors")
    return len(chosen)


def spread(examples: Sequence[Example], num: int) -> tuple[Example, ...]:
    """At most `num`, at equal distances."""
    if len(examples) <= num:
        return tuple(examples)
    return tuple(examples[place * len(examples) // num] for place in range(num))
