"""A job's curves as a picture: a small panel for each metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engines.errors import BadRequest
from gateway.curves import Curve, Curves

FORMATS = ("png", "svg", "pdf")
_NUM_COLUMNS = 4
_PANEL_INCHES = (3.3, 2.1)
_LINE, _INK, _FAINT = "#4c6a92", "#2b2b2b", "#777777"
_MARKED_POINTS = 40


def check_picture(path: Path) -> None:
    """Raises `BadRequest` for a name or place that no picture can be written to."""
    if path.suffix.removeprefix(".") not in FORMATS:
        raise BadRequest(f"--picture {path}: end it with one of .{', .'.join(FORMATS)}", param="picture")
    if not path.parent.is_dir():
        raise BadRequest(f"--picture {path}: there is no folder {path.parent}; make it first", param="picture")


def draw_curves(curves: Curves, title: str, path: Path) -> None:
    """Writes the picture in the format of the name's ending. Raises `BadRequest` if that is not possible."""
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(_NUM_COLUMNS, len(curves.curves))
    rows = math.ceil(len(curves.curves) / columns)
    size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + 0.6)
    with plt.rc_context({"font.size": 8, "axes.edgecolor": _INK, "text.color": _INK}):
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        panels = list(grid.flat)
        for axes, curve in zip(panels, curves.curves, strict=False):
            _draw(axes, curve)
        for axes in panels[len(curves.curves) :]:
            axes.axis("off")
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        if curves.bound:
            figure.supxlabel(curves.bound, fontsize=8, color=_FAINT)
        try:
            figure.savefig(path, dpi=125)
        except OSError as error:
            raise BadRequest(f"--picture {path}: cannot be written: {error.strerror}", param="picture") from error
        finally:
            plt.close(figure)


def _draw(axes: Any, curve: Curve) -> None:
    marker = "." if len(curve.steps) <= _MARKED_POINTS else ""
    axes.plot(curve.steps, curve.values, color=_LINE, lw=1.3, marker=marker, ms=3)
    axes.set_title(f"{curve.name}: {curve.values[0]:.3g} to {curve.values[-1]:.3g}", fontsize=8, loc="left")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=7, colors=_FAINT)
    axes.spines[["top", "right"]].set_visible(False)
