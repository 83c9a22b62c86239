"""The learner's half of a probe, as a child process: the gateway's package imports no model library."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from engines.errors import BadRequest, DeadlineExceeded
from engines.inspection import Inspection, parse_inspection

TIMEOUT_S = 540.0
USAGE = 2


async def inspect(model: Path, out: Path) -> Inspection:
    """What `python -m learners inspect` prints; its narration goes to our stderr.

    Raises `BadRequest` if it says nothing that can be read, `DeadlineExceeded` if it takes too long.
    """
    command = (sys.executable, "-m", "learners", "inspect", str(model), "--out", str(out), "--json")
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), TIMEOUT_S)
    except TimeoutError as error:
        raise DeadlineExceeded(f"transformers did not load {model} within {TIMEOUT_S:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if not said:
        raise BadRequest(
            f"the learner could not look at {model} (exit code {child.returncode}): it says above why", param="model"
        )
    return parse_inspection(said)
