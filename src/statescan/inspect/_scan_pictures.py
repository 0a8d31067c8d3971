"""Pictures of what scans do with an image: what spoke for a class, what a cell has read, how long steps are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.inspect._image_files import as_input
from statescan.inspect._scan_sites import Reading, ScanSite, scan_sites

#: Panels of layers at most.
_PANELS = 8
#: Beside the picture of the activation.
_LEGEND = (
    "Above: how much the marked cell has read of each",
    "cell on its way along the walk (implicit attention,",
    "mean over channels).",
    "Middle: size |y| of the scan's output at each cell.",
    "Below: the same in the order of the walk; grey is",
    "each cell, blue a mean over neighbours; the red",
    "line is the marked cell.",
    "Colours go from zero to each panel's largest.",
)


@dataclass(frozen=True)
class ScanLayer:
    """The scans of one block of a model, over one grid.

    Fields:
        name: of the block's mixer.
        sites: its scans: of several directions or heads.
    """

    name: str
    sites: tuple[ScanSite, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.sites[0].shape

    def relevance(self) -> Tensor:
        """What each cell added to the class's score by these scans, of all walks together: (rows, columns)."""
        return torch.stack([site.grid(site.relevance()).sum(0) for site in self.sites]).sum(0)

    def time_steps(self) -> Tensor:
        """The mean step over channels and walks at each cell: (rows, columns)."""
        total = torch.stack([site.grid(site.placed(site.delta.mean(-1))).sum(0) for site in self.sites]).sum(0)
        ones = [site.grid(site.placed(torch.ones_like(site.delta[..., 0]))).sum(0) for site in self.sites]
        return total / torch.stack(ones).sum(0).clamp(min=1)


def scan_layers(reading: Reading) -> list[ScanLayer]:
    """The scans of a reading, those of one block and grid together, in the order in which they ran."""
    found: dict[tuple[str, tuple[int, int]], list[ScanSite]] = {}
    for site in reading.sites:
        name = site.name.removesuffix(".forwards").removesuffix(".backwards").removesuffix(".scan")
        found.setdefault((name, site.shape), []).append(site)
    return [ScanLayer(name, tuple(sites)) for (name, _), sites in found.items()]


