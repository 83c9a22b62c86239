"""`tandem engines`: which base model each engine serves, and the release of another one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import Internal, Refused
from gateway.cli.console import print_json, print_table, say
from gateway.cli.options import ConfigOption, JsonOption, UrlOption, client

if TYPE_CHECKING:
    from gateway.client import GatewayClient, Generation

app = typer.Typer(help="List the base models of engines, and release another one.", no_args_is_help=True)
POLL_S = 0.5


@app.command("ls")
def ls(url: UrlOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List each engine's generations, newest last.

    tandem engines ls

    tandem engines ls --json
    """
    with client(url, config) as gateway:
        engines = gateway.engines()
    if as_json:
        print_json(engines)
    else:
        rows = [_row(generation) for engine in engines for generation in engine.generations]
        print_table(("generation", "state", "model", "why"), rows)


@app.command("release")
def release(
    engine: Annotated[str, typer.Argument(help="An engine of the configuration, like small.")],
    directory: Annotated[Path, typer.Argument(help="A model's directory, as `tandem versions export` writes it.")],
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Swap the weights in running replicas: there is no room for one more.")
    ] = False,
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve another base model, by a rolling swap of replicas: new one up and probed before an old one goes.

    Every alias of the engine then names the new base; adapters of the old one stay with it. Exit 4 if the release
    fails: then nothing was changed. To go back, release the old model's directory.

    tandem engines release small ./merged-w4a16

    tandem engines release small ./merged-w4a16 --in-place --json
    """
    with client(url, config) as gateway:
        begun = gateway.release(engine, str(directory.absolute()), in_place=in_place)
        say(f"{begun.id}: {begun.model}")
        ended = _follow(gateway, begun)
    if as_json:
        print_json(ended)
    else:
        print_table(("step", "seconds"), [(step.step, f"{step.seconds:.2f}") for step in ended.steps])
    if ended.state != "live":
        raise Refused(f"{ended.id} was not released: {ended.reason}")
    say(f"{ended.engine} serves {ended.version} now" + (f", but {ended.reason}" if ended.reason else ""))


def _follow(gateway: GatewayClient, begun: Generation) -> Generation:
    """Says what happens until the release has ended; how long that takes is the gateway's to bound."""
    num_said, said = 0, ""
    while True:
        now = _find(gateway, begun)
        for step in now.steps[num_said:]:
            say(f"  {step.step}: {step.seconds:.2f} s")
        num_said = len(now.steps)
        if not now.is_under_way:
            return now
        if now.step and now.step != said:
            say(f"  {now.step} ...")
            said = now.step
        time.sleep(POLL_S)


def _find(gateway: GatewayClient, begun: Generation) -> Generation:
    for row in gateway.engine(begun.engine).generations:
        if row.id == begun.id:
            return row
    raise Internal(f"the gateway at {gateway.url} has lost {begun.id}")


def _row(row: Generation) -> tuple[str, ...]:
    return row.id, row.state, row.model, row.reason or "-"
