import io
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image, ImageOps

from engines.errors import BadRequest, Refused
from learners.data.examples import Picture
from learners.data.images import open_picture
from learners.data.readers import RejectedRow, check_rejected, read_data
from learners.data.report import check

GOOD = {"text": "color?", "answer": "red"}


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_every_bad_row_is_kept_with_its_line_and_the_good_ones_stay(tmp_path: Path) -> None:
    whole = encoded(Image.new("RGB", (64, 64), "red"))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    rows = [GOOD, "{", "", "[1]", GOOD | {"image": "cut.png"}, GOOD | {"image": "text.png"}, "[" * 100_000, GOOD]
    data = read_data(write_rows(tmp_path / "rows.jsonl", rows))
    assert [example.line for example in data.examples] == [1, 8]
    assert [row.line for row in data.rejected] == [2, 4, 5, 6, 7]
    assert "not JSON" in data.rejected[0].reason
    assert "cannot be read as PNG" in data.rejected[2].reason
    assert data.num_rows == len(data.examples) + len(data.rejected) == 7


def test_rows_that_trip_a_library_are_bad_rows_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "exif.jpg").write_bytes(encoded_with_broken_exif())
    rows = [
        GOOD | {"image": "A" * 5000},
        GOOD | {"image": "exif.jpg"},
        f'{{"text": {"7" * 5000}, "answer": "red"}}',
        '{"text": "a", "answer": "b", "image": "\\ud800.png"}',
        '{"\\ud800": 1}',
        GOOD,
    ]
    data = read_data(write_rows(tmp_path / "rows.jsonl", rows))
    reasons = {row.line: row.reason for row in data.rejected}
    assert [example.line for example in data.examples] == [6]
    assert reasons[1].startswith("no image file at")
    assert reasons[2].endswith("exif.jpg cannot be read as PNG, JPEG, WEBP")
    assert reasons[3].startswith("the line cannot be read: ")
    assert sorted(reasons) == [1, 2, 3, 4, 5]
    assert check(tmp_path / "rows.jsonl").num_rejected == 5


def encoded_with_broken_exif() -> bytes:
    """A JPEG whose EXIF turns it, and gives its height as text: PIL packs that as a number when it turns it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0131] = 6, "soft"
    height_as_text = exif.tobytes().replace(b"\x01\x31\x00\x02", b"\x01\x01\x00\x02")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG", exif=height_as_text)
    content = buffer.getvalue()
    with pytest.raises(struct.error), Image.open(io.BytesIO(content)) as image:
        ImageOps.exif_transpose(image)
    return content


def test_a_line_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert read_data(tmp_path / "rows.jsonl").rejected == (RejectedRow(line=1, reason="the line is not UTF-8"),)


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (8, 8), "red"))
    rows = [GOOD | {"image": {"bytes": content, "path": None}}, {"text": "a", "answer": None, "image": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    data = read_data(tmp_path / "rows.parquet")
    assert [(example.id, example.answer, example.images) for example in data.examples] == [
        ("1", "red", (Picture(content=content),))
    ]
    assert [row.line for row in data.rejected] == [2]


@pytest.mark.parametrize("name", ["rows.csv", "missing.jsonl", "broken.parquet"])
def test_a_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadRequest, match=r"^data: "):
        read_data(tmp_path / name)


def test_the_hash_changes_with_the_file_and_with_an_image(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [GOOD | {"image": "a.png"}])
    hashes = set()
    for color in ("red", "blue"):
        (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 8), color)))
        hashes.add(read_data(file).data_hash)
        assert read_data(file).data_hash in hashes
    write_rows(file, [GOOD | {"image": "a.png"}, GOOD])
    hashes.add(read_data(file).data_hash)
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("num_rows", "num_bad", "passes"), [(100, 1, True), (100, 2, False), (0, 0, False), (1, 1, False)]
)
def test_too_many_bad_rows_fail_the_job(num_rows: int, num_bad: int, passes: bool) -> None:
    bad = [RejectedRow(line=line + 1, reason="broken") for line in range(num_bad)]
    if passes:
        check_rejected(num_rows, bad, 0.01)
        assert num_bad <= 0.01 * num_rows
    else:
        with pytest.raises(Refused, match=r"^data: "):
            check_rejected(num_rows, bad, 0.01)


def test_the_report_counts_rows_and_names_the_file_of_bad_ones(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [GOOD, "{"])
    report = check(file)
    assert (report.num_rows, report.num_examples, report.num_rejected) == (2, 1, 1)
    written = tmp_path / "rows.rejected.jsonl"
    assert report.rejected_file == str(written)
    assert [json.loads(line)["line"] for line in written.read_text().splitlines()] == [2]
    write_rows(file, [GOOD])
    assert check(file).rejected_file is None
    assert not written.exists()


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("RGB", (3, 8))),
        encoded(Image.new("1", (8200, 8))),
        encoded(Image.new("1", (5000, 5000))),
        encoded(Image.new("RGB", (8, 8)), "GIF"),
    ],
)
def test_images_out_of_bounds_or_of_another_format_are_refused(content: bytes) -> None:
    with pytest.raises(BadRequest):
        open_picture(Picture(content=content))


def test_transparency_is_seen_on_white_as_engines_see_it() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert open_picture(Picture(content=encoded(clear))).getpixel((0, 0)) == (255, 255, 255)
