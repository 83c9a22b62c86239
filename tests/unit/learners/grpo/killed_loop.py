"""The loop of `test_grpo_loop` in forks of one process that has the model libraries: each ends at a given instant.

Reads a JSON object a line, {"root": the job's directory, "instant": N or null}, and answers with the exit status of the
fork that ran the job. Instants are counted in calls that our own code makes or gets, in any thread; at the Nth the fork
kills itself (SIGKILL). A fork that came to its end leaves the number of its instants in `root`/instants.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from scripted_workers import ScriptedWorker
from test_grpo_loop import BASE, Job

from learners.data.collate import Encoder

ROOT = Path(__file__).resolve().parents[4]
OURS = tuple(f"{ROOT / name}/" for name in ("learners", "rollout", "engines"))


class Countdown:
    """A profile function: the end comes at the `instant`th call."""

    def __init__(self, instant: int | None) -> None:
        self._instant = instant
        self.num_seen = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "return" and frame.f_code.co_filename.startswith(OURS):
            self.num_seen += 1
            if self.num_seen == self._instant:
                os.kill(os.getpid(), signal.SIGKILL)


def run(root: Path, instant: int | None, encoder: Encoder) -> None:
    countdown = Countdown(instant)
    threading.setprofile(countdown)
    sys.setprofile(countdown)
    Job(root).run(ScriptedWorker(encoder))
    sys.setprofile(None)
    (root / "instants").write_text(str(countdown.num_seen))


def fork(root: Path, instant: int | None, encoder: Encoder) -> int:
    """The exit status; negative: the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(root, instant, encoder)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    import peft  # noqa: F401  here, so that no fork has to
    import torch
    from transformers import AutoProcessor

    torch.set_num_threads(1)  # forks of a process with a pool of threads would wait for threads that they have not
    encoder = Encoder(AutoProcessor.from_pretrained(BASE, local_files_only=True))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(fork(Path(order["root"]), order["instant"], encoder), flush=True)


if __name__ == "__main__":
    main()
