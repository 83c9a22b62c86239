"""Which modules of a vision-language model belong to its language model, its vision tower, its projector, its head."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from engines.errors import BadRequest
from engines.inspection import Part, PartLinears

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

VISION_NAMES = ("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower")
"""Of models whose class does not say which module encodes images."""

_LAYER = re.compile(r"^(.*?\.)\d+\.")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Names of linears, by part, in the model's order."""

    linears: tuple[tuple[str, Part], ...]

    def of(self, part: Part) -> tuple[str, ...]:
        return tuple(name for name, owner in self.linears if owner is part)

    @property
    def layered(self) -> tuple[str, ...]:
        """The language linears that lie in numbered layers: what an adapter may touch."""
        return tuple(name for name in self.of(Part.LANGUAGE) if _LAYER.match(name))

    @property
    def layers(self) -> str:
        """What their names begin with, up to the layer's number; empty without any."""
        match = _LAYER.match(self.layered[0]) if self.layered else None
        return match[1] if match else ""

    @property
    def peft_targets(self) -> tuple[str, ...]:
        """The shortest ends of names, of one or two components, that no linear of another part has; or none."""
        others = [name for name, owner in self.linears if owner is not Part.LANGUAGE]
        for length in (1, 2):
            ends = tuple(dict.fromkeys(_end(name, length) for name in self.layered))
            if not any(name == end or name.endswith(f".{end}") for name in others for end in ends):
                return ends
        return ()

    def stored_layers(self, stored: Collection[str]) -> str:
        """What comes before the layer's number in `stored`, the names of all modules in the weight files.

        The vision tower may have layers of its own: all language linears must be there under the same beginning.
        """
        tails = [name.removeprefix(self.layers) for name in self.layered]
        candidates = (name.removesuffix(tails[0]) for name in stored if name.endswith(f".{tails[0]}"))
        return next((begin for begin in candidates if all(begin + tail in stored for tail in tails)), "")

    def parts(self) -> tuple[PartLinears, ...]:
        return tuple(_part(part, names) for part in Part if (names := self.of(part)))


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Raises `BadRequest` if the class does not say which of its modules is the language model."""
    names = {id(module): name for name, module in model.named_modules()}
    language = names.get(id(model.get_decoder()), "")
    if not language:
        raise BadRequest(f"{type(model).__name__} does not say which of its modules is the language model")
    vision = _vision_of(model, names)
    head = names.get(id(model.get_output_embeddings()), "")
    return Anatomy(tuple((name, _owner(name, language, vision, head)) for name in _linear_names(model)))


def _vision_of(model: PreTrainedModel, names: dict[int, str]) -> str:
    try:
        named = names.get(id(model.get_encoder(modality="image")), "")
    except (AttributeError, TypeError, ValueError):  # a class that has no such method, or not for images
        named = ""
    return named or next((name for name in names.values() if name.rpartition(".")[2] in VISION_NAMES), "")


def _owner(name: str, language: str, vision: str, head: str) -> Part:
    if head and name == head:
        return Part.HEAD
    if name.startswith(f"{language}."):
        return Part.LANGUAGE
    return Part.VISION if vision and name.startswith(f"{vision}.") else Part.PROJECTOR


def _linear_names(model: nn.Module) -> Iterator[str]:
    from torch import nn

    return (name for name, module in model.named_modules() if isinstance(module, nn.Linear))


def _end(name: str, length: int) -> str:
    return ".".join(name.split(".")[-length:])


def _part(part: Part, names: Sequence[str]) -> PartLinears:
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return PartLinears(
        part=part,
        prefix=_shared(names),
        leaves=tuple(leaf for leaf in leaves if not leaf.isdigit()) or tuple(leaves),
        num_modules=len(names),
    )


def _shared(names: Sequence[str]) -> str:
    """What all names begin with, in whole components: `model.language_model.layers.`"""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{column[0]}." for column in takewhile(lambda column: len(set(column)) == 1, columns))
