"""From a file to examples. No row is dropped silently: a bad one is kept, with its line number and the reason.

JSONL (`.jsonl`, `.ndjson`) is read line by line, Parquet (`.parquet`) in batches. Every image is decoded once here, so
that a broken one is a bad row and not a crash in the midst of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from engines.adapter.files import write_atomic
from engines.errors import BadRequest, Refused
from learners.data.examples import Example, Picture
from learners.data.formats import parse_row
from learners.data.images import open_picture

NUM_REASONS_SHOWN = 3


class RejectedRow(BaseModel):
    """One line of `rejected.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    line: int
    reason: str


class Item(Protocol):
    """What a row becomes: an `Example`, or a `Prompt`."""

    @property
    def images(self) -> tuple[Picture, ...]: ...


T = TypeVar("T", bound=Item, covariant=True)
Parse = Callable[[object, int, Path], tuple[T, ...]]


@dataclass(frozen=True, slots=True)
class DataSet(Generic[T]):
    """The content of a data file. `data_hash` covers the file and every image of its good rows, in order."""

    path: Path
    examples: tuple[T, ...]
    rejected: tuple[RejectedRow, ...]
    num_rows: int
    num_images: int
    data_hash: str


def read_data(path: Path) -> DataSet[Example]:
    """The rows of `path` as examples with answers; see `read_rows`."""
    return read_rows(path, parse_row)


def read_rows(path: Path, parse: Parse[T]) -> DataSet[T]:
    """Reads all of `path`. Raises `BadRequest` if it is no readable file of a known format; bad rows do not raise."""
    rows = _rows_of(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    examples: list[T] = []
    rejected: list[RejectedRow] = []
    num_rows = num_images = 0
    for line, values in rows:
        num_rows += 1
        try:
            parsed = _read_row(parse, values, line, path.parent)
            images = parsed[-1].images  # the last turn's prompt shows all of a row's images
            for image in images:
                open_picture(image)
        except BadRequest as error:
            rejected.append(RejectedRow(line=line, reason=_encodable(error.message)))
            continue
        for image in images:
            digest.update(hashlib.sha256(image.read()).digest())
        num_images += len(images)
        examples += parsed
    return DataSet(path, tuple(examples), tuple(rejected), num_rows, num_images, f"sha256:{digest.hexdigest()}")


def check_rejected(num_rows: int, rejected: Sequence[RejectedRow], max_bad_fraction: float) -> None:
    """Raises `Refused` if there is nothing to learn from, or too much of it is bad."""
    if num_rows and len(rejected) < num_rows and len(rejected) <= max_bad_fraction * num_rows:
        return
    first = "; ".join(f"line {row.line}: {row.reason}" for row in rejected[:NUM_REASONS_SHOWN])
    raise Refused(
        f"data: {len(rejected)} of {num_rows} rows are bad and max_bad_fraction is {max_bad_fraction:g}: {first}"
        if num_rows
        else "data: the file has no rows",
        param="data",
    )


def write_rejected(path: Path, rows: Sequence[RejectedRow]) -> None:
    """One JSON object a line; replaces the file."""
    write_atomic(path, "".join(row.model_dump_json() + "\n" for row in rows).encode())


def _read_row(parse: Parse[T], values: object, line: int, folder: Path) -> tuple[T, ...]:
    if isinstance(values, BadRequest):
        raise values
    return parse(values, line, folder)


def _encodable(text: str) -> str:
    r"""A reason may quote a row, and JSON's \ud800 is half of a character: written as `?`."""
    return text.encode("utf-8", "replace").decode()


def _rows_of(path: Path) -> Iterator[tuple[int, object]]:
    """(line, values) of every row, or (line, `BadRequest`) for one that is not even JSON."""
    if not path.is_file():
        raise BadRequest(f"data: no file at {path}", param="data")
    match path.suffix:
        case ".jsonl" | ".ndjson":
            return _jsonl_rows(path)
        case ".parquet":
            return _parquet_rows(path)
        case suffix:
            raise BadRequest(f"data: '{suffix}' files are not read: give .jsonl or .parquet", param="data")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            if content.strip():
                yield line, _parse_json(content)


def _parse_json(content: bytes) -> object:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRequest("the line is not UTF-8")
    except json.JSONDecodeError as error:
        return BadRequest(f"the line is not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # an integer of more digits than Python converts
        return BadRequest(f"the line cannot be read: {error}")
    except RecursionError:
        return BadRequest("the line is nested too deeply")


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        batches = file.iter_batches(batch_size=256)
        yield from enumerate((values for batch in batches for values in batch.to_pylist()), start=1)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadRequest(f"data: {path} cannot be read as Parquet: {error}", param="data") from error
