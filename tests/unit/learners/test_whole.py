"""A directory is there whole, or not at all."""

from pathlib import Path

import pytest

from engines.errors import Conflict
from learners.whole import writing_directory


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def fail() -> None:
        with writing_directory(target, "out") as partial:
            (partial / "weights").write_bytes(b"1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_fill_one_target_the_second_is_refused_and_neither_is_mixed(tmp_path: Path) -> None:
    def fill_second() -> None:
        with writing_directory(tmp_path / "out", "out") as second:
            with writing_directory(tmp_path / "out", "out") as first:
                (first / "first").write_bytes(b"1")
            (second / "second").write_bytes(b"2")

    with pytest.raises(Conflict, match="is there already"):
        fill_second()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    with writing_directory(tmp_path / "out", "out") as partial:
        (partial / "new").write_bytes(b"2")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    with pytest.raises(Conflict, match="is there already"), writing_directory(tmp_path / "out", "out"):
        pytest.fail("the block ran")
