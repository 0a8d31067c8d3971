"""What a language model still holds of earlier tokens, and its late layers of early ones: memory fidelity.

The metrics are those of "MemMamba: Rethinking Memory Patterns in State Space Model" (2025, arXiv 2510.03279), called there
expected token memory fidelity (ETMF, horizontal) and expected cross-layer memory fidelity (ECLMF, vertical). No code was
published; what exactly is fitted and compared is fixed here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from statescan.inspect._features import blocks_of

#: Weight of the penalty beside the mean square error, of inputs of variance one.
PENALTY = 1e-3


@dataclass(frozen=True)
class MemoryFidelity:
    """Mean cosines of what was read back with what there was, on held-out sequences.

    Fields:
        distances: in tokens.
        layers: numbers of the layers looked at; 0 is the embedding, n is after block n.
        tokens: (layers, distances), of the embedding of the token so many positions before, read from that layer.
        shuffled: (distances,), the same of the last layer, fitted to tokens of other places: what chance gives.
        pairs: (layers, layers), of the layer of the row, read from that of the column, at the same position; the column's is
            the later one, elsewhere NaN.
    """

    distances: tuple[int, ...]
    layers: tuple[int, ...]
    tokens: Tensor
    shuffled: Tensor
    pairs: Tensor

    @property
    def etmf(self) -> dict[int, float]:
        """By distance: how well the last layer gives the token back."""
        return dict(zip(self.distances, self.tokens[-1].tolist(), strict=True))

    @property
    def eclmf(self) -> dict[int, float]:
        """By gap: how well a layer gives back the one so many blocks before it, the mean over all such pairs."""
        found: dict[int, list[float]] = {}
        for row, low in enumerate(self.layers):
            for column, high in enumerate(self.layers):
                if low < high:
                    found.setdefault(high - low, []).append(float(self.pairs[row, column]))
        return {gap: sum(values) / len(values) for gap, values in sorted(found.items())}


def ridge_fidelity(fitted: tuple[Tensor, Tensor], scored: tuple[Tensor, Tensor], *, penalty: float = PENALTY) -> float:
    """Mean cosine of targets with what a ridge regression makes of the sources, means taken off both.

    Arguments:
        fitted: sources (samples, width) and targets (samples, channels) that the regression is fitted to; their means, and
            the one scale of all sources, are those that are taken off.
        scored: others, on which the cosine is taken.
        penalty: of the squared weights, beside the mean square error.
    """
    source, target = (part.double() for part in fitted)
    means = source.mean(0), target.mean(0)
    source, target = source - means[0], target - means[1]
    scale = source.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    source = source / scale
    gram = source.T @ source / len(source)
    gram.diagonal().add_(penalty)
    weights = torch.linalg.solve(gram, source.T @ target / len(source))
    given, wanted = (part.double() - mean for part, mean in zip(scored, means, strict=True))
    return float(torch.cosine_similarity(given / scale @ weights, wanted, dim=-1).mean())


def stream_fidelity(
    streams: Sequence[Tensor],
    *,
    distances: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    penalty: float = PENALTY,
    seed: int = 0,
) -> MemoryFidelity:
    """Memory fidelity of a stream of features through layers.

    The first half of the sequences is fitted to, the other is scored.

    Arguments:
        streams: (sequences, length, width) each: what tokens are first, then the output of every layer.
        distances: 0, 1, 2, 4, ... up to half of the length unless given.
        layers: their numbers; None: all.
        penalty: see `ridge_fidelity`.
        seed: of the shuffled tokens.

    Raises:
        ValueError: shapes that do not agree, fewer than 2 sequences, or a distance as long as they are.
    """
    if any(stream.ndim != 3 or stream.shape[:2] != streams[0].shape[:2] for stream in streams) or len(streams) < 2:
        shapes = ", ".join(str(tuple(stream.shape)) for stream in streams)
        raise ValueError(f"streams: two or more of (sequences, length, width), got {shapes}")
    count, length, _ = streams[0].shape
    if count < 2:
        raise ValueError(f"sequences: at least 2, one to fit to and one to score, got {count}")
    if distances is None:
        distances = [0, *(2**n for n in range(max(0, (length // 2).bit_length())) if 2**n <= length // 2)]
    if not distances or min(distances) < 0 or max(distances) >= length:
        raise ValueError(f"distances: from 0 to {length - 1}, got {tuple(distances)}")
    numbers = tuple(range(len(streams))) if layers is None else tuple(layers)
    generator = torch.Generator().manual_seed(seed)

    def score(source: Tensor, target: Tensor, shuffle: bool = False) -> float:
        half = count // 2
        parts = [(source[rows].flatten(0, 1), target[rows].flatten(0, 1)) for rows in (slice(half), slice(half, None))]
        if shuffle:
            parts = [(a, b[torch.randperm(len(b), generator=generator)]) for a, b in parts]
        return ridge_fidelity(parts[0], parts[1], penalty=penalty)

    def far(layer: int, distance: int, shuffle: bool = False) -> float:
        return score(streams[layer][:, distance:], streams[0][:, : length - distance], shuffle)

    tokens = torch.tensor([[far(layer, distance) for distance in distances] for layer in numbers])
    shuffled = torch.tensor([far(numbers[-1], distance, shuffle=True) for distance in distances])
    pairs = torch.full((len(numbers), len(numbers)), math.nan)
    for row, low in enumerate(numbers):
        for column, high in enumerate(numbers):
            if low < high:
                pairs[row, column] = score(streams[high], streams[low])
    return MemoryFidelity(tuple(distances), numbers, tokens, shuffled, pairs)


def memory_fidelity(
    model: Any,
    tokens: Tensor,
    *,
    distances: Sequence[int] | None = None,
    most_layers: int = 9,
    penalty: float = PENALTY,
    batch: int = 8,
    seed: int = 0,
) -> MemoryFidelity:
    """Memory fidelity of a language model on sequences of tokens.

    ETMF(d) is read from what the last block gives at a token: how well it says, linearly, what the embedding d tokens before
    was. ECLMF(G) compares what blocks give at the same token.

    Arguments:
        model: any language model of the library.
        tokens: (sequences, length) int64.
        distances: 0, 1, 2, 4, ... up to half of the length unless given.
        most_layers: of deeper models so many layers are looked at, evenly from the embedding to the last block.
        penalty: see `ridge_fidelity`.
        batch: sequences read at a time.
        seed: of the shuffled tokens.

    Raises:
        ValueError: a model without an embedding and blocks, or as `stream_fidelity`.
    """
    embedding = getattr(model, "embedding", None)
    if not isinstance(embedding, nn.Module):
        raise ValueError(f"model: a language model with an embedding, got {type(model).__name__}")
    if most_layers < 2:
        raise ValueError(f"most_layers: at least 2, got {most_layers}")
    modules = [embedding, *blocks_of(model).values()]
    chosen = sorted({round(n * (len(modules) - 1) / (most_layers - 1)) for n in range(most_layers)})
    parts: list[list[Tensor]] = []
    model.eval()
    with torch.no_grad():
        for rows in tokens.split(batch):
            with _kept([modules[number] for number in chosen]) as kept:
                model(rows)
            parts.append(kept)
    streams = [torch.cat(layer) for layer in zip(*parts, strict=True)]
    found = stream_fidelity(streams, distances=distances, penalty=penalty, seed=seed)
    return MemoryFidelity(found.distances, tuple(chosen), found.tokens, found.shuffled, found.pairs)


def draw_memory_fidelity(path: str | os.PathLike[str], found: MemoryFidelity, title: str = "") -> None:
    """Draw fidelity over distance, a curve a layer, and beside it that of each pair of layers.

    Arguments:
        path: the picture; its suffix says the format.
        found: from `memory_fidelity`.
        title: above it.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    places = range(len(found.distances))
    colours = matplotlib.colormaps["viridis"]
    last = max(1, len(found.layers) - 1)
    for index, (layer, values) in enumerate(zip(found.layers, found.tokens.tolist(), strict=True)):
        width = 2.4 if index == last else 1.2
        label = "embedding" if layer == 0 else f"after block {layer}"
        left.plot(places, values, "o-", color=colours(0.92 * index / last), linewidth=width, markersize=3, label=label)
    left.plot(places, found.shuffled.tolist(), "--", color="crimson", linewidth=1, label="last, shuffled tokens")
    left.set_xticks(list(places), labels=[str(distance) for distance in found.distances])
    left.set_xlabel("distance in tokens")
    left.set_ylabel("cosine of the token read back")
    left.set_ylim(min(-0.05, float(found.tokens.min())), 1.05)
    left.set_title("tokens (ETMF)", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    left.grid(alpha=0.25)
    pairs = found.pairs[:-1, 1:]
    image = right.imshow(pairs.numpy(), cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, ax=right, label="cosine of the layer read back")
    names = [str(layer) for layer in found.layers]
    right.set_xticks(range(len(names) - 1), labels=names[1:])
    right.set_yticks(range(len(names) - 1), labels=names[:-1])
    right.set_xlabel("read from layer")
    right.set_ylabel("layer")
    right.set_title("layers (ECLMF)", fontsize=10)
    for row, values in enumerate(pairs.tolist()):
        for column, value in enumerate(values):
            if not math.isnan(value):
                colour = "black" if value > 0.6 else "white"
                right.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)


@contextmanager
def _kept(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What modules give, in their order, float32 on the CPU."""
    kept: dict[int, Tensor] = {}
    handles = []
    for number, module in enumerate(modules):

        def keep(_: nn.Module, __: Any, output: Any, number: int = number) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            kept.setdefault(number, first.detach().float().cpu())

        handles.append(module.register_forward_hook(keep))
    found: list[Tensor] = []
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if len(kept) < len(modules):
        raise ValueError("model: some of its blocks gave nothing; it does not call them as modules")
    found.extend(kept[number] for number in range(len(modules)))
