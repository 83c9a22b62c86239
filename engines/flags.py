"""A back end's own command-line arguments as `[engines.NAME].args` spells them. Imports nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KEY = re.compile(r"(--)?[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


def flag_of(key: str) -> str:
    """A key of `args` as an argument parser reads it: `--max_loras` and `max-loras` are one flag."""
    return key.removeprefix("--").replace("_", "-")


def refuse_owned(keys: Iterable[str], owned: frozenset[str]) -> None:
    """Raises `ValueError` naming the first key that is no flag, or sets an owned argument in any spelling."""
    for key in keys:
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"'{key[:80]}' is no argument's name; write it like gpu-memory-utilization")
        # --no-X turns X off, --X.part sets a part of its value, and the parser takes any unambiguous beginning of X.
        stem = flag_of(key).split(".")[0].removeprefix("no-")
        if (own := next((own for own in sorted(owned) if own.startswith(stem)), None)) is not None:
            raise ValueError(f"'{key}' sets --{own}, which Tandem sets itself; remove it")
