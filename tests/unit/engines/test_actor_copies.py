"""An actor's own copies of adapters: found, checked when loaded, kept as spares while there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
from acting import OWNER, adapter, held, load, version

from engines.actor import EngineActor
from engines.adapter import pack
from engines.adapter.copies import AdapterCopies
from engines.config import EngineConfig
from engines.errors import EngineFault, NotFound, Unavailable
from engines.types import VersionName

pytestmark = pytest.mark.timeout(60)


async def test_what_was_not_copied_is_not_loaded(actor: EngineActor) -> None:
    with pytest.raises(NotFound, match="copy it"):
        await actor.load(OWNER, version(1), 60)
    assert await held(actor) == []


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed"])
async def test_a_damaged_copy_is_found_by_its_load_and_copied_anew(
    actor: EngineActor, tmp_path: Path, name: str, damage: str
) -> None:
    parcel = pack(version(1), adapter(tmp_path, 1))
    await actor.copy(parcel)
    path = (await actor.status()).copies_root / "vqa@1" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-64] if damage == "truncated" else whole[:-8] + b"\n" * 7 + whole[-1:])
    with pytest.raises(EngineFault, match="damaged"):
        await actor.load(OWNER, version(1), 60)
    assert await held(actor) == []
    assert not await actor.has_copy(version(1), parcel.hashes())
    await load(actor, tmp_path, 1)
    assert await held(actor) == [version(1)]


async def test_a_place_for_copies_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where a directory is wanted")
    copies = AdapterCopies(tmp_path / "taken")
    with pytest.raises(Unavailable, match="make room"):
        copies.put(pack(version(1), adapter(tmp_path, 1)))


async def test_a_copy_stays_as_a_spare_and_is_loaded_again_without_being_sent(
    actor: EngineActor, tmp_path: Path
) -> None:
    parcel = pack(version(1), adapter(tmp_path, 1))
    await actor.copy(parcel)
    await actor.keep_only(OWNER, [])
    for _ in range(2):
        assert await actor.has_copy(version(1), parcel.hashes())
        await actor.load(OWNER, version(1), 60)
        assert await held(actor) == [version(1)]
        await actor.release(OWNER, version(1))
    assert await held(actor) == []


async def test_only_a_copy_of_just_these_files_counts(actor: EngineActor, tmp_path: Path) -> None:
    await actor.copy(pack(version(1), adapter(tmp_path, 1)))
    assert not await actor.has_copy(version(1), pack(version(1), adapter(tmp_path, 2)).hashes())
    assert not await actor.has_copy(version(2), pack(version(2), adapter(tmp_path, 1)).hashes())


async def test_spares_beyond_their_room_go_the_oldest_first_and_what_is_loaded_stays(
    actor: EngineActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(actor, tmp_path, 1)
    root = (await actor.status()).copies_root
    num_bytes = sum(path.stat().st_size for path in (root / "vqa@1").iterdir())
    monkeypatch.setattr("engines.adapter.copies.MAX_SPARE_BYTES", 2 * num_bytes)
    monkeypatch.setattr("engines.adapter.copies.MIN_IDLE_S", 0.0)
    for number in (2, 3, 4):
        await actor.copy(pack(version(number), adapter(tmp_path, number)))
    assert sorted(path.name for path in root.iterdir()) == ["vqa@1", "vqa@3", "vqa@4"]
    monkeypatch.setattr("engines.adapter.copies._MIN_FREE_BYTES", 1 << 62)
    await actor.release(OWNER, version(1))
    assert list(root.iterdir()) == []


async def test_a_copy_that_was_sent_or_asked_for_of_late_is_no_spare(
    actor: EngineActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.adapter.copies._MIN_FREE_BYTES", 1 << 62)
    parcel = pack(version(1), adapter(tmp_path, 1))
    await actor.copy(parcel)
    await actor.copy(pack(version(2), adapter(tmp_path, 2)))
    await actor.keep_only(OWNER, [])
    assert await actor.has_copy(version(1), parcel.hashes())
    await actor.load(OWNER, version(1), 60)
    assert await held(actor) == [version(1)]


async def test_a_copy_of_which_a_file_is_gone_is_none(actor: EngineActor, tmp_path: Path) -> None:
    parcel = pack(version(1), adapter(tmp_path, 1))
    await actor.copy(parcel)
    ((await actor.status()).copies_root / "vqa@1" / "adapter_model.safetensors").unlink()
    assert not await actor.has_copy(version(1), parcel.hashes())


async def test_the_copies_of_an_engine_that_starts_anew_are_gone(actor: EngineActor, tmp_path: Path) -> None:
    parcel = pack(version(1), adapter(tmp_path, 1))
    await actor.copy(parcel)
    await actor.restart()
    assert not await actor.has_copy(version(1), parcel.hashes())


async def test_a_copy_that_another_owner_is_about_to_load_stays(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path), kind="fake", max_loras=3, reserved_for_rollout=1)
    actor = EngineActor("small", config, tmp_path / "logs", tmp_path / "copies")
    await actor.start()
    step = VersionName("grpo.1/step", 1)
    await actor.copy(pack(step, adapter(tmp_path, 1)))
    await actor.keep_only(OWNER, [])
    await actor.copy(pack(version(2), adapter(tmp_path, 2)))
    await actor.keep_only("grpo", [])
    assert [path.name for path in (await actor.status()).copies_root.iterdir()] == ["vqa@2"]
    await actor.load(OWNER, version(2), 60)
    await actor.stop()
