"""What comes of phases with and without training: ratios, and the metrics and points of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmark import Metric
from constant_users import Streamed, p95_gap_ms, p95_ttft_ms
from guest_picture import Point


@dataclass(frozen=True, slots=True)
class Phase:
    """What users got in a time, and what was learned from meanwhile. `label`: the cap's setting, empty without job."""

    label: str
    answers: tuple[Streamed, ...]
    samples_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Training on against off, before and after it."""

    on: Phase
    off: tuple[Streamed, ...]

    @property
    def ttft_ratio(self) -> float:
        return p95_ttft_ms(self.on.answers) / p95_ttft_ms(self.off)

    @property
    def gap_ratio(self) -> float:
        return p95_gap_ms(self.on.answers) / p95_gap_ms(self.off)


def pairs_of(phases: Sequence[Phase]) -> dict[str, list[Pair]]:
    """By the cap's setting. `phases` are off, on, off, on, ... and off."""
    pairs: dict[str, list[Pair]] = {}
    for before, on, after in zip(phases[::2], phases[1::2], phases[2::2], strict=False):
        pairs.setdefault(on.label, []).append(Pair(on, (*before.answers, *after.answers)))
    return pairs


def points_of(pairs: Mapping[str, Sequence[Pair]]) -> list[Point]:
    return [
        Point(
            label,
            fmean(pair.on.samples_per_s for pair in own),
            fmean(pair.ttft_ratio for pair in own),
            fmean(pair.gap_ratio for pair in own),
        )
        for label, own in pairs.items()
    ]


def metrics_of(answers: Sequence[Streamed], phases: Sequence[Phase]) -> list[Metric]:
    """`answers` are all of the users', between phases too."""
    return [
        Metric("requests", "requests", [len(answers)]),
        Metric("failed", "requests", [sum(bool(one.error) for one in answers)]),
        Metric("answered 503", "requests", [sum(one.status == 503 for one in answers)]),
        Metric("off: first token, p95", "ms", [p95_ttft_ms(phase.answers) for phase in phases[::2]]),
        Metric("off: between tokens, p95", "ms", [p95_gap_ms(phase.answers) for phase in phases[::2]]),
        *(metric for label, own in pairs_of(phases).items() for metric in _metrics_of_pairs(label, own)),
    ]


def rows_of(phases: Sequence[Phase]) -> list[list[object]]:
    """For each answer: its phase, that one's label, and when it was asked for and its chunks came, in seconds."""
    return [
        [number, phase.label, *(round(moment_s, 5) for moment_s in (one.started_s, *one.chunks_s))]
        for number, phase in enumerate(phases)
        for one in phase.answers
    ]


def _metrics_of_pairs(label: str, pairs: Sequence[Pair]) -> list[Metric]:
    return [
        Metric(f"{label}: first token, p95, on / off", "x", [pair.ttft_ratio for pair in pairs]),
        Metric(f"{label}: between tokens, p95, on / off", "x", [pair.gap_ratio for pair in pairs]),
        Metric(f"{label}: first token, p95", "ms", [p95_ttft_ms(pair.on.answers) for pair in pairs]),
        Metric(f"{label}: between tokens, p95", "ms", [p95_gap_ms(pair.on.answers) for pair in pairs]),
        Metric(f"{label}: learned from", "samples/s", [pair.on.samples_per_s for pair in pairs]),
    ]
