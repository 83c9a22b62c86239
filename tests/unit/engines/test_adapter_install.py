from __future__ import annotations

import stat
from pathlib import Path

import pytest
from tiny_adapter import write_adapter, write_manifested

from engines.adapter import BaseModel, VerifiedAdapter, install, verify
from engines.errors import AdapterRefused, Conflict

FILES = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}


@pytest.fixture
def verified(adapter_dir: Path, base: BaseModel) -> VerifiedAdapter:
    write_manifested(adapter_dir, base)
    (adapter_dir / "README.md").write_text("documentation")
    (adapter_dir / "trainer_state").mkdir()
    return verify(adapter_dir, base, 16)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_only_the_adapters_own_files_are_copied(verified: VerifiedAdapter, tmp_path: Path) -> None:
    destination = install(verified, tmp_path / "registry" / "vqa@1")
    assert names(destination) == FILES
    assert names(destination.parent) == {"vqa@1"}
    for name in FILES:
        assert (destination / name).read_bytes() == (verified.path / name).read_bytes()


def test_adapter_without_manifest_is_two_files(adapter_dir: Path, base: BaseModel, tmp_path: Path) -> None:
    verified = verify(write_adapter(adapter_dir), base, 16)
    assert names(install(verified, tmp_path / "vqa@1")) == FILES - {"manifest.json"}


def test_installed_files_are_read_only(verified: VerifiedAdapter, tmp_path: Path) -> None:
    destination = install(verified, tmp_path / "vqa@1")
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in destination.iterdir())


def test_installed_copy_verifies_to_the_same_hashes(verified: VerifiedAdapter, tmp_path: Path, base: BaseModel) -> None:
    again = verify(install(verified, tmp_path / "vqa@1"), base, 16)
    assert again.files() == verified.files()


@pytest.mark.parametrize("name", sorted(FILES))
def test_file_that_changed_since_verify_is_refused(verified: VerifiedAdapter, tmp_path: Path, name: str) -> None:
    path = verified.path / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(AdapterRefused, match=f"{name} changed after it was verified"):
        install(verified, tmp_path / "registry" / "vqa@1")
    assert names(tmp_path / "registry") == set()


def test_link_put_in_after_verify_is_refused(verified: VerifiedAdapter, tmp_path: Path) -> None:
    path = verified.path / "adapter_config.json"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterRefused, match="symbolic link"):
        install(verified, tmp_path / "vqa@1")


def test_file_gone_since_verify_is_refused(verified: VerifiedAdapter, tmp_path: Path) -> None:
    (verified.path / "manifest.json").unlink()
    with pytest.raises(AdapterRefused, match=r"manifest\.json is missing"):
        install(verified, tmp_path / "registry" / "vqa@1")
    assert names(tmp_path / "registry") == set()


def test_versions_are_never_overwritten(verified: VerifiedAdapter, tmp_path: Path) -> None:
    destination = install(verified, tmp_path / "vqa@1")
    before = (destination / "adapter_config.json").stat().st_mtime_ns
    with pytest.raises(Conflict, match="never overwritten"):
        install(verified, destination)
    assert (destination / "adapter_config.json").stat().st_mtime_ns == before
