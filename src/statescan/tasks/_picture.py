"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Curve = tuple[list[int], list[float]]

#: Told apart also by those who do not see red and green alike (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_curves(
    path: Path, panels: Mapping[str, Mapping[str, Curve]], *, abscissa: str = "optimiser steps", title: str = ""
) -> str | None:
    """Draw panels side by side, each with curves by name, a PNG file; gives its path, or None without matplotlib.

    Arguments:
        panels: label of the ordinate to curves; a curve is steps and values.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (label, curves) in zip(places, panels.items(), strict=True):
        for colour, (name, (steps, values)) in zip(COLOURS, curves.items(), strict=False):
            place.plot(steps, values, color=colour, label=name, linewidth=1.6)
        place.set_xlabel(abscissa)
        place.set_ylabel(label.replace("_", " "))
        place.grid(alpha=0.25)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
        if any(curves):
            place.legend(frameon=False)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=130)
    return str(path)
