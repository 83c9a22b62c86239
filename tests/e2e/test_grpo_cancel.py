"""A GRPO job on a Ray of its own is asked to end by a signal: `ray.init` handles SIGTERM too, by ending the process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from stack import wait_until
from test_grpo_ray_head import OWN, REACH_TIMEOUT_S, Job

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ONE_STEP = 3
"""Groups until the workers are silent: one step is made, no checkpoint, and the job waits for the second."""
END_TIMEOUT_S = 60.0
ELSEWHERE = {
    "RAY_ADDRESS": "127.0.0.1:1",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"}, "metadata": {}}),
}
"""As `ray job submit` has it, of a cluster that a job with a Ray of its own has nothing to do with."""


def test_sigterm_ends_a_job_with_a_checkpoint_and_a_result_that_says_so(tmp_path: Path) -> None:
    job = Job(tmp_path, OWN)
    with job.running(ONE_STEP, ELSEWHERE) as learner:
        wait_until(lambda: learner.poll() is not None or job.events("step"), "a step", REACH_TIMEOUT_S)
        assert learner.poll() is None, job.log()
        assert not job.events("checkpoint")
        learner.send_signal(signal.SIGTERM)
        assert learner.wait(END_TIMEOUT_S) == 0, job.log()
    assert len(job.events("checkpoint")) == len(job.events("cancelled")) == 1
    result = json.loads(job.events_file.with_name("result.json").read_text())
    assert (result["status"], result["best_checkpoint"]) == ("cancelled", "checkpoints/step-1")
