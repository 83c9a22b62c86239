"""The loop of asynchronous GRPO: take what was sampled, learn from it, send the adapter back to the engines.

Sampling goes on meanwhile, by the newest version that the engines have. How far it may run ahead is the staleness
rule's business (`rollout/staleness.py`): with `max_staleness` 0 this same loop is synchronous, with 1 one step off.
"""

from __future__ import annotations

import time

from engines.errors import Unavailable
from learners.cancel import CancelRequest
from learners.grpo.checkpoints import Checkpoints
from learners.grpo.learner import Learner
from learners.grpo.recorder import Recorder
from learners.grpo.report import TimeFigures, look_at
from learners.grpo.rollouts import Rollouts


def train(
    learner: Learner,
    rollouts: Rollouts,
    recorder: Recorder,
    checkpoints: Checkpoints,
    request: CancelRequest,
    steps: range,
) -> None:
    """Ends with a checkpoint: after the last of `steps`, when asked to end, or when nothing gets better any more.

    Raises `Unavailable` if not one step could be made, because all rows were given up.
    """
    num_done = steps.start - 1
    rollouts.deliver(learner.push(num_done))
    checkpoints.begin(learner, rollouts, recorder)
    for step in steps:
        began_s = time.monotonic()
        batch = rollouts.take(request)
        if not batch.groups:
            recorder.on_dropped(step, batch.dropped)
            if batch.dropped and num_done == 0:
                raise Unavailable(f"no row could be learned from, all were given up; the last: {batch.dropped[-1]}")
            break
        terms = learner.learn(batch.groups)
        sync_s = rollouts.learned(learner.push(step))
        times = TimeFigures(time.monotonic() - began_s, batch.waited_s, rollouts.take_engine_idle_s())
        figures = look_at(batch.groups, step, each_reward=learner.compares_each_reward)
        recorder.on_step(step, figures, terms, times, batch.rows, batch.dropped, sync_s)
        num_done = step
        if checkpoints.is_due(step):
            checkpoints.write(step, learner, rollouts, recorder)
        if checkpoints.should_stop or request.is_requested:
            break
    if num_done != checkpoints.newest_step:
        checkpoints.write(num_done, learner, rollouts, recorder)
