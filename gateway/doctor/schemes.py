"""Check of the number formats: each engine's back end can serve its model's on this machine."""

from __future__ import annotations

from engines import schemes
from engines.errors import TandemError
from engines.vllm import Build
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, worst


def check_schemes(context: Context) -> Finding:
    """Engines of a vLLM that cannot be asked are left out: the check of packages says why."""
    builds = {name: build for name, build in context.builds.items() if isinstance(build, Build)}
    if not builds:
        return ok("no vLLM engine is configured, or none can be asked which build it has")
    return worst([_check_scheme(name, build, context) for name, build in builds.items()])


def _check_scheme(name: str, build: Build, context: Context) -> Finding:
    engine = context.config.engines[name]
    machine = schemes.cpu_kind() if build.is_cpu else schemes.gpu_kind()
    try:
        schemes.check_scheme(name, engine, machine)
        return ok(f"engine {name}: {schemes.scheme_of(name, engine)} on {machine}")
    except TandemError as error:
        return fail(error.message, context.tandem("doctor", engine.model))
