"""Answers that are JSON, one value of which is compared."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from rollout.rewards.base import ByColumn
from rollout.types import Prompt, Trajectory

_FENCED = re.compile(r"^\s*```(?:json)?\s*\n(?P<body>.*?)\n?\s*```\s*$", re.DOTALL)


class NotJson(ValueError):
    """A model's text that is no JSON document, or none with the wanted value in it."""


def parse_json(text: str) -> Any:
    """A JSON document, in a fence of three backticks or bare. Raises `NotJson`; NaN and Infinity are not JSON."""
    fenced = _FENCED.match(text)
    try:
        return json.loads(fenced["body"] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def value_at(document: Any, path: str) -> Any:
    """The value at `a.b.0`: names of objects and indices of arrays; "" is the document. Raises `NotJson`."""
    for name in path.split(".") if path else ():
        if isinstance(document, dict) and name in document:
            document = document[name]
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            raise NotJson(f"nothing at '{name}'")
    return document


def are_equal(a: Any, b: Any) -> bool:
    """As JSON sees it: 1 is 1.0, but true is not 1."""
    match a, b:
        case bool(), _:
            return a is b
        case _, bool():
            return False
        case dict(), dict():
            return a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
        case list() | tuple(), list() | tuple():
            return len(a) == len(b) and all(are_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class JsonField(ByColumn):
    """1 where the answer is JSON and its value at `path` equals the column's; 0 also where it is no JSON."""

    path: str = ""
    """Where the value stands, such as `items.0.price`; empty: the whole document."""
    ignore_case: bool = False
    """Whether texts are compared without case."""

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        expected = self.expected(prompt)
        try:
            said = value_at(parse_json(trajectory.text), self.path)
        except NotJson:
            return 0.0
        if self.ignore_case and isinstance(said, str) and isinstance(expected, str):
            return float(said.casefold() == expected.casefold())
        return float(are_equal(said, expected))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
