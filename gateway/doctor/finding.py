"""What a check found: how bad it is, in words, and the one command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """OK; WARN: works, but slower or not for long; FAIL: something does not work."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


_SEVERITY = {Level.OK: 0, Level.WARN: 1, Level.FAIL: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """`mend` is a command for a shell; empty where there is nothing to mend."""

    level: Level
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """One line of the doctor's table."""

    check: str
    finding: Finding


def ok(found: str) -> Finding:
    return Finding(Level.OK, found)


def warn(found: str, mend: str) -> Finding:
    return Finding(Level.WARN, found, mend)


def fail(found: str, mend: str) -> Finding:
    return Finding(Level.FAIL, found, mend)


def worst(findings: Sequence[Finding]) -> Finding:
    """One finding of several: the worst level, what all of that level found, and the first one's command."""
    level = max((finding.level for finding in findings), key=_SEVERITY.__getitem__)
    bad = [finding for finding in findings if finding.level is level]
    return Finding(level, "; ".join(finding.found for finding in bad), bad[0].mend)
