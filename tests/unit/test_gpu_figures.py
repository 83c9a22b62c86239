"""The driver of the GPU figures: one that hangs or fails keeps nothing from the next, and what it wrote is kept."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.timeout(60)
FOLDER = Path(__file__).parents[1] / "bench" / "gpu"
HANGS = "import pathlib, time; pathlib.Path(r'{result}').write_text('[1]'); print('began', flush=True); time.sleep(600)"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("run")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_figure_is_ended_at_its_limit_and_what_it_wrote_is_kept(driver: ModuleType, tmp_path: Path) -> None:
    command = (sys.executable, "-c", HANGS.format(result=tmp_path / "slow.json"))
    began_s = time.monotonic()
    figure = driver.Figure("slow", command, 5.0, "slow.json")
    outcome = driver.run(figure, tmp_path / "slow.log")
    assert time.monotonic() - began_s < 30
    assert (outcome.is_timed_out, "began" in outcome.tail) == (True, True)
    (tmp_path / "out").mkdir()
    driver.keep(figure, outcome, driver.Card("a card", 1, "2", "3"), tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "slow.json").read_text())
    assert (kept["result"], kept["card"]["name"], kept["is_timed_out"]) == ([1], "a card", True)


def test_the_exit_code_of_a_figure_is_told(driver: ModuleType, tmp_path: Path) -> None:
    figure = driver.Figure("bad", (sys.executable, "-c", "raise SystemExit(3)"), 30.0)
    outcome = driver.run(figure, tmp_path / "bad.log")
    assert (outcome.code, outcome.is_timed_out) == (3, False)


def test_every_figure_has_a_limit_that_one_call_can_hold(driver: ModuleType) -> None:
    assert driver.FIGURES
    assert all(0 < figure.limit_s < 600 for figure in driver.FIGURES.values())
