"""Writes docs/support.md: what tests saw (docs/results/support-*.json), and what `engines.schemes` refuses.

python tests/support/support_table.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support_rows import ANY_FAMILY, RESULTS, Aspect, Report, Row, committed

from engines.profiles import PROFILES
from engines.schemes import RULES, Combination, MachineKind, Rule, Scheme, rule_against
from engines.schemes.scheme import MEANINGS

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
MACHINES = (MachineKind.CPU_AVX2, MachineKind.CPU_AVX512, MachineKind.CPU_AMX, MachineKind.GPU_HOPPER)
"""Those that have a table though no test ran there."""
KNOWN_SCHEMES = tuple(scheme for scheme in Scheme if scheme is not Scheme.UNKNOWN)

HEAD = """\
# What works where

Generated from what tests saw and from what engines refuse at their start; not written by hand. `tandem doctor MODEL`
says the same of one model on one machine, known family or not.

- **tested**: tests of it passed on a machine of this kind and none failed; how many, in which number format of
  activations, and the file that names them.
- **fails**: a test of it failed there.
- **untested**: nothing speaks against it, and no test ran.
- **refused**: an engine is not started, or an adapter not loaded; the number leads to the reason.

`serve` is text, images and streams; `adapter`: loaded beside the base, dropped, answers as merged; `swap`: another
version takes over without a restart; `SFT`, `GRPO`: what is trained is served; `export`: a merged, quantized copy is.

    pytest tests/contract tests/e2e --support-report docs/results
    python tests/support/support_join.py FILE...       # what was made elsewhere, as on a machine with a GPU
    python tests/support/support_table.py
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a machine's table; several schemes or families where all cells are the same."""

    engine: str
    schemes: tuple[str, ...]
    families: tuple[str, ...]
    cells: tuple[str, ...]


def page(reports: Sequence[Report]) -> str:
    """The whole of docs/support.md."""
    parts = [HEAD, _schemes()]
    parts += [_section(machine, reports) for machine in _machines(reports)]
    parts += [_refusals(), _evidence(reports)]
    return "\n".join(parts)


def _machines(reports: Sequence[Report]) -> tuple[MachineKind, ...]:
    seen = {report.machine for report in reports}
    return tuple(machine for machine in MachineKind if machine in MACHINES or machine in seen)


def _section(machine: MachineKind, reports: Sequence[Report]) -> str:
    rows = [row for report in reports if report.machine is machine for row in report.rows]
    lines = _merged(_lines(machine, rows))
    head = ("engine", "scheme", "family", *(aspect.value for aspect in Aspect))
    body = [(line.engine, ", ".join(line.schemes), ", ".join(line.families), *line.cells) for line in lines]
    return f"## {machine}\n\n{_table(head, body)}"


def _lines(machine: MachineKind, rows: Sequence[Row]) -> Iterator[Line]:
    for engine, scheme, family in _combinations(machine, rows):
        rule = rule_against(Combination(engine, family, scheme, _place_of(engine, machine)))
        of_it = [row for row in rows if (row.engine, row.scheme, row.family) == (engine, scheme, family)]
        cells = tuple(_cell(aspect, rule, of_it, machine) for aspect in Aspect)
        yield Line(engine, (scheme.value,), (family,), cells)


def _combinations(machine: MachineKind, rows: Sequence[Row]) -> Iterator[tuple[str, Scheme, str]]:
    engines = ("vllm", "sglang")
    planned = ((engine, scheme, family) for engine in engines for scheme in KNOWN_SCHEMES for family in PROFILES)
    without_model = ((engine, Scheme.UNKNOWN, ANY_FAMILY) for engine in ("remote", "fake"))
    seen = ((row.engine, row.scheme, row.family) for row in rows)
    return iter(dict.fromkeys((*planned, *without_model, *seen)))


def _place_of(engine: str, machine: MachineKind) -> MachineKind:
    return MachineKind.ELSEWHERE if engine == "remote" else machine


def _cell(aspect: Aspect, rule: Rule | None, rows: Iterable[Row], machine: MachineKind) -> str:
    if rule is not None and not (rule.base_is_served and aspect is Aspect.SERVE):
        return f"refused [{RULES.index(rule) + 1}]"
    of_it = [row for row in rows if row.aspect is aspect]
    if not of_it:
        return "untested"
    words = "tested" if all(row.is_tested for row in of_it) else "**fails**"
    counts = ", ".join(f"{row.dtype} {len(row.passed)}".removeprefix("- ") for row in of_it)
    return f"[{words}](results/support-{machine}.json) ({counts})"


def _merged(lines: Iterable[Line]) -> list[Line]:
    """Families of one scheme, then schemes of the same families, where an engine's cells are the same."""
    by_family: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for line in lines:
        by_family.setdefault((line.engine, line.schemes, line.cells), []).extend(line.families)
    by_scheme: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (engine, schemes, cells), families in by_family.items():
        by_scheme.setdefault((engine, _all_or(families), cells), []).extend(schemes)
    return [Line(engine, _any_of(schemes), families, cells) for (engine, families, cells), schemes in by_scheme.items()]


def _any_of(schemes: Sequence[str]) -> tuple[str, ...]:
    if set(schemes) == {scheme.value for scheme in KNOWN_SCHEMES}:
        return ("any",)
    return tuple("-" if scheme == Scheme.UNKNOWN.value else scheme for scheme in schemes)


def _all_or(families: Sequence[str]) -> tuple[str, ...]:
    return (ANY_FAMILY,) if len(PROFILES) > 1 and set(families) == set(PROFILES) else tuple(families)


def _schemes() -> str:
    return "## Schemes\n\n" + _table(("scheme", "means"), [(scheme.value, MEANINGS[scheme]) for scheme in Scheme])


def _refusals() -> str:
    lines = [f"{number}. {_sentence(rule)}" for number, rule in enumerate(RULES, start=1)]
    return "## Refusals\n\n" + "\n".join(lines) + "\n"


def _sentence(rule: Rule) -> str:
    kinds, schemes = ", ".join(sorted(rule.kinds)), _names(rule.schemes, Scheme)
    families = f" {', '.join(sorted(rule.families))}" if rule.families else ""
    what = "adapters" if rule.base_is_served else f"{schemes}{families}"
    return f"{kinds}, {what} on {_names(rule.machines, MachineKind)}: {rule.why}. Instead: {rule.instead}."


def _names(some: frozenset[Scheme] | frozenset[MachineKind], kind: type[Scheme] | type[MachineKind]) -> str:
    everything = frozenset(kind)
    if some == everything:
        return "any scheme" if kind is Scheme else "any machine"
    if kind is MachineKind and some == frozenset(machine for machine in MachineKind if machine.is_cpu):
        return "any CPU"
    return ", ".join(one.value for one in kind if one in some)


def _evidence(reports: Sequence[Report]) -> str:
    lines = [
        (f"[{report.machine}](results/support-{report.machine}.json)", report.processor,
         ", ".join(f"{name} {version}" for name, version in report.versions.items()),
         str(len({test for row in report.rows for test in row.passed})))
        for report in reports
    ]  # fmt: skip
    return "## Evidence\n\n" + _table(("machine", "processor", "versions", "tests"), lines)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rows = (head, ["---"] * len(head), *body)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page(committed(RESULTS)))
    print(PAGE)
