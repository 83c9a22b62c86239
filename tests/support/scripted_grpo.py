"""A GRPO job whose rollout workers are scripted, all else being real: `python scripted_grpo.py JOB.toml NUM_ANSWERS`.

After NUM_ANSWERS groups the workers are silent. So what a job does with Ray and its engines is seen without a model
behind them: the fake engine's answers are no tokens that the learner knows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripted_workers import ScriptedWorker, SilentWorker

from engines.errors import TandemError
from learners.config import GrpoConfig, load_job


def main(config_file: str, num_answers: str) -> int:
    from transformers import AutoProcessor

    from learners.data.collate import Encoder
    from learners.grpo import opening
    from learners.grpo.run import run_grpo

    config = load_job(Path(config_file), (), GrpoConfig)
    encoder = Encoder(AutoProcessor.from_pretrained(config.model, local_files_only=True))
    worker: ScriptedWorker = SilentWorker(encoder, int(num_answers))
    opening.start_workers = lambda *_: (worker,)  # type: ignore[assignment, return-value]
    try:
        run_grpo(config)
    except TandemError as error:
        print(f"{type(error).__name__}: {error.message}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
