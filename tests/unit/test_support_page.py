"""docs/support.md is what the committed results and the rules say, and evidence comes from tests that ran."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_join import join
from support_rows import Aspect, Outcome, Report, Row, Seen, committed, merge, seen_by, write
from support_table import PAGE, page

from engines.config import EngineConfig
from engines.schemes import MachineKind, Scheme

WEIGHTS = Path(__file__).parents[2] / "learners" / "toy" / "weights"
SEEN = Seen("vllm", "qwen3_vl", "fp8", "float32", "serve")
pytest_plugins = ("pytester",)


def report(*rows: Row) -> Report:
    return Report(machine=MachineKind.CPU_AVX2, processor="a processor", versions={"vllm": "1"}, rows=rows)


def row(**values: object) -> Row:
    fixed = {"engine": "vllm", "family": "qwen3_vl", "scheme": "fp8", "dtype": "float32", "aspect": "serve"}
    return Row.model_validate({**fixed, **values})


def cells(text: str, engine: str, scheme: str, machine: str) -> list[str]:
    """Of the first line of that engine and scheme in the machine's table, from `serve` on."""
    section = text.split(f"## {machine}\n")[1].split("\n## ")[0]
    lines = [line.strip("| \n").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return next(line[3:] for line in lines if line[0] == engine and scheme in line[1].split(", "))


def test_the_page_is_what_the_committed_results_say() -> None:
    assert PAGE.read_text() == page(committed()), "run: python tests/support/support_table.py"


def test_what_passed_is_tested_with_its_file() -> None:
    text = page([report(row(passed=["a", "b"]))])
    serve, adapter, *_ = cells(text, "vllm", "fp8", "cpu-avx2")
    assert serve == "[tested](results/support-cpu-avx2.json) (float32 2)"
    assert adapter == "untested"
    assert cells(text, "vllm", "fp8", "cpu-avx512")[0] == "untested"


def test_one_failure_among_what_passed_is_no_success() -> None:
    text = page([report(row(passed=["a", "b"], failed=["c"]))])
    assert cells(text, "vllm", "fp8", "cpu-avx2")[0].startswith("[**fails**]")


def test_what_the_rules_refuse_is_refused_with_a_numbered_reason() -> None:
    text = page([])
    assert cells(text, "vllm", "w4a16", "cpu-avx2") == ["refused [1]"] * len(Aspect)
    assert "\n1. vllm, w4a16, gptq, awq on cpu-avx2: vLLM's CPU build has no 4-bit kernel" in text


def test_a_remote_server_is_refused_adapters_only() -> None:
    serve, *others = cells(page([]), "remote", "-", "gpu-hopper")
    assert serve == "untested"
    assert {other.partition(" ")[0] for other in others} == {"refused"}


def test_a_test_counts_once_as_it_went_last() -> None:
    before = report(row(passed=["a", "b"], failed=["c"]))
    after = merge(before, [Outcome(SEEN, "c", True), Outcome(SEEN, "a", False), Outcome(SEEN, "d", True)])
    assert after.rows == (row(passed=["b", "c", "d"], failed=["a"]),)


def test_a_report_made_elsewhere_is_joined_to_that_of_its_machine(tmp_path: Path) -> None:
    made, results = tmp_path / "made.json", tmp_path / "results"
    for rows in ([row(passed=["a"], failed=["b"])], [row(passed=["b", "c"])]):
        write(made, report(*rows))
        assert join(made, results) == results / "support-cpu-avx2.json"
    assert committed(results)[0].rows == (row(passed=["a", "b", "c"]),)


@pytest.mark.parametrize("machine", [report.machine for report in committed()])
def test_evidence_names_tests_that_are_there(machine: MachineKind) -> None:
    (made,) = (report for report in committed() if report.machine is machine)
    tests = {test.partition("[")[0] for one in made.rows for test in (*one.passed, *one.failed)}
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        assert name in (Path(__file__).parents[2] / path).read_text(), test


def test_a_test_whose_engine_did_not_start_has_failed() -> None:
    after = merge(report(row(passed=["a", "b"])), [], broken=["a", "never seen"])
    assert after.rows == (row(passed=["b"], failed=["a"]),)


@pytest.mark.parametrize(("model", "scheme"), [("base", Scheme.UNQUANTIZED), ("base-fp8", Scheme.FP8)])
def test_family_scheme_and_format_are_read_from_the_model(model: str, scheme: Scheme) -> None:
    seen = seen_by(EngineConfig(model=str(WEIGHTS / model), dtype="bfloat16"), Aspect.ADAPTER)
    assert seen == Seen("vllm", "qwen3_vl", scheme.value, "bfloat16", "adapter")


INNER = """
import pytest
from types import SimpleNamespace
from engines.config import EngineConfig
from support_rows import Aspect

@pytest.fixture
def engine():
    return SimpleNamespace(config=EngineConfig(model="m", kind="fake"))

@pytest.fixture
def make_adapter():
    return None

@pytest.fixture
def broken_engine():
    raise RuntimeError("no")

def test_serves(engine): pass
def test_fails(engine): assert False
def test_loads(engine, make_adapter): pass
@pytest.mark.supports(Aspect.SWAP)
def test_swaps(engine): pass
def test_says(engine, supports): supports(engine.config, Aspect.GRPO)
def test_skips(engine): pytest.skip("why")
def test_without_engine(): pass
def test_never_starts(broken_engine): pass
"""


def test_only_what_ran_with_an_engine_is_recorded(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(INNER)
    done = pytester.runpytest("-p", "evidence", "--support-report", ".", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=5, failed=1, skipped=1, errors=1)
    (made,) = committed(pytester.path)
    tests = {
        one.aspect: ([name.rpartition("::")[2] for name in one.passed], [n.rpartition("::")[2] for n in one.failed])
        for one in made.rows
    }
    assert tests == {
        Aspect.SERVE: (["test_serves"], ["test_fails"]),
        Aspect.ADAPTER: (["test_loads"], []),
        Aspect.SWAP: (["test_swaps"], []),
        Aspect.GRPO: (["test_says"], []),
    }
