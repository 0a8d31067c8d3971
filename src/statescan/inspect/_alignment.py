"""How alike two encoders see the same samples: metrics on their features, without training anything.

Metrics and the search over layers follow "The Platonic Representation Hypothesis" (Huh, Cheung, Wang and Isola, ICML
2024); their use on video and text "Dynamic Reflections: Probing Video Representations with Text Alignment" (ICLR 2026).
Row i of both sets of features belongs to the same sample; the sets may have different widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Added to a denominator, as published.
_LEAST = 1e-6
#: Similarities held at a time; rows are taken in blocks of this many entries.
_BLOCK_ENTRIES = 1 << 24

#: Features of one layer (samples, width), of several layers of one width (samples, layers, width), or a list of layers.
Features = Tensor | Sequence[Tensor]


def nearest_neighbours(features: Tensor, k: int, *, block: int | None = None) -> Tensor:
    """The k nearest rows of each row by inner product, itself left out, nearest first: (samples, k).

    Of rows that are equally near, that with the lower index comes first. Similarities are formed a block of rows at a
    time: memory grows with block x samples.

    Arguments:
        features: (samples, width); rows of unit length make this the order by cosine.
        k: neighbours, fewer than there are samples.
        block: rows at a time; as many as make 16 million similarities unless given.

    Raises:
        ValueError: other axes, a k that is out of range, or values that are not finite.
    """
    check_features(features, "features")
    samples = features.shape[0]
    _check_k(k, samples)
    found = features.new_empty((samples, k), dtype=torch.long)
    for rows, scores in _similarities(features, block):
        scores.scatter_(1, rows[:, None], -math.inf)
        found[rows] = _top(scores, k)
    return found


def mutual_knn(x: Tensor, y: Tensor, k: int = 10, *, block: int | None = None) -> float:
    """Mean share of a sample's k nearest neighbours in x that are also its k nearest in y, from 0 to 1.

    Unrelated features give about k / (samples - 1); see `chance`.

    Arguments:
        x, y: (samples, width) each, rows of unit length for cosines.
        k: neighbours.
        block: rows of similarities at a time.
    """
    check_pair(x, y)
    return float(_overlap(nearest_neighbours(x, k, block=block), nearest_neighbours(y, k, block=block)).mean())


def cycle_knn(x: Tensor, y: Tensor, k: int = 10, *, block: int | None = None) -> float:
    """Share of samples that are met again among the neighbours in x of their neighbours in y. Arguments: `mutual_knn`."""
    check_pair(x, y)
    return float(_cycles(nearest_neighbours(x, k, block=block), nearest_neighbours(y, k, block=block)).mean())


def chance(samples: int, k: int) -> float:
    """The mutual k-NN that unrelated features are expected to have: k / (samples - 1)."""
    return k / (samples - 1)


def cka(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    sigma: float = 1.0,
    unbiased: bool = False,
    block: int | None = None,
) -> float:
    """Centred kernel alignment HSIC(K, L) / (sqrt(HSIC(K, K) HSIC(L, L)) + 1e-6), of kernels K of x and L of y.

    Arguments:
        x, y: (samples, width) each.
        kernel: linear, the inner products (computed from products of width x width), or rbf, exp(-d² / (2 sigma²)).
        sigma: of rbf.
        unbiased: the estimate of Song et al. (2012, equation 5) instead of the biased trace(K H L H).
        block: rows of kernels at a time, for rbf.

    Raises:
        ValueError: other shapes, an unknown kernel, a sigma that is not positive, or fewer than 4 samples for `unbiased`.
    """
    check_pair(x, y)
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"kernel: linear or rbf, got {kernel!r}")
    if not sigma > 0:
        raise ValueError(f"sigma: a positive number, got {sigma}")
    if unbiased and len(x) < 4:
        raise ValueError(f"unbiased: needs at least 4 samples, got {len(x)}")
    x, y = x.double(), y.double()

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        sums = _linear_sums(a, b) if kernel == "linear" else _rbf_sums(a, b, sigma, block)
        return _hsic(sums, unbiased=unbiased)

    return _normalised(hsic(x, y), hsic(x, x), hsic(y, y))


def cknna(x: Tensor, y: Tensor, k: int = 10, *, unbiased: bool = True, block: int | None = None) -> float:
    """Centred alignment of the linear kernels where both see neighbours: entries outside the mutual k-NN are zero.

    Arguments:
        x, y: (samples, width) each.
        k: neighbours, at least 2. They leave the sample itself out if `unbiased`, else it is among them.
        unbiased: the estimate of HSIC; see `cka`.
        block: rows of similarities at a time.

    Raises:
        ValueError: as for `cka`; k below 2.
    """
    check_pair(x, y)
    if k < 2:
        raise ValueError(f"k: at least 2 for cknna, got {k}")
    if unbiased and len(x) < 4:
        raise ValueError(f"unbiased: needs at least 4 samples, got {len(x)}")
    _check_k(k, len(x) + (not unbiased))
    near_x, near_y = (_nearest(features, k, own=not unbiased, block=block) for features in (x, y))
    everything = torch.ones_like(near_x, dtype=torch.bool)
    both = (near_x[:, :, None] == near_y[:, None, :]).any(-1)

    def hsic(a: Tensor, b: Tensor, near: Tensor, kept: Tensor) -> Tensor:
        row, place = kept.nonzero(as_tuple=True)
        column = near[row, place]
        entries = [(part[row].double() * part[column].double()).sum(-1) for part in (a, b)]
        return _hsic(_sparse_sums(row, column, entries[0], entries[1], len(a)), unbiased=unbiased)

    return _normalised(hsic(x, y, near_x, both), hsic(x, x, near_x, everything), hsic(y, y, near_y, everything))


#: Metrics by name: x, y, k -> a number.
METRICS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "mutual_knn": mutual_knn,
    "cycle_knn": cycle_knn,
    "cka": lambda x, y, k: cka(x, y),
    "unbiased_cka": lambda x, y, k: cka(x, y, unbiased=True),
    "rbf_cka": lambda x, y, k: cka(x, y, kernel="rbf"),
    "cknna": cknna,
}


def clamp_outliers(features: Tensor, quantile: float = 0.95) -> Tensor:
    """Values clamped to +-t, t the entry at index int(quantile x count) of all sorted absolute values; 1 clamps none.

    Raises:
        ValueError: a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: above 0, at most 1, got {quantile}")
    if quantile == 1 or not features.numel():
        return features
    flat = features.detach().abs().flatten()
    limit = flat.kthvalue(int(quantile * flat.numel()) + 1).values
    return features.clamp(-limit, limit)


