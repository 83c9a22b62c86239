"""The safetensors header: every bound of the format, and byte flips anywhere in a weights file."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_adapter import lora_tensors, manifest_of, safetensors_bytes, with_header, write_adapter

from engines.adapter import BaseModel, tensor_hashes, verify, write_manifest
from engines.adapter.tensors import MAX_HEADER_BYTES
from engines.errors import AdapterRefused, BadRequest

A4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def reason(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BadRequest) as caught:
        tensor_hashes(path)
    return caught.value.message


def header_reason(tmp_path: Path, header: object, data: bytes = b"\0" * 4) -> str:
    return reason(tmp_path / "a.safetensors", with_header(json.dumps(header).encode(), data))


def test_our_reader_agrees_with_safetensors(tmp_path: Path) -> None:
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    tensors = {name: values for name, (_, values) in lora_tensors().items()}
    safetensors_numpy.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    (tmp_path / "ours.safetensors").write_bytes(safetensors_bytes(lora_tensors(), {"format": "pt"}))
    assert tensor_hashes(tmp_path / "theirs.safetensors") == tensor_hashes(tmp_path / "ours.safetensors")
    read_back = safetensors_numpy.load_file(tmp_path / "ours.safetensors")
    assert all(np.array_equal(read_back[name], values) for name, values in tensors.items())


def test_empty_and_short_files_are_truncated(tmp_path: Path) -> None:
    assert "truncated" in reason(tmp_path / "a.safetensors", b"")
    assert "truncated" in reason(tmp_path / "a.safetensors", b"\1\0\0")


def test_oversize_header_is_refused_unread(tmp_path: Path) -> None:
    for length in (MAX_HEADER_BYTES + 1, (1 << 64) - 1):
        content = length.to_bytes(8, "little") + b"{}"
        assert "claims a header of" in reason(tmp_path / "a.safetensors", content)


def test_header_beyond_the_file_is_truncated(tmp_path: Path) -> None:
    assert "its header has 100 bytes" in reason(tmp_path / "a.safetensors", (100).to_bytes(8, "little") + b"{}")


def test_missing_data_is_truncated(tmp_path: Path) -> None:
    assert "its tensors need 4 bytes, it holds 3" in header_reason(tmp_path, {"a": A4}, b"\0" * 3)


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    assert "1 bytes after its last tensor" in header_reason(tmp_path, {"a": A4}, b"\0" * 5)


def test_overlapping_offsets_are_refused(tmp_path: Path) -> None:
    assert "overlaps" in header_reason(tmp_path, {"a": A4, "b": A4})
    shifted = {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}
    assert "overlaps" in header_reason(tmp_path, {"a": A4, "b": shifted}, b"\0" * 6)


def test_hole_between_tensors_is_refused(tmp_path: Path) -> None:
    far = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}
    assert "hole" in header_reason(tmp_path, {"a": A4, "b": far}, b"\0" * 12)


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    entry = json.dumps(A4)
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    assert "'a' appears twice" in reason(tmp_path / "a.safetensors", with_header(text, b"\0" * 4))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        A4 | {"more": 1},
        A4 | {"dtype": "F33"},
        A4 | {"dtype": 3},
        A4 | {"dtype": ["F32"]},
        A4 | {"shape": [True]},
        A4 | {"shape": [-1]},
        A4 | {"shape": [1.0]},
        A4 | {"shape": 1},
        A4 | {"shape": [2]},
        A4 | {"shape": [1] * 9},
        A4 | {"shape": [1 << 70]},
        A4 | {"data_offsets": [0]},
        A4 | {"data_offsets": [4, 0]},
        A4 | {"data_offsets": [0, 4, 8]},
        A4 | {"data_offsets": ["0", "4"]},
        A4 | {"data_offsets": [-4, 0]},
    ],
)
def test_malformed_entry_is_refused_by_name(tmp_path: Path, entry: object) -> None:
    assert "'broken'" in header_reason(tmp_path, {"broken": entry})


@pytest.mark.parametrize("metadata", [[], {"a": 1}, "text", None])
def test_malformed_metadata_is_refused(tmp_path: Path, metadata: object) -> None:
    assert "__metadata__" in header_reason(tmp_path, {"__metadata__": metadata, "a": A4})


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_header_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    assert "the header of a.safetensors" in reason(tmp_path / "a.safetensors", with_header(text, b""))


flips = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=flips, into_header=st.booleans())
def test_byte_flips_are_refused_or_harmless(
    adapter_dir: Path, base: BaseModel, flips: list[tuple[int, int]], into_header: bool
) -> None:
    path = write_adapter(adapter_dir) / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    reach = 8 + int.from_bytes(data[:8], "little") if into_header else len(data)
    for position, mask in flips:
        data[position % reach] ^= mask
    path.write_bytes(data)
    with contextlib.suppress(AdapterRefused):  # anything else is a crash
        verify(adapter_dir, base, 16)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 1 << 30), mask=st.integers(1, 255))
def test_no_flip_of_a_weight_passes_beside_a_manifest(
    adapter_dir: Path, base: BaseModel, position: int, mask: int
) -> None:
    path = write_adapter(adapter_dir) / "adapter_model.safetensors"
    write_manifest(adapter_dir, manifest_of(adapter_dir, base))
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + position % (len(data) - start)] ^= mask
    path.write_bytes(data)
    with pytest.raises(AdapterRefused):
        verify(adapter_dir, base, 16)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 1 << 30))
def test_no_cut_file_passes(adapter_dir: Path, base: BaseModel, cut: int) -> None:
    path = write_adapter(adapter_dir) / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: -(1 + cut % len(data))] if cut % len(data) < len(data) - 1 else b"")
    with pytest.raises(AdapterRefused):
        verify(adapter_dir, base, 16)


def test_file_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    from engines.adapter.files import read_exactly

    with pytest.raises(BadRequest, match="truncated: 2 bytes are missing"):
        read_exactly(io.BytesIO(b"abc"), 5, "a.safetensors")
