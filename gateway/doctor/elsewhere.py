"""The check of remote servers: each answers, has the model, and says what it can't do."""

from __future__ import annotations

import shlex

from engines.config import EngineConfig
from engines.errors import TandemError
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, worst


def check_remote_servers(context: Context) -> Finding:
    """What a server lacks is said and is no fault: requests that need it are refused by name."""
    findings = [_check_server(name, context) for name in context.engines("remote")]
    return worst(findings) if findings else ok("no engine is a server elsewhere")


def _check_server(name: str, context: Context) -> Finding:
    engine, found = context.config.engines[name], context.remotes[name]
    if isinstance(found, TandemError):
        return fail(found.message, ask_command(engine))
    return ok(f"engine {name}: {engine.model} at {engine.url}; {found.words()}")


def ask_command(engine: EngineConfig) -> str:
    """Asks the server by hand, with the same key."""
    return f"curl -sS {_key_header(engine.api_key_env)}{shlex.quote(_models_of(engine.url))}"


def _key_header(variable: str) -> str:
    return f'-H "Authorization: Bearer ${variable}" ' if variable else ""


def _models_of(url: str) -> str:
    return f"{url.rstrip('/')}/models"