def layers_of(features: Features, *, quantile: float = 0.95, normalise: bool = True) -> list[Tensor]:
    """The layers (samples, width) that are compared: outliers clamped, rows of unit length.

    One limit holds for all layers of a tensor (samples, layers, width); in a list each layer has its own, as published.
    """
    if isinstance(features, Tensor):
        if features.ndim not in (2, 3):
            raise ValueError(f"features: (samples, width) or (samples, layers, width), got {tuple(features.shape)}")
        clamped = clamp_outliers(features.float(), quantile)
        layers = list(clamped.unbind(1)) if features.ndim == 3 else [clamped]
    else:
        layers = [clamp_outliers(layer.float(), quantile) for layer in features]
    if not layers:
        raise ValueError("features: no layers")
    for index, layer in enumerate(layers):
        check_features(layer, f"features, layer {index}")
    return [F.normalize(layer, dim=-1) for layer in layers] if normalise else layers


@dataclass(frozen=True)
class Alignment:
    """How alike two encoders are.

    Fields:
        metric, k, samples: what was measured; scores compare only where k and samples are the same.
        score: the highest over all pairs of layers.
        layers: that pair, the first where several are equal.
        table: (layers of x, layers of y), every pair's score.
        chance: k / (samples - 1) for mutual_knn, else None.
        shuffled: mean of the same search where y's rows are shuffled: what the maximum gives where nothing is shared.
        shuffled_deviation: standard deviation of these searches.
        interval: 95 % of bootstrap samples of the rows' scores of the best pair; None for metrics that are no means.
    """

    metric: str
    k: int
    samples: int
    score: float
    layers: tuple[int, int]
    table: Tensor
    chance: float | None
    shuffled: float | None
    shuffled_deviation: float | None
    interval: tuple[float, float] | None


