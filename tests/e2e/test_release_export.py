"""A trained version becomes the engine's base, under load: exported by the command, then released, on real vLLM.

`TANDEM_TEST_QUANTIZER` names an interpreter that has llm-compressor; without it one is made in data/envs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import LearnedOracle
from pictures import faded, learn, picture_questions
from releasing import Document, options, versions_of, wait_only, write_figures
from scene import VLLM_RECOVERY_TIMEOUT_S, Scene, check_no_errors, running
from stack import ROOT, WEIGHTS, Stack, run_learner, train_sft
from stepping import Stops

from learners.export.report import read_report

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_QUESTIONS = 64
COMMAND = "pytest -m slow tests/e2e/test_release_export.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out questions."""
    held_out = tmp_path_factory.mktemp("rows") / "held-out.jsonl"
    run_learner("toy", "rows", "--set", "held-out", "--num", str(NUM_QUESTIONS), "--out", str(held_out))
    return held_out


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two versions over the small base in FP8: one that was trained, and one that answers as the base."""
    root = tmp_path_factory.mktemp("release-export")
    trained = train_sft(root / "training", max_steps=60)
    stack = Stack.make(root, "vllm", WEIGHTS / "base-fp8")
    oracle = LearnedOracle(picture_questions())
    adapters = [faded(trained, root / "faded"), trained]
    with running(Scene(stack, Stops(root), adapters, oracle, VLLM_RECOVERY_TIMEOUT_S)) as scene:
        learn(scene, oracle)
        yield scene


def test_exports_are_released_rolling_and_in_place_and_nobody_is_failed(
    scene: Scene, rows: Path, tmp_path: Path
) -> None:
    as_base = scene.alias()
    trained = str(as_base.previous)
    exports = [export(scene, version, rows, tmp_path / version) for version in (trained, as_base.live)]
    with scene.load(num_clients=2) as load:
        load.wait_answers(2)
        rolled = release(scene, exports[0])
        load.wait_answers(2)
        swapped = release(scene, exports[1], "--in-place")
        load.wait_answers(2)
    wait_only(scene, swapped)
    assert texts(scene, exports[0]) != texts(scene, exports[1]), "nothing could be told by the answers"
    scene.judge(load.since())
    check_no_errors(load.since())
    assert versions_of(load.since()) == [as_base.live, f"{rolled}@0", f"{swapped}@0"]
    config = {"model": "base-fp8", "scheme": "fp8", "replicas": 1}
    write_figures("release-export", COMMAND, config, scene, {"rolling": rolled, "in place": swapped}, load.since())


def export(scene: Scene, version: str, rows: Path, out: Path) -> Path:
    """By the command, against the gateway that serves; its report must have a probe, and know whose export it is."""
    words = ["--base", str(WEIGHTS / "base"), "--data", str(rows), "--out", str(out)]
    settings = [f"python={os.environ.get('TANDEM_TEST_QUANTIZER', '')}", f"environments={ROOT / 'data' / 'envs'}"]
    words += [word for setting in settings for word in ("--set", setting)]
    scene.stack.tandem("versions", "export", version, *words, "-c", str(scene.stack.config))
    report = read_report(out)
    assert report.source.version == version
    assert report.load_test.num_questions == NUM_QUESTIONS
    assert report.probe
    return out


def release(scene: Scene, directory: Path, *arguments: str) -> str:
    """By the command; the name of the generation. What it answers is learned, to judge by it what was answered."""
    said = scene.stack.tandem("engines", "release", scene.stack.engine, str(directory), *arguments, *options(scene))
    report: Document = json.loads(said)
    assert report["state"] == "live", report
    assert isinstance(scene.oracle, LearnedOracle)
    scene.oracle.learn(scene.stack, report["version"], str(directory))
    return str(report["id"])


def texts(scene: Scene, directory: Path) -> tuple[str, ...]:
    assert isinstance(scene.oracle, LearnedOracle)
    return scene.oracle.texts(str(directory))
