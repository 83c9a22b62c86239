"""What the vision tower makes of a batch's images, computed once for all forward passes over that batch.

The tower is frozen and no adapter touches it, so every pass would compute the same. It is worth much on a GPU: without
FlashAttention, transformers calls attention once for each image and layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

METHOD = "get_image_features"
"""Of every vision-language model of transformers, without its head; its first argument is called `pixel_values`."""


class SeenImages:
    """Remembers the features of the tensor of pixels that was looked at last."""

    def __init__(self) -> None:
        self._pixels: Any = None
        self._features: Any = None

    @contextmanager
    def remembered(self, backbone: Any) -> Iterator[None]:
        """Around passes of `backbone`, the model without its head, in one number format."""
        compute, before = getattr(backbone, METHOD), vars(backbone).get(METHOD)

        def recall(pixel_values: Any, *arguments: Any, **options: Any) -> Any:
            if pixel_values is not self._pixels:
                self._features = compute(pixel_values, *arguments, **options)
                self._pixels = pixel_values
            return self._features

        setattr(backbone, METHOD, recall)
        try:
            yield
        finally:
            if before is None:
                delattr(backbone, METHOD)
            else:
                setattr(backbone, METHOD, before)
