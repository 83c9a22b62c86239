from __future__ import annotations

import math
from pathlib import Path

import pydantic
import pytest
from tiny_adapter import manifest_of, write_adapter

from engines.adapter import BaseModel, Manifest, ProbeRecord, read_manifest, write_manifest
from engines.errors import BadRequest
from engines.types import ProbePrompt


def record(**changes: object) -> ProbeRecord:
    values: dict[str, object] = {
        "text": "what colour?",
        "answer": "teal",
        "image": "data:image/png;base64,AAAA",
        "num_tokens": 2,
        "token_ids": [5, 7],
        "base_logprobs": [-3.5, -0.25],
        "adapter_logprobs": [-0.5, 0.0],
    }
    return ProbeRecord.model_validate(values | changes)


def test_manifest_survives_writing_and_reading(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    manifest = manifest_of(adapter_dir, base, probe=(record(),), metrics={"loss": 0.1}, parent="vqa@1")
    write_manifest(adapter_dir, manifest)
    assert read_manifest(adapter_dir) == manifest
    assert sorted(path.name for path in adapter_dir.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_manifest_replaces_an_older_one(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    write_manifest(adapter_dir, manifest_of(adapter_dir, base))
    newer = manifest_of(adapter_dir, base, parent="vqa@2")
    write_manifest(adapter_dir, newer)
    assert read_manifest(adapter_dir) == newer


def test_missing_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"manifest\.json is missing"):
        read_manifest(tmp_path)


def test_manifest_is_frozen(adapter_dir: Path, base: BaseModel) -> None:
    manifest = manifest_of(write_adapter(adapter_dir), base)
    with pytest.raises(pydantic.ValidationError):
        manifest.rank = 8  # type: ignore[misc]


def test_probe_becomes_the_engines_prompt() -> None:
    assert record().prompt() == ProbePrompt("what colour?", "teal", "data:image/png;base64,AAAA", 2)
    assert record(image=None).prompt().image is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_tokens": 3},
        {"token_ids": [1]},
        {"base_logprobs": [-1.0]},
        {"adapter_logprobs": [-1.0, -1.0, -1.0]},
        {"base_logprobs": [-1.0, math.nan]},
        {"adapter_logprobs": [-math.inf, -1.0]},
        {"base_logprobs": [0.5, -1.0]},
        {"token_ids": [-1, 2]},
        {"image": "https://example.org/a.png"},
        {"num_tokens": 0, "token_ids": [], "base_logprobs": [], "adapter_logprobs": []},
        {"extra": 1},
    ],
)
def test_malformed_probe_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        record(**changes)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_metrics_are_finite(adapter_dir: Path, base: BaseModel, loss: float) -> None:
    write_adapter(adapter_dir)
    with pytest.raises(pydantic.ValidationError):
        manifest_of(adapter_dir, base, metrics={"loss": loss})


def test_schema_names_every_field_of_the_contract() -> None:
    assert set(Manifest.model_fields) == {
        "format_version", "family", "base_hash", "rank", "alpha", "target_modules", "tensors", "dtype", "parent",
        "data_hash", "code_version", "metrics", "probe",
    }  # fmt: skip


def test_a_probe_is_bounded(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    assert len(manifest_of(adapter_dir, base, probe=[record()] * 64).probe) == 64
    with pytest.raises(pydantic.ValidationError, match="at most 64 items"):
        manifest_of(adapter_dir, base, probe=[record()] * 65)
