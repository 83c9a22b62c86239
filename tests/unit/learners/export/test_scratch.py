"""Where an export works before it is whole."""

from pathlib import Path

import pytest

from engines.adapter import BaseModel
from learners.config import Scheme, load_export
from learners.export.report import Method
from learners.export.run import run_export
from learners.export.steps import Steps

BASE = Path(__file__).parents[4] / "learners" / "toy" / "weights" / "base"


def test_scratch_is_on_the_file_system_of_what_is_written_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def quantize(steps: Steps, model: BaseModel) -> Method:
        seen.extend((steps.scratch.parent, steps.out.parent))
        return Method(scheme=Scheme.NONE)

    monkeypatch.setattr(Steps, "quantize", quantize)
    options = {"model": str(BASE), "out": str(tmp_path / "out"), "scheme": "none"}
    run_export(load_export(None, ("load_test=false",), options), lambda _: None)
    assert seen == [tmp_path, tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
