"""The longest gap between tokens around swaps, beside the same time without one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Gap = tuple[float, float]
"""When it ended, after the call (or the middle of the time without one), and how long it was; seconds."""
BIN_S = 0.05
_WITH, _WITHOUT, _INK, _FAINT = "#d9772b", "#4c6a92", "#2b2b2b", "#777777"


def draw(swaps: Sequence[Iterable[Gap]], quiet: Sequence[Iterable[Gap]], flips_s: Sequence[float], path: Path) -> None:
    """Writes a PNG. `flips_s`: when each swap's alias was flipped, after its call."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.edgecolor": _INK, "text.color": _INK, "axes.labelcolor": _INK}):
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        for label, color, runs in (("without", _WITHOUT, quiet), ("around a swap", _WITH, swaps)):
            for number, gaps in enumerate(runs):
                longest = longest_by_bin(gaps)
                heights = [1000 * value for value in longest.values()]
                axes.plot(list(longest), heights, color=color, lw=0.9, alpha=0.7, label="" if number else label)
        axes.axvline(0.0, color=_FAINT, lw=1.0)
        axes.annotate("call", (0.0, 1.0), xycoords=("data", "axes fraction"), ha="right", va="bottom", color=_FAINT)
        for flip_s in flips_s:
            axes.axvline(flip_s, color=_FAINT, lw=0.8, ls=(0, (4, 2)))
        axes.set_xlabel("seconds from the call; dashed: flips")
        axes.set_ylabel("longest gap between tokens, ms")
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper right", frameon=False)
        figure.suptitle("Streams around a swap", fontweight="bold", x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=125)
        plt.close(figure)


def longest_by_bin(gaps: Iterable[Gap]) -> Mapping[float, float]:
    """The beginning of each `BIN_S` in which a gap ended -> the longest of them, in order."""
    longest: dict[int, float] = defaultdict(float)
    for at_s, gap_s in gaps:
        place = int(at_s // BIN_S)
        longest[place] = max(longest[place], gap_s)
    return {place * BIN_S: longest[place] for place in sorted(longest)}
