"""`demo.png`: each version's accuracy over time, what the background load felt, and which replica answered it as which
version, with swap and rollback marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gateway.demo.evaluate import Evaluation
from gateway.demo.load import Reply

_COLOURS = ("#4c6a92", "#d9772b", "#5b8c5a")
_BAND = "#f0f0ec"
_MARK = "#8a1c1c"
_INK = "#2b2b2b"
_WINDOW = 50


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened at `at_s` (`time.monotonic()`)."""

    label: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the picture shows; all times are `time.monotonic()`."""

    start_s: float
    end_s: float
    stages: tuple[tuple[str, float, float], ...]
    evaluations: tuple[Evaluation, ...]
    replies: tuple[Reply, ...]
    moments: tuple[Moment, ...]


def draw(timeline: Timeline, path: Path) -> None:
    """Writes a PNG of about 1,600 x 1,000 pixels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK}):
        figure, (top, middle, bottom) = plt.subplots(
            3, 1, figsize=(13, 8.6), sharex=True, height_ratios=(1.0, 1.1, 0.22), layout="constrained"
        )
        colours = _colours(timeline)
        for axes in (top, middle, bottom):
            _draw_stages(axes, timeline, with_labels=axes is top)
            _draw_moments(axes, timeline, with_labels=axes is top)
            axes.spines[["top", "right"]].set_visible(False)
        _draw_accuracy(top, timeline, colours)
        _draw_latency(middle, timeline, colours)
        _draw_replicas(bottom, timeline, colours)
        figure.suptitle("A model that learns while it serves", fontsize=14, fontweight="bold", x=0.01, ha="left")
        figure.savefig(path, dpi=125, format="png")
        plt.close(figure)


def _colours(timeline: Timeline) -> dict[str, str]:
    versions = dict.fromkeys(evaluation.version for evaluation in timeline.evaluations)
    return dict(zip(versions, _COLOURS, strict=False))


def _draw_stages(axes: Any, timeline: Timeline, *, with_labels: bool) -> None:
    for number, (name, start_s, end_s) in enumerate(timeline.stages):
        left, right = start_s - timeline.start_s, end_s - timeline.start_s
        if number % 2:
            axes.axvspan(left, right, color=_BAND, lw=0, zorder=0)
        if with_labels and right - left > (timeline.end_s - timeline.start_s) * 0.02:
            axes.text(
                (left + right) / 2, 0.02, name.replace("_", " "), rotation=90, ha="center", va="bottom", fontsize=8,
                color="#777777", transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _draw_moments(axes: Any, timeline: Timeline, *, with_labels: bool) -> None:
    for number, moment in enumerate(timeline.moments):
        at_s = moment.at_s - timeline.start_s
        axes.axvline(at_s, color=_MARK, lw=1.4, ls=(0, (4, 2)), zorder=2)
        if with_labels:
            axes.text(
                at_s, 1.01 + 0.05 * (number % 2), moment.label, color=_MARK, fontsize=9, ha="center", va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _draw_accuracy(axes: Any, timeline: Timeline, colours: dict[str, str]) -> None:
    _draw_what_users_get(axes, timeline, colours)
    for evaluation in timeline.evaluations:
        times, shares = _running_accuracy(evaluation, timeline.start_s)
        colour = colours[evaluation.version]
        axes.plot(times, shares, color=colour, lw=1.2, alpha=0.6, zorder=3)
        axes.hlines(evaluation.accuracy, times[0], times[-1], color=colour, lw=4, zorder=4)
        axes.annotate(
            f"{evaluation.version}\n{evaluation.accuracy:.3f}", (times[-1], evaluation.accuracy), xytext=(6, 0),
            textcoords="offset points", va="center", color=colour, fontweight="bold", zorder=5,
        )  # fmt: skip
    axes.set_ylim(0.0, 1.08)
    axes.set_ylabel(f"accuracy, held-out questions\n(thin: the last {_WINDOW} answers)")


def _draw_what_users_get(axes: Any, timeline: Timeline, colours: dict[str, str]) -> None:
    """The accuracy of the version that the alias names, for as long as it names it."""
    first_s = min(reply.started_s for reply in timeline.replies)
    bounds = [first_s, *(moment.at_s for moment in timeline.moments), max(reply.ended_s for reply in timeline.replies)]
    for evaluation, (start_s, end_s) in zip(timeline.evaluations, pairwise(bounds), strict=True):
        span = (start_s - timeline.start_s, end_s - timeline.start_s)
        axes.hlines(evaluation.accuracy, *span, color=colours[evaluation.version], lw=2, alpha=0.35, zorder=2)


def _running_accuracy(evaluation: Evaluation, start_s: float) -> tuple[list[float], list[float]]:
    answers = sorted(evaluation.answers, key=lambda answer: answer.ended_s)
    windows = [answers[max(0, end - _WINDOW) : end] for end in range(_WINDOW, len(answers) + 1, 5)] or [answers]
    times = [window[-1].ended_s - start_s for window in windows]
    return times, [sum(answer.is_right for answer in window) / len(window) for window in windows]


def _draw_latency(axes: Any, timeline: Timeline, colours: dict[str, str]) -> None:
    answered = [reply for reply in timeline.replies if not reply.error]
    for version, colour in colours.items():
        own = [reply for reply in answered if reply.version == version]
        whole = [(r.started_s - timeline.start_s, (r.ended_s - r.started_s) * 1000) for r in own]
        first = [(r.started_s - timeline.start_s, r.ttft_s * 1000) for r in own if r.ttft_s is not None]
        _scatter(axes, whole, color=colour, marker="o", s=16, alpha=0.75, lw=0, label=f"{version}: whole answer")
        _scatter(axes, first, color=colour, marker="_", s=28, lw=1.1, alpha=0.9, label=f"{version}: first token")
    failed = [(reply.started_s - timeline.start_s, 1.0) for reply in timeline.replies if reply.error]
    _scatter(axes, failed, color="red", marker="x", s=40, label="failed")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, timeline.end_s - timeline.start_s)
    axes.set_ylabel("background requests: latency, ms")
    axes.legend(loc="upper left", ncols=2, fontsize=8, framealpha=0.9, edgecolor="none")


def _draw_replicas(axes: Any, timeline: Timeline, colours: dict[str, str]) -> None:
    """A line for each replica, a tick for each reply in the colour of the version that gave it."""
    answered = [reply for reply in timeline.replies if not reply.error]
    replicas = sorted({reply.replica for reply in answered}, reverse=True)
    for version, colour in colours.items():
        own = [reply for reply in answered if reply.version == version]
        ticks = [(reply.ended_s - timeline.start_s, replicas.index(reply.replica)) for reply in own]
        _scatter(axes, ticks, color=colour, marker="|", s=70, lw=1.0, alpha=0.9)
    axes.set_yticks(range(len(replicas)), [f"by {name}" for name in replicas])
    axes.set_ylim(-0.6, len(replicas) - 0.4)
    axes.set_xlabel("seconds since the demo began")


def _scatter(axes: Any, points: Sequence[tuple[float, float]], **style: Any) -> None:
    if points:
        axes.scatter(*zip(*points, strict=True), zorder=3, **style)
