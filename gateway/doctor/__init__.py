"""`tandem doctor`: one list of checks, each a function of one context, and how they are run.

To add a check: write `check_x(context) -> Finding` in the file of its group, and put it into `CHECKS`. A check looks
and changes nothing. One that raises is a FAIL of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gateway.doctor.accelerators import check_accelerators, check_memory
from gateway.doctor.cluster import check_ray
from gateway.doctor.context import Context, survey
from gateway.doctor.elsewhere import check_remote_servers
from gateway.doctor.finding import Checked, Finding, Level, fail
from gateway.doctor.folders import (
    check_data_directory,
    check_disk,
    check_filesystem,
    check_open_files,
    check_shared_memory,
)
from gateway.doctor.interpreters import check_engine_packages, check_packages, check_python
from gateway.doctor.models import check_models
from gateway.doctor.orphans import check_orphans
from gateway.doctor.registry import check_registry, check_unfinished
from gateway.doctor.schemes import check_schemes
from gateway.doctor.service import check_port, check_replicas
from gateway.doctor.store import check_clock, check_integrity, check_migration, check_store

__all__ = ["CHECKS", "Checked", "Context", "Finding", "Level", "diagnose", "is_well", "survey"]

Check = Callable[[Context], Finding]

CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_engine_packages,
    check_models,
    check_schemes,
    check_remote_servers,
    check_accelerators,
    check_memory,
    check_shared_memory,
    check_disk,
    check_open_files,
    check_data_directory,
    check_filesystem,
    check_store,
    check_migration,
    check_integrity,
    check_clock,
    check_registry,
    check_unfinished,
    check_port,
    check_ray,
    check_replicas,
    check_orphans,
)


def diagnose(context: Context, checks: Sequence[Check] = CHECKS) -> Iterable[Checked]:
    """Every check's finding, as it is found."""
    for check in checks:
        yield Checked(_name_of(check), _run(check, context))


def is_well(found: Sequence[Checked]) -> bool:
    """Whether nothing fails; what warns is well enough to run."""
    return all(checked.finding.level is not Level.FAIL for checked in found)


def _run(check: Check, context: Context) -> Finding:
    try:
        return check(context)
    except Exception as error:  # a check that stumbles is a finding too, and must not hide the others
        said = str(error).splitlines()[0] if str(error) else "no message"
        return fail(f"the check itself failed: {type(error).__name__}: {said}", context.tandem("status"))


def _name_of(check: Check) -> str:
    return check.__name__.removeprefix("check_").replace("_", " ")
