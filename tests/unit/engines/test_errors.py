from __future__ import annotations

import pickle

import pytest

from engines import errors
from engines.errors import TandemError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TandemError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_cross_process_borders_whole(kind: type[TandemError]) -> None:
    sent = kind("what, why, what next", param="field", detail="what the log says")
    error = pickle.loads(pickle.dumps(sent))  # noqa: S301 our own bytes
    assert type(error) is kind
    assert (error.message, error.param, str(error)) == ("what, why, what next", "field", "what, why, what next")
    assert (error.detail, error.__notes__) == ("what the log says", ["what the log says"])


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_an_http_status_and_a_code(kind: type[TandemError]) -> None:
    assert 400 <= kind.status < 600
    assert kind.code == kind.code.lower()


@pytest.mark.parametrize("kind", CLASSES)
def test_only_servers_faults_are_retryable(kind: type[TandemError]) -> None:
    assert not kind.retryable or kind.status in (503, 504)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not TandemError])
def test_every_error_is_drawn_in_the_tree(kind: type[TandemError]) -> None:
    assert errors.__doc__ is not None
    line = next(line for line in errors.__doc__.splitlines() if f" {kind.__name__} " in line)
    assert str(kind.status) in line
