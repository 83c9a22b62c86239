"""The frontier of a guest: how much slower users are served, against how much is learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FIRST, _BETWEEN, _INK, _FAINT = "#4c6a92", "#d9772b", "#2b2b2b", "#777777"


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the cap: samples learned from a second, and users' p95 with training over that without."""

    label: str
    samples_per_s: float
    ttft_ratio: float
    gap_ratio: float


def draw(points: Sequence[Point], limit: float, path: Path) -> None:
    """Writes a PNG. `limit` is the factor that users should not feel more than."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ordered = sorted(points, key=lambda point: point.samples_per_s)
    rates = [point.samples_per_s for point in ordered]
    with plt.rc_context({"font.size": 10, "axes.edgecolor": _INK, "text.color": _INK, "axes.labelcolor": _INK}):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        axes.axhline(1.0, color=_FAINT, lw=0.8)
        axes.axhline(limit, color=_FAINT, lw=1.0, ls=(0, (4, 2)))
        axes.annotate(f"{limit:g}x", (1.0, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        axes.plot(rates, [p.ttft_ratio for p in ordered], color=_FIRST, marker="o", label="first token, p95")
        axes.plot(rates, [p.gap_ratio for p in ordered], color=_BETWEEN, marker="s", label="between tokens, p95")
        for point in ordered:
            top = max(point.ttft_ratio, point.gap_ratio)
            axes.annotate(
                point.label, (point.samples_per_s, top), xytext=(0, 8), textcoords="offset points", ha="center",
                color=_FAINT, fontsize=9,
            )  # fmt: skip
        axes.set_xlabel("learned from, samples a second")
        axes.set_ylabel("users' latency, training on / off")
        axes.set_ylim(bottom=0.9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", frameon=False)
        figure.suptitle("Users beside a guest, by the cap's users_factor", fontweight="bold", x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=125)
        plt.close(figure)
