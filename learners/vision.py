"""What the vision tower makes of a batch's images, computed once for all forward passes over that batch.

The tower is frozen and no adapter touches it, so every pass would compute the same. It is worth much on a GPU: without
FlashAttention, transformers calls attention once for each image and layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOWER = "get_image_features"
"""Of every vision-language model of transformers."""


class SeenImages:
    """Remembers the features of one batch's images. `backbone` is the model without its head."""

    def __init__(self) -> None:
        self._features: Any = None

    @contextmanager
    def remembered(self, backbone: Any) -> Iterator[None]:
        """Within it, only this batch's images may be read, and in one number format."""
        compute = getattr(backbone, TOWER, None)
        if compute is None:
            yield
            return

        def recall(*arguments: Any, **options: Any) -> Any:
            if self._features is None:
                self._features = compute(*arguments, **options)
            return self._features

        setattr(backbone, TOWER, recall)
        try:
            yield
        finally:
            delattr(backbone, TOWER)
