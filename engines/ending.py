"""Ends the actor of a serving replica, its engine, and what it reserved."""

from __future__ import annotations

import logging
import shutil

from engines.actor_name import NAMESPACE
from engines.adapter.copies import copies_root
from engines.placement import unplace

_log = logging.getLogger(__name__)
STOP_TIMEOUT_S = 30.0


def end_actor(name: str) -> None:
    """Returns once it is gone, with its copies of adapters and its GPUs' reservation. No harm if there is none. Blocks.

    An engine that does not stop in time is killed.
    """
    import ray

    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:  # Ray's way to say that there is none
        actor = None
    if actor is not None:
        try:
            ray.get(actor.stop.remote(), timeout=STOP_TIMEOUT_S)
        except ray.exceptions.RayError as error:  # its timeout is one too
            _log.warning("%s did not stop by itself (%s); killing it, which ends its engine too", name, error)
        ray.kill(actor)
    unplace(name)
    shutil.rmtree(copies_root(name), ignore_errors=True)  # one that was killed left its copies
