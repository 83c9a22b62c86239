"""A base is there whole, or not at all."""

from pathlib import Path

import pytest

from engines.errors import BadRequest
from learners.toy import build as module
from learners.toy.build import build
from learners.toy.evaluate import Accuracy
from learners.toy.families import FAMILIES
from learners.toy.tokenizer import build_tokenizer

QWEN = FAMILIES["qwen3_vl"]


class Killed(BaseException):
    pass


def test_a_build_that_is_killed_leaves_no_base_and_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = Accuracy(1, 0.5, {})
    monkeypatch.setattr(module, "toy_tokenizer", lambda family: build_tokenizer(["what color?", "red"] * 10, family))
    monkeypatch.setattr(module, "train", lambda *_: 1.0)
    monkeypatch.setattr(module, "score", lambda *_: (accuracy, accuracy))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "quantize", killed)
        with pytest.raises(Killed):
            build(tmp_path, QWEN, "cpu", 0, "x", lambda *_: None)
    assert not (tmp_path / "base").exists()

    build(tmp_path, QWEN, "cpu", 0, "x", lambda *_: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base-fp8", "report.json"]
    assert (tmp_path / "base" / "config.json").is_file()
    with pytest.raises(BadRequest, match="is there already"):
        build(tmp_path, QWEN, "cpu", 0, "x", lambda *_: None)
