"""The environment of llm-compressor is made once, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import Unavailable
from learners.export import environment
from learners.export.environment import LOCK_FILE, STAMP, ensure_environment


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds nothing, and asks nobody."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_without_a_network_it_says_what_to_do_and_leaves_no_stamp(tmp_path: Path, offline: None) -> None:
    said: list[str] = []
    with pytest.raises(Unavailable, match="check the network or pip's index") as refused:
        ensure_environment(tmp_path, said.append)
    assert "torch" in refused.value.detail
    assert said[0].startswith("making the environment of llm-compressor")
    assert not list(tmp_path.glob(f"*/{STAMP}"))


def test_it_is_made_once_and_anew_where_an_attempt_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(home: Path, python: Path, *_: object) -> None:
        home.mkdir(exist_ok=True)
        made.append(home)
        if len(made) == 1:
            raise Unavailable("pip failed")

    monkeypatch.setattr(environment, "_make", make)
    with pytest.raises(Unavailable):
        ensure_environment(tmp_path, lambda _: None)
    first, second = (ensure_environment(tmp_path, lambda _: None) for _ in range(2))
    assert first == second == made[0] / "bin" / "python"
    assert len(made) == 2


def test_another_lock_is_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_make", lambda home, *_: home.mkdir())
    other = tmp_path / "other.txt"
    other.write_text("llmcompressor==0\n")
    assert ensure_environment(tmp_path, lambda _: None) != ensure_environment(tmp_path, lambda _: None, other)


def test_a_checkout_without_the_lock_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        ensure_environment(tmp_path, lambda _: None, tmp_path / "nothing.txt")


def test_the_lock_pins_every_package_and_leaves_torchvision_out() -> None:
    lines = [line for line in LOCK_FILE.read_text().splitlines() if line and not line.startswith("#")]
    names = [line.partition("==")[0].lower() for line in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert {"llmcompressor", "compressed-tensors", "transformers"} <= set(names)
    assert "torchvision" not in names
    assert environment.TORCH in lines
