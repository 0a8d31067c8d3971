"""Pictures of alignment: the table of all pairs of layers, and its growth with frames and captions."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from statescan.inspect._alignment import Alignment
from statescan.inspect._scaling_law import ScalingLaw

#: Told apart also by those who do not see red and green alike (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_alignment(path: str | os.PathLike[str], found: Alignment, names: tuple[str, str]) -> None:
    """Draw the score of every pair of layers as a coloured table, the best pair framed.

    Arguments:
        path: the picture; its suffix says the format.
        found: from `align`.
        names: of the two encoders.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    table = found.table.numpy()
    figure = Figure(
        figsize=(2.6 + min(0.42 * table.shape[1], 9), 2.2 + min(0.36 * table.shape[0], 8)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    least = min(float(table.min()), found.shuffled if found.shuffled is not None else np.inf)
    image = panel.imshow(table, cmap="viridis", vmin=least, aspect="auto")
    bar = figure.colorbar(image, ax=panel, label=f"{found.metric.replace('_', ' ')}" + _k(found))
    if found.shuffled is not None:
        bar.ax.axhline(found.shuffled, color="crimson", linewidth=2)
    row, column = found.layers
    panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="crimson", linewidth=2))
    panel.set_xlabel(f"layer of {names[1]}")
    panel.set_ylabel(f"layer of {names[0]}")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"best pair {found.layers}: {found.score:.3f}, {found.samples:,} samples"
    if found.shuffled is not None:
        title += f"\nsame search on shuffled samples (red line): {found.shuffled:.3f}"
    panel.set_title(title, fontsize=9)
    figure.savefig(path, dpi=130)


def draw_scaling(
    path: str | os.PathLike[str],
    frames: Sequence[int],
    captions: Sequence[int],
    scores: np.ndarray,
    law: ScalingLaw | None,
) -> None:
    """Draw scores against frames, a curve for each number of captions, and the fitted law as lines.

    Arguments:
        path: the picture; its suffix says the format.
        frames, captions: numbers of them.
        scores: (frames, captions).
        law: from `fit_scaling_law`; None for points alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    fine = np.geomspace(min(frames), max(frames), 60)
    for index, count in enumerate(captions):
        colour = _COLOURS[index % len(_COLOURS)]
        label = f"{count} caption{'s' if count != 1 else ''}"
        panel.plot(frames, scores[:, index], "o", color=colour, label=label)
        if law is not None:
            panel.plot(fine, law.scores(fine.tolist(), [count])[:, 0], color=colour, linewidth=1.2)
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(frames), labels=[str(number) for number in frames])
    panel.set_xlabel("frames of each video")
    panel.set_ylabel("alignment")
    if law is not None:
        panel.axhline(law.limit, color="0.5", linestyle="--", linewidth=1)
        panel.set_title(
            f"points: measured; lines: {law.limit:.3f} - ({law.frame_loss:.3f} frames^-{law.frame_rate:.2f} + "
            f"{law.caption_loss:.3f} captions^-{law.caption_rate:.2f}), R² {law.r2:.3f}",
            fontsize=8.5,
        )
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _k(found: Alignment) -> str:
    return f", k = {found.k}" if "nn" in found.metric else ""
