"""`verify` as its tests ask it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.adapter import BaseModel, VerifiedAdapter, verify
from engines.errors import AdapterRefused


def reason(directory: Path, base: BaseModel, max_rank: int = 16) -> str:
    with pytest.raises(AdapterRefused) as caught:
        verify(directory, base, max_rank)
    return caught.value.message


def accepted(directory: Path, base: BaseModel, max_rank: int = 16) -> VerifiedAdapter:
    return verify(directory, base, max_rank)
