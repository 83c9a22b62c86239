"""`tandem status`: what runs, how loaded it is, what each alias names, and what to do about what is wrong."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import ExitCode, print_json, print_rich, say
from gateway.cli.options import ConfigOption, JsonOption, UrlOption, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.cli.overview import Overview, Silence

_TIMEOUT_S = 10.0


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Draw anew until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.05)] = 1.0,
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show replicas, load, latency and what aliases name. Exit 3 if nothing can answer.

    tandem status --watch --every 0.5

    tandem status --url http://127.0.0.1:8000 --json
    """
    if not watch:
        _show_once(url, config, as_json=as_json)
        return
    try:
        _show_on(url, config, every, as_json=as_json)
    except KeyboardInterrupt:  # how a watch ends
        return


def _show_once(url: str | None, config: Path | None, *, as_json: bool) -> None:
    from gateway.cli.overview import Overview

    seen = next(_looks(url, config))
    if as_json:
        print_json(seen.document())
    elif isinstance(seen, Overview):
        from gateway.cli.overview_table import render

        print_rich(render(seen))
    else:
        for problem in seen.problems():
            say(f"{problem.what}. Do: {problem.do}")
    if not isinstance(seen, Overview) or not seen.is_ready:
        raise typer.Exit(ExitCode.UNHEALTHY)


def _show_on(url: str | None, config: Path | None, every_s: float, *, as_json: bool) -> None:
    with _screen(as_json=as_json) as show:
        for seen in _looks(url, config):
            show(seen)
            time.sleep(every_s)


@contextmanager
def _screen(*, as_json: bool) -> Iterator[Callable[[Overview | Silence], None]]:
    """Where looks go: a terminal is drawn anew, a pipe gets one look after the other."""
    if as_json:
        yield lambda seen: print(json.dumps(seen.document(), ensure_ascii=False), flush=True)
        return
    from gateway.cli.overview_table import render

    if not sys.stdout.isatty():
        yield lambda seen: print_rich(render(seen))
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda seen: live.update(render(seen), refresh=True)


def _looks(url: str | None, config: Path | None) -> Iterator[Overview | Silence]:
    """One look after the other, for as long as somebody asks."""
    from gateway.cli.overview import Silence, try_look
    from gateway.cli.parts import find_parts
    from gateway.client import GatewayClient

    resolved = None if url else load(config)
    place = url or (resolved.gateway.url if resolved else "")
    with GatewayClient(place, timeout_s=_TIMEOUT_S) as gateway:
        while True:
            seen = try_look(gateway)
            if isinstance(seen, str):
                yield Silence(place, seen, find_parts(resolved, config) if resolved else None)
            else:
                yield seen
