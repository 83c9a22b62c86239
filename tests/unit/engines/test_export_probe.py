"""An export's own prompts, and whether an engine answers them as the export did."""

import json
from pathlib import Path

import pytest

from engines.errors import BadRequest, Refused
from engines.export_probe import EXPORT_FILE, MAX_ERROR, check_export, read_export_probe
from engines.types import ProbeScore

RECORD = {
    "text": "what?",
    "answer": "this",
    "image": None,
    "num_tokens": 2,
    "token_ids": [3, 4],
    "logprobs": [-1.0, -2.0],
}


def write_export(directory: Path, *records: object) -> Path:
    (directory / EXPORT_FILE).write_text(json.dumps({"scheme": "fp8", "load_test": {}, "probe": list(records)}))
    return directory


def score(*logprobs: float, token_ids: tuple[int, ...] = (3, 4)) -> ProbeScore:
    return ProbeScore(token_ids, logprobs)


def test_what_is_no_probe_of_the_file_is_its_writers(tmp_path: Path) -> None:
    assert read_export_probe(tmp_path) == ()
    (record,) = read_export_probe(write_export(tmp_path, RECORD))
    assert (record.prompt().num_tokens, record.logprobs) == (2, (-1.0, -2.0))


@pytest.mark.parametrize("change", [{"logprobs": [-1.0]}, {"logprobs": [1.0, 2.0]}, {"image": "http://x"}, {"more": 1}])
def test_a_malformed_probe_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="export the model again"):
        read_export_probe(write_export(tmp_path, {**RECORD, **change}))


def test_the_same_weights_agree_and_others_do_not(tmp_path: Path) -> None:
    records = read_export_probe(write_export(tmp_path, RECORD))
    assert check_export(records, (score(-1.05, -2.05),)) == pytest.approx(0.05)
    with pytest.raises(Refused, match="does not serve what was exported"):
        check_export(records, (score(-1.0, -2.0 - 2.1 * MAX_ERROR),))
    with pytest.raises(Refused, match="tokenizes"):
        check_export(records, (score(-1.0, -2.0, token_ids=(3, 5)),))
    with pytest.raises(Refused):
        check_export(records, (score(float("nan"), -2.0),))
