"""`tandem doctor MODEL`: all steps, from a directory to verdicts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.config import EngineConfig
from engines.errors import BadRequest, ConfigError
from engines.inspection import Fault, Inspection
from engines.profiles import FamilyProfile, architectures_of, profile_of
from engines.schemes import Combination, MachineKind, Scheme, check_scheme, combination_of
from gateway.doctor.machine import Machine
from gateway.probing.engine import NAME, engine_for
from gateway.probing.learner import inspect
from gateway.probing.parity import MAX_MEAN_ERROR, MAX_MEAN_ERROR_ROUNDED
from gateway.probing.profile import profile_for, row_of
from gateway.probing.room import why_no_room
from gateway.probing.serving import Model, serve
from gateway.probing.subjects import family_verdict, inspection_verdicts
from gateway.probing.verdict import Outcome, Verdict, fails, unknown, works

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Examination:
    """`profile_row` is what one would add to the table of families; empty for a known family, or if none was found."""

    verdicts: tuple[Verdict, ...]
    profile_row: str = ""


async def examine(config: EngineConfig, machine: MachineKind, say: Say) -> Examination:
    """Raises `BadRequest` if the model is no directory with a model's config.json; all else is a verdict."""
    model_dir = config.model_path()
    architectures = architectures_of(model_dir)
    asked = combination_of(NAME, config, machine)
    verdicts = [family_verdict(architectures), _machine_verdict(config, asked)]
    with tempfile.TemporaryDirectory(prefix="tandem-doctor-") as scratch:
        found = await _inspected(model_dir, asked, Path(scratch), say)
        verdicts += inspection_verdicts(found)
        known = _known(model_dir)
        profile = known or profile_for(found, architectures)
        if verdicts[1].outcome is not Outcome.WORKS:
            return _without_engine(verdicts, verdicts[1].found, profile, known)
        if profile is None:
            return _without_engine(verdicts, "which of its linears an adapter may touch is not known", None, known)
        say(f"starting a {config.kind} engine for it")
        model = Model(found, profile, _limit(config, asked), is_probed=known is None)
        served = await serve(engine_for(config, Path(scratch), None if known else profile), model)
    row = "" if known else row_of(served.profile)
    return Examination((*verdicts, *served.verdicts), row)


async def _inspected(model_dir: Path, asked: Combination, scratch: Path, say: Say) -> Inspection:
    if reason := why_no_room(model_dir, asked.scheme, Machine()):
        return Inspection(path=str(model_dir), faults=(Fault(step="load", reason=reason),))
    say(f"loading {model_dir} with transformers, in float32")
    return await inspect(model_dir, scratch)


def _machine_verdict(config: EngineConfig, asked: Combination) -> Verdict:
    try:
        check_scheme(NAME, config, asked.machine)
    except ConfigError as error:
        return fails("scheme", error.message.partition(": ")[2])
    if asked.scheme is Scheme.UNKNOWN:
        return works("scheme", f"of a format that no rule names; {config.kind} on {asked.machine} is tried")
    return works("scheme", f"{asked.scheme}; nothing speaks against {config.kind} on {asked.machine}")


def _without_engine(
    verdicts: list[Verdict], reason: str, profile: FamilyProfile | None, known: FamilyProfile | None
) -> Examination:
    row = row_of(profile) if profile is not None and known is None else ""
    return Examination((*verdicts, unknown("serves", f"not tried: {reason}")), row)


def _known(model_dir: Path) -> FamilyProfile | None:
    try:
        return profile_of(model_dir)
    except BadRequest:
        return None


def _limit(config: EngineConfig, asked: Combination) -> float:
    is_exact = asked.scheme is Scheme.UNQUANTIZED and asked.machine.is_cpu and config.dtype in ("auto", "float32")
    return MAX_MEAN_ERROR if is_exact else MAX_MEAN_ERROR_ROUNDED
