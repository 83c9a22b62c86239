"""Check of the number formats: each engine's back end can serve its model's on this machine."""

from __future__ import annotations

from engines import schemes
from engines.errors import TandemError
from engines.schemes import MachineKind
from engines.vllm import Build
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, worst


def check_schemes(context: Context) -> Finding:
    """Engines of a vLLM that cannot be asked are left out: the check of packages says why."""
    machines = {
        name: schemes.cpu_kind() if build.is_cpu else schemes.gpu_kind()
        for name, build in context.builds.items()
        if isinstance(build, Build)
    }
    machines |= {name: schemes.here() for name in context.engines("sglang")}
    if not machines:
        return ok("no vLLM or SGLang engine is configured, or none can be asked which build it has")
    return worst([_check_scheme(name, machine, context) for name, machine in machines.items()])


def _check_scheme(name: str, machine: MachineKind, context: Context) -> Finding:
    engine = context.config.engines[name]
    try:
        schemes.check_scheme(name, engine, machine)
        return ok(f"engine {name}: {schemes.scheme_of(name, engine)} on {machine}")
    except TandemError as error:
        return fail(error.message, context.tandem("doctor", engine.model))