def draw_attention(
    path: str | os.PathLike[str], model: Any, picture: np.ndarray, *, decision: int | str = "best", note: str = ""
) -> Reading:
    """Draw which parts of a picture spoke for a class, and which against it, through a model's scans.

    Of every layer: sum over i of (gradient of the class's score by y_i) alpha_ij x_j, with the scans' implicit attention
    alpha (Ali et al. 2024). Together: the mean over layers, each divided by the sum of its sizes.

    Arguments:
        path: the file; its suffix says the format.
        model: an image model.
        picture: (height, width, channels) from 0 to 1.
        decision: a class, or ``best``.
        note: added to the title.

    Raises:
        ValueError: see `scan_sites`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    reading = scan_sites(model, as_input(picture), decision=decision)
    layers = scan_layers(reading)
    maps = [layer.relevance() for layer in layers]
    together = torch.stack([_enlarged(m / m.abs().sum().clamp(min=1e-30), picture) for m in maps]).mean(0)
    figure, panels = _figure(2 + len(chosen := _spread(len(layers))))
    _show(panels[0], picture, "the picture")
    _overlay(panels[1], picture, together, "all layers together")
    for panel, index in zip(panels[2:], chosen, strict=True):
        title = f"layer {index + 1} of {len(layers)}, {maps[index].shape[0]} x {maps[index].shape[1]} cells"
        _overlay(panel, picture, _enlarged(maps[index], picture), title)
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), "bwr"), ax=panels, ticks=[-1, 0, 1], shrink=0.7, aspect=30)
    bar.ax.set_yticklabels(["against", "nothing", "for the class"])
    score = float(reading.scores[reading.chosen]) if reading.chosen is not None else 0.0
    most = " (the highest)" if reading.chosen == int(reading.scores.argmax()) else ""
    figure.suptitle(
        f"What spoke for class {reading.chosen}, score {score:.2f}{most}, through the scans of each layer{_after(note)}",
        fontsize=11,
    )
    figure.savefig(path, dpi=120)
    return reading


def draw_activation(
    path: str | os.PathLike[str],
    model: Any,
    picture: np.ndarray,
    *,
    layer: int | None = None,
    cell: tuple[int, int] | None = None,
    note: str = "",
) -> ScanLayer:
    """Draw what the scans of a layer carry along their walks, a column a walk.

    Above: how much a marked cell has read of every other, |alpha| averaged over channels. In the middle: the size of the
    scan's output at each cell. Below: the same along the walk, from its first cell to its last.

    Arguments:
        path: the file; its suffix says the format.
        model: an image model.
        picture: (height, width, channels) from 0 to 1.
        layer: which, from 1; None for the first, whose grid is the finest.
        cell: row and column, from 0, of the marked cell; None for the middle one.
        note: added to the title.

    Raises:
        ValueError: see `scan_sites`; a layer or a cell that is not there.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    layers = scan_layers(scan_sites(model, as_input(picture)))
    number = 1 if layer is None else layer
    if not 1 <= number <= len(layers):
        raise ValueError(f"layer: from 1 to {len(layers)}, got {layer}")
    chosen = layers[number - 1]
    rows, columns = chosen.shape
    row, column = (rows // 2, columns // 2) if cell is None else cell
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"cell: row and column within {rows} x {columns}, from 0, got {row},{column}")
    walks = [(site, walk) for site in chosen.sites for walk in range(len(site.order))][:4]
    figure, grid = _grid_figure(3, 1 + len(walks), picture.shape[0] / picture.shape[1])
    _show(grid[0][0], picture, "the picture, one cell marked")
    _mark(grid[0][0], picture, chosen.shape, (row, column))
    told = "\n".join(_LEGEND)
    grid[1][0].text(0, 1, told, fontsize=8, va="top", transform=grid[1][0].transAxes)
    for panel in (grid[1][0], grid[2][0]):
        panel.set_axis_off()
    marked = row * columns + column
    for index, (site, walk) in enumerate(walks):
        above, middle, below = (grid[place][index + 1] for place in range(3))
        size = site.y.norm(dim=-1)
        _heat(
            above,
            picture,
            site.grid(site.attention(marked))[walk],
            f"{_way(site, walk, index, chosen)}: read by the cell",
        )
        _mark(above, picture, chosen.shape, (row, column))
        _heat(middle, picture, site.grid(site.placed(size))[walk], f"largest |y| {float(size[:, walk].max()):.2g}")
        order = site.order[walk]
        along = size[:, walk].numpy() / max(float(size[:, walk].max()), 1e-30)
        below.plot(np.arange(len(order)), along, color="0.75", linewidth=0.6)
        wide = max(1, len(order) // 40)
        below.plot(np.arange(len(order)), _running_mean(along, wide), color="#0072B2", linewidth=1.4)
        for time in np.nonzero((order == marked).numpy())[0]:
            below.axvline(time, color="crimson", linewidth=1)
        below.set_xlabel("cells along the walk", fontsize=8)
        below.tick_params(labelsize=7)
        below.grid(alpha=0.25)
    grid[2][1].set_ylabel("|y|, of its largest", fontsize=8)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "inferno"), ax=grid[:2, :], shrink=0.6, aspect=30, ticks=[0, 1]
    )
    bar.ax.set_yticklabels(["nothing", "most"])
    more = sum(len(site.order) for site in chosen.sites) - len(walks)
    figure.suptitle(
        f"Layer {number} of {len(layers)} ({chosen.name}), {rows} x {columns} cells, cell {row},{column} marked"
        + (f", {more} more walks not shown" if more else "")
        + _after(note),
        fontsize=11,
    )
    figure.savefig(path, dpi=120)
    return chosen


