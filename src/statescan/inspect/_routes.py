"""Pictures of routes: each walk drawn over its grid, and the same as text."""

from __future__ import annotations

import math
import os
import re

import numpy as np

from statescan import routes
from statescan.routes import Route


def parse_size(size: str) -> tuple[int, int]:
    """Height and width of ``HxW``, or of ``N`` for a square.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", size.strip().lower())
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if height < 1 or width < 1:
        raise ValueError(f"size: rows x columns such as 8x8, got {size!r}")
    return height, width


def route_text(route: str | Route, height: int, width: int) -> str:
    """When each walk comes to each cell, as a grid of numbers from 0 a walk; a dot where it never comes.

    Tokens beside the grid are told below each grid with their places.
    """
    route = routes.get(route)
    length, inverse = route.length(height, width), route.inverse(height, width)
    digits = len(str(length - 1))
    blocks = []
    for index, visits in enumerate(inverse.unflatten(0, (route.walks, route.repeats))):
        cells = visits[:, : height * width].T.reshape(height, width, -1).tolist()
        shown = [["/".join(f"{'.' if t == length else t:>{digits}}" for t in cell) for cell in row] for row in cells]
        lines = [f"walk {index}", *map("  ".join, shown)]
        if route.tokens:
            places = ", ".join(map(str, visits[0, height * width :].tolist()))
            lines.append(f"tokens beside the grid at {places}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def draw_route(path: str | os.PathLike[str], route: str | Route, height: int, width: int) -> None:
    """Draw every walk of a route, a panel each: arrows from cell to cell, coloured from the first to the last.

    Steps to a neighbour are solid, jumps thin; a ring marks where a walk begins. The format is the path's suffix.

    Arguments:
        path: the picture.
        route: by name, or a `routes.Route`.
        height, width: of the grid, 64 cells a side at most.

    Raises:
        ValueError: no such route, or a grid that is too large to be seen.
        ModuleNotFoundError: without matplotlib.
    """
    route = routes.get(route)
    if max(height, width) > 64:
        raise ValueError(f"size: at most 64 x 64 cells can be told apart in a picture, got {height} x {width}")
    table = route.table(height, width).numpy()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(table))
    rows = math.ceil(len(table) / columns)
    figure = Figure(figsize=(3.2 * columns, (3.2 * height / width + 0.4) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for index, panel in enumerate(panels):
        if index < len(table):
            _draw_walk(panel, table[index], height, width)
            panel.set_title(f"{route.name}, walk {index}" if len(table) > 1 else route.name, fontsize=9)
        else:
            panel.set_axis_off()
    figure.savefig(path, dpi=120)


def _draw_walk(panel, walk: np.ndarray, height: int, width: int) -> None:  # type: ignore[no-untyped-def]
    walk = walk[(walk >= 0) & (walk < height * width)]
    rows, columns = np.divmod(walk, width)
    time = np.arange(len(walk)) / max(len(walk) - 1, 1)
    panel.set_xlim(-0.6, width - 0.4)
    panel.set_ylim(height - 0.4, -0.6)
    panel.set_aspect("equal")
    panel.set_xticks(np.arange(width + 1) - 0.5, labels=[])
    panel.set_yticks(np.arange(height + 1) - 0.5, labels=[])
    panel.tick_params(length=0)
    panel.grid(color="0.9", linewidth=0.6)
    for spine in panel.spines.values():
        spine.set_visible(False)
    across, down = np.diff(columns), np.diff(rows)
    near = np.maximum(np.abs(across), np.abs(down)) <= 1
    for which, weight, opacity in ((near, 0.012, 1.0), (~near, 0.005, 0.6)):
        panel.quiver(
            *(columns[:-1][which], rows[:-1][which], across[which], down[which], time[1:][which]),
            **dict(angles="xy", scale_units="xy", scale=1, width=weight, alpha=opacity, cmap="viridis", clim=(0, 1)),
            **dict(headwidth=4, headlength=4, headaxislength=3.5),
        )
    panel.scatter(columns, rows, c=time, s=12, cmap="viridis", vmin=0, vmax=1, zorder=3)
    panel.scatter(columns[:1], rows[:1], s=70, facecolors="none", edgecolors="crimson", linewidths=1.5, zorder=4)
