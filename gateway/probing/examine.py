"""`tandem doctor MODEL`: all steps, from a directory to verdicts."""

from __future__ import annotations

import shutil
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
from gateway.probing.serving import Model, Served, serve
from gateway.probing.subjects import family_verdict, inspection_verdicts
from gateway.probing.verdict import Outcome, Verdict, all_work, fails, unknown, works
from gateway.probing.verifying import verify_verdict

Say = Callable[[str], None]
NO_PROFILE = "which of its linears an adapter may touch is not known"


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
    scheme = _scheme_verdict(config, asked)
    with tempfile.TemporaryDirectory(prefix="tandem-doctor-") as scratch:
        found = await _inspected(model_dir, asked, Path(scratch), say)
        known = _known(model_dir)
        profile = known or profile_for(found, architectures)
        read = [family_verdict(architectures), scheme, *inspection_verdicts(found)]
        if profile is None:
            return Examination((*read, unknown("serves", f"not tried: {NO_PROFILE}")))
        read.append(verify_verdict(found, profile, config.max_lora_rank))
        if scheme.outcome is Outcome.WORKS:
            model = Model(found, profile, _limit(config, asked), is_probed=known is None)
            served = await _served(config, model, say)
        else:
            served = Served((unknown("serves", f"not tried: {scheme.found}"),), profile)
    return Examination((*read, *served.verdicts), "" if known else row_of(served.profile))


async def _inspected(model_dir: Path, asked: Combination, scratch: Path, say: Say) -> Inspection:
    if reason := why_no_room(model_dir, asked.scheme, Machine()):
        return Inspection(path=str(model_dir), faults=(Fault(step="load", reason=reason),))
    say(f"loading {model_dir} with transformers, in float32")
    return await inspect(model_dir, scratch)


async def _served(config: EngineConfig, model: Model, say: Say) -> Served:
    """The engine's log is kept only where something failed, since the verdicts name it."""
    say(f"starting a {config.kind} engine for it")
    logs = tempfile.mkdtemp(prefix="tandem-doctor-log-")
    served = await serve(engine_for(config, Path(logs), model.profile if model.is_probed else None), model)
    if all_work(served.verdicts):
        shutil.rmtree(logs)
    else:
        say(f"the engine's log is kept in {logs}")
    return served


def _scheme_verdict(config: EngineConfig, asked: Combination) -> Verdict:
    try:
        check_scheme(NAME, config, asked.machine)
    except ConfigError as error:
        return fails("scheme", error.message.partition(": ")[2])
    if asked.scheme is Scheme.UNKNOWN:
        return works("scheme", f"of a format that no rule names; {config.kind} on {asked.machine} is tried")
    return works("scheme", f"{asked.scheme}; nothing speaks against {config.kind} on {asked.machine}")


def _known(model_dir: Path) -> FamilyProfile | None:
    try:
        return profile_of(model_dir)
    except BadRequest:
        return None


def _limit(config: EngineConfig, asked: Combination) -> float:
    is_exact = asked.scheme is Scheme.UNQUANTIZED and asked.machine.is_cpu and config.dtype in ("auto", "float32")
    return MAX_MEAN_ERROR if is_exact else MAX_MEAN_ERROR_ROUNDED
