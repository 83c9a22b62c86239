"""Environments by name: the built-in ones, and those that other packages add by the entry point."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from engines.errors import BadRequest
from rollout.environments.protocol import Environment
from rollout.environments.retry import Retry
from rollout.environments.single_turn import SingleTurn

GROUP = "tandem.environments"
BUILT_IN: Mapping[str, Callable[..., Environment]] = {"single_turn": SingleTurn, "retry": Retry}


def load_environment(name: str, options: Mapping[str, Any]) -> Environment:
    """The environment of that name, made with `options` as keyword arguments; a built-in name is always the built-in.

    Raises `BadRequest` for an unknown name (it lists the known ones), and for options that it does not take.
    """
    make = BUILT_IN.get(name) or _find(name)
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise _bad_options(name, str(error)) from None
    try:
        return make(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise _bad_options(name, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _find(name: str) -> Callable[..., Environment]:
    points = entry_points(group=GROUP)
    if name not in points.names:
        known = ", ".join(sorted({*BUILT_IN, *points.names}))
        raise BadRequest(
            f"rollout.environment: there is no '{name}'; known are {known}. Others are added by an entry point of the "
            f"group {GROUP}",
            param="rollout.environment",
        )
    made: Callable[..., Environment] = points[name].load()
    return made


def _bad_options(name: str, why: str) -> BadRequest:
    return BadRequest(
        f"rollout.environment_options: '{name}' does not take them: {why}", param="rollout.environment_options"
    )
