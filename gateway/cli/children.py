"""The learner as a child process: the gateway's package never imports it, and its exit code becomes ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import typer


def run_learners(*arguments: str) -> None:
    """Runs `python -m learners ...` with our own stdin, stdout and stderr. Raises `typer.Exit` unless it returns 0."""
    child = subprocess.Popen([sys.executable, "-m", "learners", *arguments])
    code = _wait(child)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Ctrl-C reaches the child too: it writes its checkpoint, and we wait for that. SIGTERM is handed on."""
    previous = signal.signal(signal.SIGTERM, lambda *_: os.kill(child.pid, signal.SIGTERM))
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, previous)
