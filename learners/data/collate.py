"""From examples to batches of tensors.

B examples, T tokens of the longest. Prompt and answer are tokenized apart, as an engine sees them: the answer starts
where generation would. Only the answer's tokens, with the end of the turn, have labels: what a template adds behind
it (Qwen's, a newline) no engine ever generates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.errors import BadRequest
from learners.data.examples import Example, Message, Picture
from learners.data.images import open_picture
from rollout.messages import pictures_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ProcessorMixin

IGNORED = -100
TOKEN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class Rendered:
    """An example as the chat template renders it. `prompt` ends with the generation prompt."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids; `types` marks image tokens, shape (prompt tokens,); `vision` is what the vision tower reads.

    `answer_ids` is all that the template renders behind the prompt; the first `num_learned` of them have labels.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    num_learned: int
    types: tuple[int, ...]
    vision: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class Encoder:
    """One family's processor: its chat template, its tokenizer and its image preparation."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        tokens = processor.tokenizer.added_tokens_decoder.items()
        self._control_ids = frozenset(number for number, token in tokens if token.special)

    @property
    def pad_id(self) -> int:
        tokenizer = self._processor.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def render(self, example: Example) -> Rendered:
        """Raises `BadRequest` if the template does not put an answer right behind the generation prompt."""
        chat = [_to_template(message) for message in example.prompt]
        turn = {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}
        prompt = self._apply(chat, add_generation_prompt=True)
        whole = self._apply([*chat, turn], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise BadRequest(
                "model: its chat template renders an answer otherwise than the prompt that it is generated from, "
                "so an answer's tokens cannot be told apart",
                param="model",
            )
        return Rendered(prompt, whole[len(prompt) :])

    def encode(self, example: Example) -> Encoded:
        """Tokenizes prompt and answer apart. Raises `BadRequest` as `render` does."""
        rendered = self.render(example)
        prompt = self._process(rendered.prompt, example.images)
        answer_ids = self._processor.tokenizer(rendered.answer, add_special_tokens=False)["input_ids"]
        return self._encoded(prompt, tuple(answer_ids))

    def encode_prompt(self, messages: Sequence[Message]) -> Encoded:
        """A conversation that ends where the assistant's turn is generated, as an engine reads it; no answer."""
        text = self._apply([_to_template(message) for message in messages], add_generation_prompt=True)
        return self._encoded(self._process(text, pictures_of(tuple(messages))), ())

    def ids_of(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """Of those among `tokens` that the tokenizer has."""
        vocabulary = self._processor.tokenizer.get_vocab()
        return tuple(vocabulary[token] for token in tokens if token in vocabulary)

    def encode_whole(self, example: Example) -> Encoded:
        """Tokenizes the finished conversation in one piece, as an engine that scores it does.

        Raises `BadRequest` if the answer's tokens then are not those behind the generation prompt.
        """
        rendered = self.render(example)
        prompt = self._process(rendered.prompt, example.images)
        whole = self._process(rendered.prompt + rendered.answer, example.images)
        prompt_ids, ids = prompt["input_ids"][0].tolist(), whole["input_ids"][0].tolist()
        if ids[: len(prompt_ids)] != prompt_ids:
            raise BadRequest("model: its tokenizer merges the prompt's last token with the answer's first one")
        return self._encoded(prompt, tuple(ids[len(prompt_ids) :]))

    def _encoded(self, prompt: Mapping[str, Tensor], answer_ids: tuple[int, ...]) -> Encoded:
        prompt_ids = prompt["input_ids"][0].tolist()
        types = prompt["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in prompt else [0] * len(prompt_ids)
        vision = {name: tensor for name, tensor in prompt.items() if name not in TOKEN_KEYS}
        return Encoded(tuple(prompt_ids), answer_ids, self._num_learned(answer_ids), tuple(types), vision)

    def _num_learned(self, answer_ids: tuple[int, ...]) -> int:
        """Up to the first control token, which ends the turn: an answer itself holds none."""
        ends = (place for place, token in enumerate(answer_ids, start=1) if token in self._control_ids)
        return next(ends, len(answer_ids))

    def _apply(self, chat: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        return str(
            self._processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
        )

    def _process(self, text: str, images: Sequence[Picture]) -> Mapping[str, Tensor]:
        opened = [open_picture(image) for image in images] or None
        features: Mapping[str, Tensor] = self._processor(
            text=[text], images=opened, return_tensors="pt", add_special_tokens=False
        )
        return features


def collate(batch: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pads on the right: input_ids, attention_mask, mm_token_type_ids and labels, each (B, T) int64.

    What the vision tower reads is concatenated over the batch.
    """
    import torch

    width = max(example.num_tokens for example in batch)
    rows = [_padded(example, width, pad_id) for example in batch]
    keys = (*TOKEN_KEYS, "labels")
    output = {key: torch.tensor(column) for key, column in zip(keys, zip(*rows, strict=True), strict=True)}
    names = dict.fromkeys(name for example in batch for name in example.vision)
    for name in names:
        output[name] = torch.cat([example.vision[name] for example in batch if name in example.vision])
    return output


def _padded(example: Encoded, width: int, pad_id: int) -> Iterator[list[int]]:
    padding = width - example.num_tokens
    learned = example.answer_ids[: example.num_learned]
    behind = width - len(example.prompt_ids) - len(learned)
    yield [*example.prompt_ids, *example.answer_ids, *[pad_id] * padding]
    yield [1] * example.num_tokens + [0] * padding
    yield [*example.types, *[0] * (len(example.answer_ids) + padding)]
    yield [*[IGNORED] * len(example.prompt_ids), *learned, *[IGNORED] * behind]


def _to_template(message: Message) -> dict[str, Any]:
    parts = [
        {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}
