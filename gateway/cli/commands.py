"""All verbs of `tandem` in one tree, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys

import typer

from engines.errors import TandemError
from gateway.cli import chat, config, data, demo, doctor, engines, feedback, jobs, serve, status, train, versions
from gateway.cli.console import exit_code_of, say

app = typer.Typer(
    name="tandem",
    help="Serve vision-language models and train them while they serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("stop")(serve.stop)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("status")(status.status)
app.command("chat")(chat.chat)
app.command("feedback")(feedback.feedback)
app.add_typer(versions.app, name="versions")
app.add_typer(engines.app, name="engines")
app.add_typer(train.app, name="train")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(config.app, name="config")


def main() -> None:
    """Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 unhealthy, 4 refused by a gate."""
    try:
        app()
    except TandemError as error:
        say(f"error: {error.message}")
        if error.detail:
            say(error.detail)
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
