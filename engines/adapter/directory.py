"""What may lie in an adapter's directory: three files that count, documentation that is ignored, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from engines.adapter.manifest import MANIFEST_FILE
from engines.adapter.peft_config import CONFIG_FILE
from engines.errors import BadRequest

WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
MAX_ENTRIES = 1000

_IGNORED_DIRECTORIES = frozenset({"trainer_state", "docs", "runs", "logs", ".cache", ".git"})
_IGNORED_NAMES = frozenset({"LICENSE", "NOTICE", "README", ".gitattributes", ".gitignore"})
_IGNORED_SUFFIXES = frozenset(
    {
        ".md",
        ".txt",
        ".json",
        ".jsonl",
        ".jinja",
        ".toml",
        ".yaml",
        ".yml",
        ".csv",
        ".html",
        ".png",
        ".jpg",
        ".jpeg",
        ".svg",
    }
)
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"})
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".gguf", ".ggml", ".h5", ".hdf5", ".msgpack", ".onnx", ".tflite", ".npz"})


def check_directory(directory: Path) -> None:
    """Raises `BadRequest` for a path that is no plain directory, and for the first entry that may not be there."""
    names = set()
    try:
        _check_path(directory)
        with os.scandir(directory) as entries:
            for entry in entries:
                names.add(entry.name)
                _check_entry(entry)
                if len(names) > MAX_ENTRIES:
                    raise BadRequest(f"{directory} has more than {MAX_ENTRIES} entries: it is no adapter's directory")
    except OSError as error:
        raise BadRequest(
            f"{os.fspath(directory)[:200]!r} cannot be read ({os.strerror(error.errno or 0)}): check its permissions"
        ) from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise BadRequest(f"{name} is missing in {directory}: save the adapter with PEFT's save_pretrained")


def _check_path(directory: Path) -> None:
    text = os.fspath(directory)
    if ".." in directory.parts or any(ord(character) < 32 for character in text):
        raise BadRequest(f"{text[:200]!r} is not a plain path: give the directory without '..' and control characters")
    if directory.is_symlink():
        raise BadRequest(f"{directory} is a symbolic link: give the directory itself")
    if not directory.is_dir():
        raise BadRequest(f"{directory} is not a directory: give the one that holds {CONFIG_FILE}")


def _check_entry(entry: os.DirEntry[str]) -> None:
    name = entry.name
    if entry.is_symlink():
        raise BadRequest(f"{name[:200]!r} is a symbolic link: replace it by the file itself")
    if entry.is_dir(follow_symlinks=False):
        if name not in _IGNORED_DIRECTORIES:
            raise BadRequest(f"{name[:200]!r} is a directory that does not belong to an adapter: remove it")
        return
    if not entry.is_file(follow_symlinks=False):
        raise BadRequest(f"{name[:200]!r} is not a regular file: remove it")
    if name not in ADAPTER_FILES:
        _check_other(name)


def _check_other(name: str) -> None:
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLE_SUFFIXES:
        raise BadRequest(f"{name[:200]!r} may hold a pickle, which runs code when loaded: remove it")
    if suffix in _WEIGHT_SUFFIXES:
        raise BadRequest(f"{name[:200]!r} holds weights beside {WEIGHTS_FILE}, the only file that is read: remove it")
    if suffix not in _IGNORED_SUFFIXES and name not in _IGNORED_NAMES:
        raise BadRequest(f"{name[:200]!r} is neither part of an adapter nor documentation: remove it")
