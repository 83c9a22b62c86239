"""What runs of slow tests came to, file by file: docs/results/test-slow.json, from the JUnit files that pytest wrote.

    python tests/support/slow_report.py test-results/slow.xml...

A test that is in several files counts as in the one named last.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from xml.etree import ElementTree

from support_rows import RESULTS


@dataclass
class FileResult:
    """Of one test file. `not_passed`: the names of those that failed or were skipped, and what pytest said of them."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    not_passed: dict[str, str] = field(default_factory=dict)


def main() -> None:
    found: dict[str, FileResult] = defaultdict(FileResult)
    cases = {
        (case.attrib["classname"], case.attrib["name"]): case
        for path in sys.argv[1:]
        for case in ElementTree.parse(path).iter("testcase")  # noqa: S314  our own pytest wrote it
    }
    for (file, name), case in cases.items():
        count(found[file], name, case)
    commit = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=True)
    document = {"commit": commit.stdout.strip(), "files": {file: asdict(found[file]) for file in sorted(found)}}
    (RESULTS / "test-slow.json").write_text(json.dumps(document, indent=1) + "\n")
    for file in sorted(found):
        one = found[file]
        print(f"{file}: {one.passed} passed, {one.failed} failed, {one.skipped} skipped, {one.seconds:.0f} s")


def count(result: FileResult, name: str, case: ElementTree.Element) -> None:
    result.seconds = round(result.seconds + float(case.attrib["time"]), 1)
    for kind, said in ((child.tag, child.attrib.get("message", "")) for child in case):
        if kind in ("failure", "error", "skipped"):
            result.not_passed[name] = f"{kind}: {said.splitlines()[0][:200] if said else ''}"
            result.skipped += kind == "skipped"
            result.failed += kind != "skipped"
            return
    result.passed += 1


if __name__ == "__main__":
    main()
