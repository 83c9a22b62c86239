"""The rows of a job's data: the bad ones counted, kept and judged."""

from __future__ import annotations

from typing import TypeVar

from learners.config import JobConfig
from learners.data.readers import DataSet, Item, check_rejected
from learners.run import Run

C = TypeVar("C", bound=JobConfig)


def judge_rows(run: Run[C], data: DataSet[Item]) -> None:
    """Counts and keeps the bad rows. Raises `Refused` if they are too many."""
    run.update(num_rows=data.num_rows, num_rejected=len(data.rejected))
    run.job.write_rejected(data.rejected)
    run.job.events.write(
        "data",
        f"{data.num_rows} rows, {len(data.rejected)} of them bad; {len(data.examples)} examples",
        level="warning" if data.rejected else "info",
        num_rows=data.num_rows,
        num_rejected=len(data.rejected),
        num_examples=len(data.examples),
        data_hash=data.data_hash,
    )
    check_rejected(data.num_rows, data.rejected, run.config.max_bad_fraction)
