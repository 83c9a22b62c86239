from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from gateway_stack import picture

from engines.errors import NotFound
from gateway.media import CheckedImage, ImageStore


def image(content: bytes) -> CheckedImage:
    return CheckedImage(hashlib.sha256(content).hexdigest(), content)


def test_image_is_stored_once_and_read_back(tmp_path: Path) -> None:
    store = ImageStore(f"file://{tmp_path}/media")
    one = image(picture())
    store.put(one)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = file.stat().st_mtime_ns
    store.put(one)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.stat().st_mtime_ns == written
    assert store.read(one.sha256) == one.content


def test_other_file_systems_work_by_url() -> None:
    store = ImageStore("memory://tandem-test-media")
    store.put(image(b"x"))
    assert store.read(image(b"x").sha256) == b"x"


@pytest.mark.parametrize("sha256", ["0" * 64, "../../etc/passwd", "", "A" * 64])
def test_what_is_no_stored_hash_is_not_found(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(NotFound):
        ImageStore(f"file://{tmp_path}").read(sha256)
