"""What a model family brings to the toy: tokens, template, processor, model, and a fast forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

    from learners.toy.tensors import Batch


class Forward(Protocol):
    """One forward pass over pictures of one size."""

    def hidden_states(self, batch: Batch) -> Tensor:
        """Of the last layer, shape (B, L, hidden)."""


class ToyFamily(Protocol):
    """One row of `FAMILIES`; `name` is that of its profile in `engines.profiles`."""

    name: str
    special_tokens: tuple[str, ...]
    named_tokens: Mapping[str, str]
    """Those that the processor finds by an attribute of the tokenizer."""
    gpu_steps: int
    """Steps of 512 rows after which the base sees everything."""

    def prompt_text(self, question: str) -> str:
        """What the template makes of one picture and a question, up to the answer."""

    def expanded(self, prompt: str) -> str:
        """The prompt as the processor hands it to the tokenizer: every token of the picture written out."""

    def build_processor(self, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin: ...

    def build_model(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        """Random weights by torch's seed; the token ids are `tokenizer`'s."""

    def pixels(self, images: Sequence[Image], processor: ProcessorMixin) -> Tensor:
        """As the processor makes them, shape (N, ...): one entry a picture."""

    def position_ids(self, model: Any, input_ids: Tensor) -> Tensor:
        """Of P prompts of L tokens, shape (axes, P, L)."""

    def forward(self, model: Any) -> Forward: ...
