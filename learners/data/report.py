"""What `data check` says of a file."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from learners.data.readers import RejectedRow, read_data, write_rejected


class DataReport(BaseModel):
    """Counts of one file. `rejected_file` is there if a row is bad; `num_examples` counts assistant turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    num_rows: int
    num_examples: int
    num_images: int
    num_rejected: int
    rejected: tuple[RejectedRow, ...]
    rejected_file: str | None
    data_hash: str


def check(path: Path) -> DataReport:
    """Reads every row of `path`; bad ones go to `<name>.rejected.jsonl` beside it. Raises `BadRequest`."""
    data = read_data(path)
    rejected_file = path.with_name(f"{path.stem}.rejected.jsonl")
    if data.rejected:
        write_rejected(rejected_file, data.rejected)
    else:
        rejected_file.unlink(missing_ok=True)
    return DataReport(
        file=str(path),
        num_rows=data.num_rows,
        num_examples=len(data.examples),
        num_images=data.num_images,
        num_rejected=len(data.rejected),
        rejected=data.rejected,
        rejected_file=str(rejected_file) if data.rejected else None,
        data_hash=data.data_hash,
    )
