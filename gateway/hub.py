"""A hub id as `model`: resolved to the snapshot that the hub's cache on this machine has. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_snapshot(hub_id: str) -> Path | None:
    """The directory of a model in the cache, if its config.json is there."""
    if not _HUB_ID.fullmatch(hub_id):
        return None
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:  # it comes with the back ends, which may be in an environment of their own
        return None
    try:
        path = Path(snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError):  # not cached, or no id that the hub could have
        return None
    return path if (path / "config.json").is_file() else None


def explain_missing(model: str) -> str:
    """Why `model` cannot be used, and what to do."""
    if _HUB_ID.fullmatch(model):
        return f"no such directory, and the hub cache has no {model}; download it first with: hf download {model}"
    return f"no such directory: {model}; give a model's directory or a hub id"
