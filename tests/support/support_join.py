"""Takes reports that were made elsewhere (on a machine with a GPU, in another checkout) into those of docs/results.

    python tests/support/support_join.py FILE...
    python tests/support/support_table.py

A test counts once, as the file named last has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from support_rows import RESULTS, Outcome, Report, merge, report_path, seen_of, write


def join(path: Path, results: Path = RESULTS) -> Path:
    """Returns the file that `path` was joined to: that of its machine."""
    report = Report.model_validate_json(path.read_text())
    into = report_path(results, report.machine)
    known = Report.model_validate_json(into.read_text()) if into.exists() else report.model_copy(update={"rows": ()})
    versions = {**known.versions, **report.versions}
    write(into, merge(report.model_copy(update={"rows": known.rows, "versions": versions}), outcomes_of(report)))
    return into


def outcomes_of(report: Report) -> list[Outcome]:
    return [
        Outcome(seen_of(row), test, passed)
        for row in report.rows
        for tests, passed in ((row.passed, True), (row.failed, False))
        for test in tests
    ]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(join(Path(name)))