def draw_time_steps(
    path: str | os.PathLike[str], model: Any, picture: np.ndarray, *, note: str = ""
) -> list[ScanLayer]:
    """Draw the step sizes that a model's scans chose for a picture, of every layer.

    Arguments:
        path: the file; its suffix says the format.
        model: an image model.
        picture: (height, width, channels) from 0 to 1.
        note: added to the title.

    Raises:
        ValueError: see `scan_sites`.
    """
    layers = scan_layers(scan_sites(model, as_input(picture)))
    chosen = _spread(len(layers), _PANELS - 1)
    figure, panels = _figure(1 + len(chosen), below=True)
    _show(panels[0], picture, "the picture")
    for panel, index in zip(panels[1:-1], chosen, strict=True):
        steps = layers[index].time_steps()
        image = panel.imshow(
            steps.numpy(), cmap="viridis", extent=(0, picture.shape[1], picture.shape[0], 0), interpolation="nearest"
        )
        ends = [float(steps.min()), float(steps.mean()), float(steps.max())]
        bar = figure.colorbar(image, cax=panel.inset_axes((1.03, 0.0, 0.05, 1.0)), ticks=ends)
        bar.ax.set_yticklabels([f"{end:.4g}" for end in ends], fontsize=7)
        panel.set_title(f"layer {index + 1} of {len(layers)}, {steps.shape[0]} x {steps.shape[1]}", fontsize=9)
        _bare(panel)
    numbers = np.arange(1, len(layers) + 1)
    values = [torch.cat([site.delta.flatten() for site in layer.sites]).numpy() for layer in layers]
    quantiles = np.array([np.quantile(part, [0.05, 0.25, 0.5, 0.75, 0.95]) for part in values])
    below = panels[-1]
    below.fill_between(numbers, quantiles[:, 0], quantiles[:, 4], color="#0072B2", alpha=0.15, label="90 % of all")
    below.fill_between(numbers, quantiles[:, 1], quantiles[:, 3], color="#0072B2", alpha=0.3, label="the middle half")
    below.plot(numbers, quantiles[:, 2], color="#0072B2", marker="o", markersize=4, label="median")
    below.set_yscale("log")
    below.set_xticks(numbers if len(numbers) <= 24 else numbers[::2])
    below.set_xlabel("layer")
    below.set_ylabel("step size of a channel at a cell")
    other = below.secondary_yaxis("right", functions=(_inverse, _inverse))
    other.set_ylabel("cells until a state\nwith A = -1 fades to 37 %")
    below.grid(alpha=0.25)
    below.legend(frameon=False, fontsize=8, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.14))
    figure.suptitle(
        "Step sizes: with small ones a scan remembers what it passed, with large ones it takes up what is at the cell\n"
        f"above: mean over channels and walks, colours from each layer's smallest to its largest{_after(note)}",
        fontsize=11,
    )
    figure.savefig(path, dpi=120)
    return layers


