"""Whether an adapter of a model passes the check that every adapter must pass before an engine sees it."""

from __future__ import annotations

from pathlib import Path

from engines.adapter import read_base, verify
from engines.errors import BadRequest, Refused
from engines.inspection import Inspection
from engines.profiles import FamilyProfile
from gateway.probing.verdict import Verdict, fails, unknown, works

SUBJECT = "adapter verifies"


def verify_verdict(found: Inspection, profile: FamilyProfile, max_rank: int) -> Verdict:
    """By the shapes in the model's weight files, which must call modules as an adapter's file does."""
    if not found.adapter:
        return unknown(SUBJECT, found.fault("adapter") or "there is none")
    try:
        verified = verify(Path(found.adapter), read_base(Path(found.path), profile), max_rank)
    except (BadRequest, Refused) as error:
        return fails(SUBJECT, error.message)
    return works(SUBJECT, f"{len(verified.modules)} modules of the right shapes, rank {verified.rank}")
