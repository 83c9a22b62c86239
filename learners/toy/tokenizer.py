"""The tokenizer of the toy models: a byte-level BPE of the data set's own words, with a family's control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from learners.toy.families import ToyFamily

VOCABULARY = 320  # a multiple of 32
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MAX_TOKENS = 4096


def build_tokenizer(texts: Sequence[str], family: ToyFamily) -> PreTrainedTokenizerFast:
    """`VOCABULARY` tokens trained on `texts`, the family's special tokens last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(family.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(family.special_tokens))
    others = [token for token in family.special_tokens if token not in (TURN_END, END_OF_TEXT)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(family.named_tokens) or others,
    )