def align(
    x: Features,
    y: Features,
    *,
    metric: str = "mutual_knn",
    k: int = 10,
    quantile: float = 0.95,
    normalise: bool = True,
    shuffles: int = 20,
    resamples: int = 1000,
    seed: int = 0,
    block: int | None = None,
) -> Alignment:
    """Compare every layer of one encoder with every layer of another, and keep the best pair.

    The best of many pairs is an optimistic number: read it beside `shuffled`, found by the same search.

    Arguments:
        x, y: features of the same samples in the same order; (samples, width), (samples, layers, width), or a list.
        metric: mutual_knn, cycle_knn, cka, unbiased_cka, rbf_cka or cknna.
        k: neighbours.
        quantile: see `clamp_outliers`.
        normalise: rows to unit length.
        shuffles: of the control; 0 for none.
        resamples: of the bootstrap; 0 for no interval.
        seed: of both.
        block: rows of similarities at a time.

    Raises:
        ValueError: an unknown metric, numbers of samples that differ, or what the metric refuses.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: {', '.join(METRICS)}; got {metric!r}")
    xs, ys = (layers_of(side, quantile=quantile, normalise=normalise) for side in (x, y))
    samples = len(xs[0])
    for layer in (*xs, *ys):
        if len(layer) != samples:
            raise ValueError(f"x, y: the same samples in every layer, got {samples} and {len(layer)}")
    of_rows = {"mutual_knn": _overlap, "cycle_knn": _cycles}.get(metric)
    generator = torch.Generator().manual_seed(seed)
    if of_rows is not None:
        nearest = [[nearest_neighbours(layer, k, block=block) for layer in side] for side in (xs, ys)]

        def score(i: int, j: int, order: Tensor | None) -> float:
            other = nearest[1][j] if order is None else _reordered(nearest[1][j], order)
            return float(of_rows(nearest[0][i], other).mean())
    else:

        def score(i: int, j: int, order: Tensor | None) -> float:
            return METRICS[metric](xs[i], ys[j] if order is None else ys[j][order.to(ys[j].device)], k)

    def search(order: Tensor | None = None) -> Tensor:
        return torch.tensor([[score(i, j, order) for j in range(len(ys))] for i in range(len(xs))], dtype=torch.float64)

    table = search()
    best = int(table.numpy().argmax())  # of equal ones the first
    pair = (best // len(ys), best % len(ys))
    orders = [torch.randperm(samples, generator=generator) for _ in range(shuffles)]
    control = torch.tensor([float(search(order).max()) for order in orders], dtype=torch.float64)
    interval = None
    if of_rows is not None and resamples:
        rows = of_rows(nearest[0][pair[0]], nearest[1][pair[1]]).cpu()
        interval = _bootstrap(rows, resamples, generator)
    return Alignment(
        metric=metric,
        k=k,
        samples=samples,
        score=float(table.max()),
        layers=pair,
        table=table,
        chance=chance(samples, k) if metric == "mutual_knn" else None,
        shuffled=float(control.mean()) if shuffles else None,
        shuffled_deviation=float(control.std()) if shuffles > 1 else None,
        interval=interval,
    )


def check_features(features: Tensor, name: str) -> None:
    """Refuse what is no table of finite numbers."""
    if features.ndim != 2:
        raise ValueError(f"{name}: (samples, width), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise ValueError(f"{name}: floating-point numbers, got {features.dtype}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name}: values that are not finite")


def check_pair(x: Tensor, y: Tensor) -> None:
    """Refuse features of different samples."""
    check_features(x, "x")
    check_features(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x, y: the same samples in the same order, got {len(x)} and {len(y)}")


def _check_k(k: int, samples: int) -> None:
    if not 1 <= k < samples:
        raise ValueError(f"k: from 1 to the number of samples less one, {samples - 1}, got {k}")


def _similarities(features: Tensor, block: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of some rows, and their inner products with all rows."""
    samples = features.shape[0]
    size = block or max(1, _BLOCK_ENTRIES // samples)
    for rows in torch.arange(samples, device=features.device).split(size):
        yield rows, features[rows] @ features.T


def _top(scores: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores of each row, highest first, the lower column first among equal ones."""
    values, columns = scores.topk(k, dim=1)
    tied = (scores >= values[:, -1:]).sum(1) > k
    if bool(tied.any()):
        columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    return columns.gather(1, scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices)


def _nearest(features: Tensor, k: int, *, own: bool, block: int | None) -> Tensor:
    if not own:
        return nearest_neighbours(features, k, block=block)
    found = [(_top(scores, k)) for _, scores in _similarities(features, block)]
    return torch.cat(found)


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Of each row, the share of its neighbours that both have."""
    parts = zip(first.split(1 << 14), second.split(1 << 14), strict=True)
    return torch.cat([(a[:, :, None] == b[:, None, :]).any(-1).double().mean(1) for a, b in parts])


def _cycles(first: Tensor, second: Tensor) -> Tensor:
    """Of each row, whether it is among the first's neighbours of the second's neighbours."""
    rows = torch.arange(len(first), device=first.device)
    parts = zip(rows.split(1 << 14), second.split(1 << 14), strict=True)
    return torch.cat([(first[near] == row[:, None, None]).flatten(1).any(1).double() for row, near in parts])


def _reordered(nearest: Tensor, order: Tensor) -> Tensor:
    """Neighbours of rows that are taken in another order."""
    order = order.to(nearest.device)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return inverse[nearest[order]]


def _bootstrap(rows: Tensor, resamples: int, generator: torch.Generator) -> tuple[float, float]:
    count = len(rows)
    means = [rows[torch.randint(count, (count,), generator=generator)].mean() for _ in range(resamples)]
    low, high = torch.stack(means).quantile(torch.tensor([0.025, 0.975], dtype=rows.dtype)).tolist()
    return low, high


@dataclass(frozen=True)
class _Sums:
    """What HSIC needs to know of two kernels K and L.

    Fields:
        product: sum of K_ij L_ji off the diagonal.
        on_diagonal: the same on it.
        columns, rows: sums of each column and row of K and of L, (2, samples) each, off the diagonal.
        diagonals: of K and of L.
    """

    product: Tensor
    on_diagonal: Tensor
    columns: Tensor
    rows: Tensor
    diagonals: Tensor


def _hsic(sums: _Sums, *, unbiased: bool) -> Tensor:
    """HSIC, biased as the trace of K H L H, H = 1 - 1/m; kernels with entries left out need not be symmetric."""
    m = sums.columns.shape[1]
    if unbiased:
        column, row = sums.columns[0], sums.rows[1]
        between = column.sum() * row.sum() / ((m - 1) * (m - 2))
        return (sums.product + between - 2 * (column * row).sum() / (m - 2)) / (m * (m - 3))
    columns, rows = sums.columns + sums.diagonals, sums.rows + sums.diagonals
    crossed = (columns[0] * rows[1] + rows[0] * columns[1]).sum()
    return sums.product + sums.on_diagonal - crossed / m + columns[0].sum() * columns[1].sum() / m**2


def _linear_sums(a: Tensor, b: Tensor) -> _Sums:
    """Of inner products, without forming them: sum K_ij L_ij = |a^T b|²."""
    own = torch.stack([part.square().sum(1) for part in (a, b)])
    sums = torch.stack([part @ part.sum(0) for part in (a, b)]) - own
    on_diagonal = own.prod(0).sum()
    return _Sums((a.T @ b).square().sum() - on_diagonal, on_diagonal, sums, sums, own)


def _rbf_sums(a: Tensor, b: Tensor, sigma: float, block: int | None) -> _Sums:
    count = len(a)
    product = a.new_zeros(())
    sums = a.new_zeros((2, count))
    for rows in torch.arange(count, device=a.device).split(block or max(1, _BLOCK_ENTRIES // count)):
        kernels = [torch.exp(-torch.cdist(part[rows], part).square() / (2 * sigma**2)) for part in (a, b)]
        product = product + (kernels[0] * kernels[1]).sum()
        for place, kernel in zip(sums, kernels, strict=True):
            place[rows] = kernel.sum(1)
    own = torch.ones_like(sums)
    return _Sums(product - count, own[0].sum(), sums - own, sums - own, own)


def _sparse_sums(row: Tensor, column: Tensor, k: Tensor, l: Tensor, count: int) -> _Sums:
    """Of kernels with entries k and l at the same places, zero elsewhere."""
    off = row != column
    forward, backward = row * count + column, column * count + row
    order = forward.argsort()
    product = k.new_zeros(len(k))
    if len(order):
        partner = order[torch.searchsorted(forward[order], backward).clamp(max=len(order) - 1)]
        product = torch.where(forward[partner] == backward, k * l[partner], product)

    def gathered(place: Tensor, kept: Tensor) -> Tensor:
        return torch.stack([k.new_zeros(count).index_add(0, place[kept], part[kept]) for part in (k, l)])

    return _Sums(
        product[off].sum(), product[~off].sum(), gathered(column, off), gathered(row, off), gathered(row, ~off)
    )


def _normalised(between: Tensor, x: Tensor, y: Tensor) -> float:
    return float(between / ((x * y).sqrt() + _LEAST))


def alignment_dict(alignment: Alignment) -> dict[str, Any]:
    """An alignment as plain data."""
    plain = {name: value for name, value in vars(alignment).items() if name != "table"}
    return plain | {"table": alignment.table.tolist()}
