"""The learner's half of a probe, as a child process: the gateway's package imports no model library."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from engines.errors import BadRequest
from engines.inspection import Fault, Inspection, parse_inspection

TIMEOUT_S = 540.0
USAGE = 2


async def inspect(model: Path, out: Path) -> Inspection:
    """What `python -m learners inspect` prints; its narration goes to our stderr.

    That it takes too long, or is killed, is a fault of loading. Raises `BadRequest` if it refuses the model, or says
    what can't be read.
    """
    command = (sys.executable, "-m", "learners", "inspect", str(model), "--out", str(out), "--json")
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), TIMEOUT_S)
    except TimeoutError:
        return _not_loaded(model, f"transformers did not load it within {TIMEOUT_S:g} s")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode == USAGE:
        raise BadRequest(f"the learner could not look at {model}: it says above why", param="model")
    if not said:
        return _not_loaded(model, f"the process that loads it ended ({_words_of(child.returncode)}) without a word")
    return parse_inspection(said)


def _not_loaded(model: Path, reason: str) -> Inspection:
    return Inspection(path=str(model), faults=(Fault(step="load", reason=reason),))


def _words_of(code: int | None) -> str:
    """-9 is most often the kernel's, for want of memory."""
    return f"signal {-code}; 9 may be want of memory" if code is not None and code < 0 else f"exit code {code}"