def draw_receptive_field(
    path: str | os.PathLike[str], fields: Sequence[tuple[str, Any]], *, share: tuple[float, ...] = (0.5, 0.95)
) -> None:
    """Draw effective receptive fields side by side, with squares that hold shares of each.

    Arguments:
        path: the file; its suffix says the format.
        fields: names and `ReceptiveField`s.
        share: what the squares hold.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(0.8 + 4.2 * len(fields), 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    image: Any = None
    for panel, (name, found) in zip(panels, fields, strict=True):
        image = panel.imshow(np.clip(found.field, 1e-3, 1), cmap="inferno", norm=LogNorm(1e-3, 1))
        height, width = found.field.shape
        words = []
        for part, style in zip(share, ("-", "--", ":", "-."), strict=False):
            side = found.side(part)
            corner = ((width - 1 - side) / 2, (height - 1 - side) / 2)
            panel.add_patch(
                Rectangle(corner, side, side, fill=False, edgecolor="white", linestyle=style, linewidth=1.2)
            )
            words.append(f"{part:.0%} within {side} px")
        panel.set_xlim(-0.5, width - 0.5)
        panel.set_ylim(height - 0.5, -0.5)
        panel.set_title(f"{name}\n{', '.join(words)} (squares)", fontsize=9)
        panel.set_xlabel(f"pixels; mean over {found.images} image{'s' if found.images != 1 else ''}", fontsize=8)
    figure.colorbar(image, ax=panels, label="gradient of the middle of the last map, of its largest")
    figure.suptitle("Effective receptive field: the pixels on which the middle depends", fontsize=11)
    figure.savefig(path, dpi=120)


def _figure(count: int, *, below: bool = False) -> tuple[Any, list[Any]]:
    """Panels in rows of up to five; with `below` a wide one under them, the last."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // 5)
    columns = -(-count // rows)
    figure = Figure(figsize=(2.9 * columns, 2.6 * rows + 0.5 + (2.8 if below else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.add_gridspec(rows + int(below), columns, height_ratios=[1.0] * rows + [1.0] * int(below))
    panels = [figure.add_subplot(places[index // columns, index % columns]) for index in range(count)]
    if below:
        panels.append(figure.add_subplot(places[rows, :]))
    return figure, panels


def _grid_figure(rows: int, columns: int, ratio: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * columns + 0.8, 2.6 * ratio * (rows - 1) + 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [ratio] * (rows - 1) + [0.6]
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def _show(panel: Any, picture: np.ndarray, title: str) -> None:
    panel.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    panel.set_title(title, fontsize=9)
    _bare(panel)


def _bare(panel: Any) -> None:
    panel.set_xticks([])
    panel.set_yticks([])


def _grey(panel: Any, picture: np.ndarray) -> None:
    panel.imshow(picture.mean(-1), cmap="gray", vmin=-0.2, vmax=1.4)


def _overlay(panel: Any, picture: np.ndarray, values: Tensor, title: str) -> None:
    """Signed values over the picture in grey, zero without colour."""
    numbers = values.numpy()
    most = float(np.quantile(np.abs(numbers), 0.995)) or 1.0
    shown = numbers / most
    _grey(panel, picture)
    opacity = np.clip(np.abs(shown), 0, 1) ** 0.7 * 0.9
    panel.imshow(shown, cmap="bwr", vmin=-1, vmax=1, alpha=opacity)
    panel.set_title(title, fontsize=9)
    _bare(panel)


def _heat(panel: Any, picture: np.ndarray, values: Tensor, title: str) -> None:
    """Values of cells, none below zero, the brighter the larger."""
    extent = (0, picture.shape[1], picture.shape[0], 0)
    panel.imshow(values.numpy(), cmap="inferno", vmin=0, extent=extent, interpolation="nearest")
    panel.set_title(title, fontsize=9)
    _bare(panel)


def _mark(panel: Any, picture: np.ndarray, shape: tuple[int, int], cell: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    height, width = picture.shape[0] / shape[0], picture.shape[1] / shape[1]
    corner = (cell[1] * width, cell[0] * height)
    panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#56B4E9", linewidth=2))


def _way(site: ScanSite, walk: int, index: int, layer: ScanLayer) -> str:
    """What a walk is called."""
    if site.name.endswith((".forwards", ".backwards")):
        return site.name.rpartition(".")[2]
    return f"walk {index}" if sum(len(s.order) for s in layer.sites) > 1 else "the walk"


def _running_mean(values: np.ndarray, wide: int) -> np.ndarray:
    """Each value's mean with its neighbours, `wide` of them on either side; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.arange(len(values)) - wide, np.arange(len(values)) + wide + 1
    low, high = low.clip(0), high.clip(max=len(values))
    return (total[high] - total[low]) / (high - low)


def _enlarged(values: Tensor, picture: np.ndarray) -> Tensor:
    size = (picture.shape[0], picture.shape[1])
    return F.interpolate(values[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]


def _spread(count: int, most: int = _PANELS) -> list[int]:
    """Some of the layers, evenly from the first to the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _after(note: str) -> str:
    return f"\n{note}" if note else ""


def _inverse(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 1 / np.asarray(values, dtype=float)
