"""Checks of versions: their files are there and are what was registered, and no publish was left half done."""

from __future__ import annotations

import hashlib
import time

from engines.adapter.directory import WEIGHTS_FILE
from engines.types import VersionName
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, warn, worst
from gateway.doctor.rows import Rows, StoreFault, read_rows
from gateway.types import VersionRow, VersionState

UNFINISHED = frozenset({VersionState.STAGED, VersionState.PROBED})
_LOOK_AGAIN_S = 2.0
_POLL_S = 0.1


def check_registry(context: Context) -> Finding:
    """Each version has its directory; those that aliases name have the bytes that were registered, too."""
    if context.rows is None:
        return ok("there are no rows to look at")
    named = named_versions(context.rows)
    findings = [_check_version(row, row.name in named, context) for row in context.rows.versions]
    bad = [finding for finding in findings if finding.mend]
    num_hashed = sum(row.name in named for row in context.rows.versions)
    return worst(bad) if bad else ok(f"{len(findings)} versions have their files; {num_hashed} were read and hashed")


def check_unfinished(context: Context) -> Finding:
    """A version that is staged or probed although nobody publishes it."""
    if context.rows is None:
        return ok("there are no rows to look at")
    found = unfinished(context.rows)
    if found and context.running:
        found = _still(found, context.config.store.url)
    if not found:
        return ok("no publish was left half done")
    words = f"left half published: {', '.join(map(str, sorted(found)))}"
    if context.running or context.gateway_pid is not None:
        return warn(words, context.tandem("versions", "promote", str(min(found))))
    return warn(f"{words}; the next start finishes or undoes it", context.tandem("serve", "--detach"))


def named_versions(rows: Rows) -> frozenset[VersionName]:
    """The adapters that an alias calls live or previous."""
    names = (name for row in rows.aliases for name in (row.live, row.previous))
    return frozenset(name for name in names if name is not None and not name.is_base)


def unfinished(rows: Rows) -> frozenset[VersionName]:
    return frozenset(row.name for row in rows.versions if row.state in UNFINISHED)


def _still(found: frozenset[VersionName], url: str) -> frozenset[VersionName]:
    """Those that stay so: a publish under way leaves these states within moments."""
    deadline_s = time.monotonic() + _LOOK_AGAIN_S
    while found and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        try:
            found &= unfinished(read_rows(url))
        except StoreFault:  # busy: what was seen before stands until the next look
            continue
    return found


def _check_version(row: VersionRow, is_named: bool, context: Context) -> Finding:
    weights = row.path / WEIGHTS_FILE
    if not weights.is_file():
        return _lost(row, f"{row.name} has no {weights}", is_named, context)
    if not is_named:
        return ok(str(row.name))
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != row.weights_sha256:
        return _lost(row, f"{weights} is not what was registered as {row.name}", is_named, context)
    return ok(str(row.name))


def _lost(row: VersionRow, words: str, is_named: bool, context: Context) -> Finding:
    if not is_named:
        return warn(f"{words}: it cannot be promoted again", context.tandem("versions", "ls"))
    return fail(
        f"{words}, and '{row.name.alias}' names it: no replica that starts can load it",
        context.tandem("versions", "rollback", row.name.alias),
    )
