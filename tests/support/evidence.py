"""A pytest plugin: `--support-report FOLDER` writes which engine, family, scheme and aspect each test saw work.

A test is evidence if it takes an engine: a fixture whose value has a `config` that is an `EngineConfig` (as every
`Engine` of ours has). Of what it is evidence, in this order:

- what it called `supports(config, Aspect.X)` for; `config` may also be the TOML file of a stack, or of a GRPO job;
- the aspects of its marker, `@pytest.mark.supports(Aspect.SWAP)`;
- `adapter`, if it makes adapters (fixture `make_adapter`), else `serve`.

Results of earlier runs in the same file are kept, test by test.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_rows import Aspect, Outcome, Seen, merge, opened, report_path, seen_by, write

from engines.config import EngineConfig
from engines.schemes import here

MARKER = "supports"
SAID = pytest.StashKey[list[Seen]]()
ADAPTER_FIXTURES = frozenset({"make_adapter", "random_adapter"})

Supports = Callable[[EngineConfig | Path, Aspect], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "Merge what tests saw of engines into FOLDER/support-MACHINE.json."
    parser.addoption("--support-report", metavar="FOLDER", help=words)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "supports(*aspects): what a test with an engine is evidence of")
    if folder := config.getoption("--support-report"):
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--support-report is written by one process: leave out -n")
        config.pluginmanager.register(Recorder(report_path(Path(folder), here())), "support-recorder")


@pytest.fixture
def supports(request: pytest.FixtureRequest) -> Supports:
    """Says what this test is evidence of, if it passes."""

    def say(config: EngineConfig | Path, aspect: Aspect) -> None:
        for engine in _engines_in(config):
            request.node.stash.setdefault(SAID, []).append(seen_by(engine, aspect))

    return say


class Recorder:
    """Collects outcomes, and writes them at the session's end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: list[Outcome] = []
        self._broken: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        report = yield
        if report.when == "call" and not report.skipped:
            seen = dict.fromkeys(evidence_of(item))
            self._outcomes += [Outcome(one, item.nodeid, report.passed) for one in seen]
        if report.failed:
            self._broken.append(item.nodeid)
        return report

    def pytest_sessionfinish(self) -> None:
        if self._outcomes or self._broken:
            write(self._path, merge(opened(self._path), self._outcomes, self._broken))


def evidence_of(item: pytest.Item) -> Iterator[Seen]:
    """What `item` says something of, whether it passed or not."""
    if said := item.stash.get(SAID, []):
        yield from said
        return
    for config in _configs_of(item):
        for aspect in _aspects_of(item):
            yield seen_by(config, aspect)


def _configs_of(item: pytest.Item) -> Iterator[EngineConfig]:
    for value in getattr(item, "funcargs", {}).values():
        config = getattr(value, "config", None)
        if isinstance(config, EngineConfig):
            yield config


def _aspects_of(item: pytest.Item) -> tuple[Aspect, ...]:
    marker = item.get_closest_marker(MARKER)
    if marker is not None:
        return tuple(Aspect(aspect) for aspect in marker.args)
    makes_adapters = not ADAPTER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
    return (Aspect.ADAPTER if makes_adapters else Aspect.SERVE,)


def _engines_in(config: EngineConfig | Path) -> tuple[EngineConfig, ...]:
    if isinstance(config, EngineConfig):
        return (config,)
    values = tomllib.loads(config.read_text())
    sections = values["engines"].values() if "engines" in values else [values["rollout"]["own"]]
    return tuple(EngineConfig.model_validate(section) for section in sections)
