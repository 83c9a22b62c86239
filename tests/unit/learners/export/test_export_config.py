"""An export's settings: a file, overrides and options become one checked value."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import BadRequest
from gateway.cli.export import SCHEMES
from learners.config import Scheme, load_export

GIVEN = {"model": "/base", "out": "/out"}


def test_options_go_over_overrides_and_these_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "export.toml"
    file.write_text('model = "/a"\nout = "/a"\nnum_rows = 1\n[load_test]\nnum_questions = 7\n')
    config = load_export(file, ("out=/b", "num_rows=2"), {"out": "/c"})
    assert (config.model, config.out, config.num_rows) == ("/a", "/c", 2)
    assert config.load_test is not None
    assert config.load_test.num_questions == 7


def test_false_is_no_load_test() -> None:
    assert load_export(None, ("load_test=false",), GIVEN).load_test is None


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("scheme=w4a16-gptq",), "give `calibration`"),
        (("scheme=w4a16-awq",), "give `calibration`"),
        (("scheme=int3",), "scheme: Input should be 'none', 'fp8'"),
        (("num_row=3",), "num_row: no such setting; did you mean num_rows?"),
        (("load_test.questions=3",), "load_test.questions"),
    ],
)
def test_a_bad_setting_is_named(overrides: tuple[str, ...], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        load_export(None, overrides, GIVEN)


def test_the_gateways_help_names_every_scheme() -> None:
    assert SCHEMES.split("|") == [scheme.value for scheme in Scheme]
