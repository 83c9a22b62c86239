"""The environment of llm-compressor: a virtual environment named after the hash of what it holds, made once.

Its stamp is written last: without it, what is there was left by an attempt that failed, and is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.adapter.files import write_atomic
from engines.errors import Unavailable
from engines.schemes import here

LOCK_FILE = Path(__file__).parents[2] / "deploy" / "requirements" / "quantize.txt"
TORCH = "torch==2.13.0"
TORCH_INDEX = os.environ.get("TANDEM_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
STAMP = "tandem.sha256"
MAX_DETAIL_CHARS = 2000

Say = Callable[[str], None]


def ensure_environment(root: Path, say: Say, requirements: Path = LOCK_FILE) -> Path:
    """The interpreter of the environment of `requirements` under `root`, made if it is not there.

    Raises `Unavailable` with pip's message if it cannot be made. Waits for another process that is making it.
    """
    wanted = _hash_of(requirements)
    home = Path(os.path.abspath(root)) / f"llmcompressor-{wanted[:12]}"
    python = home / "bin" / "python"
    with _holding(home):
        if not (home / STAMP).exists():
            begun = time.monotonic()
            _make(home, python, requirements, say)
            write_atomic(home / STAMP, wanted.encode())
            say(f"made {home} in {time.monotonic() - begun:.0f} s")
    return python


def _hash_of(requirements: Path) -> str:
    try:
        return hashlib.sha256(requirements.read_bytes()).hexdigest()
    except OSError as error:
        raise Unavailable(
            f"{requirements} cannot be read ({error.strerror}), which says what llm-compressor needs: run in a "
            "checkout of the repository, or name an interpreter that has llm-compressor with `python`"
        ) from error


@contextmanager
def _holding(home: Path) -> Iterator[None]:
    home.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home.with_name(f".{home.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(home: Path, python: Path, requirements: Path, say: Say) -> None:
    say(f"making the environment of llm-compressor in {home}, once: about two minutes")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    if not here().is_cpu:
        _pip(python, TORCH)
    elif not _has_installed(python, "--no-deps", f"{TORCH}+cpu"):
        say(f"pip knows no place that has {TORCH}+cpu; asking {TORCH_INDEX}")
        _pip(python, "--no-deps", "--index-url", TORCH_INDEX, f"{TORCH}+cpu")
    _pip(python, "--no-deps", "-r", str(requirements))


def _pip(python: Path, *arguments: str) -> None:
    done = _run_pip(python, *arguments)
    if done.returncode:
        raise Unavailable(
            f"pip could not install {' '.join(arguments)} for llm-compressor; check the network or pip's index and run "
            "the same command again, or name an interpreter that has llm-compressor with `python`",
            detail=done.stderr[-MAX_DETAIL_CHARS:],
        )


def _has_installed(python: Path, *arguments: str) -> bool:
    return _run_pip(python, *arguments).returncode == 0


def _run_pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile", *arguments)
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
