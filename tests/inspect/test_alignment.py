"""Alignment of two encoders: metrics, the search over layers, and the scaling law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from statescan import inspect


def features(samples=60, width=12, seed=0):
    return F.normalize(torch.randn(samples, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def related(samples=60, noise=0.5, seed=0):
    """Two views of one hidden variable."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(samples, 5, generator=generator)
    views = []
    for width in (12, 9):
        view = hidden @ torch.randn(5, width, generator=generator)
        views.append(F.normalize(view + noise * torch.randn(samples, width, generator=generator), dim=-1))
    return views


def dense_hsic(k, l, unbiased):
    m = len(k)
    if not unbiased:
        centre = torch.eye(m, dtype=k.dtype) - 1 / m
        return torch.trace(k @ centre @ l @ centre)
    k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)
    total = (k * l.T).sum() + k.sum() * l.sum() / ((m - 1) * (m - 2)) - 2 * (k @ l).sum() / (m - 2)
    return total / (m * (m - 3))


@pytest.mark.parametrize("metric", sorted(inspect.METRICS))
def test_an_encoder_is_aligned_with_itself_turned_and_scaled(metric):
    x, _ = related()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))[0]
    measure = inspect.METRICS[metric]
    if metric != "cycle_knn":  # a sample need not be among the neighbours of its neighbours
        assert measure(x, x, 5) == pytest.approx(1.0, abs=2e-3)
    assert measure(x, x @ turn, 5) == pytest.approx(measure(x, x, 5), abs=1e-5)
    if metric != "rbf_cka":
        assert measure(x, 3 * x @ turn, 5) == pytest.approx(measure(x, x, 5), abs=2e-3)


def test_unrelated_features_have_the_overlap_of_chance():
    scores = torch.tensor([inspect.mutual_knn(features(seed=s), features(seed=100 + s), 5) for s in range(40)])
    assert abs(scores.mean() - inspect.chance(60, 5)) < 3 * scores.std() / math.sqrt(len(scores))


def test_neighbours_are_those_of_the_whole_matrix_whatever_the_block():
    x, y = related()
    scores = (x @ x.T).fill_diagonal_(-1e8)
    dense = scores.argsort(dim=1, descending=True, stable=True)[:, :7]
    for block in (None, 1, 13, 60):
        assert torch.equal(inspect.nearest_neighbours(x, 7, block=block), dense)
        assert inspect.mutual_knn(x, y, 7, block=block) == inspect.mutual_knn(x, y, 7)
        assert inspect.cka(x, y, kernel="rbf", block=block) == pytest.approx(inspect.cka(x, y, kernel="rbf"))
        assert inspect.cknna(x, y, 7, block=block) == inspect.cknna(x, y, 7)


def test_of_equal_neighbours_the_lower_index_comes_first():
    x = torch.ones(6, 3)
    assert inspect.nearest_neighbours(x, 3).tolist() == [
        *([1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    ]
    x = torch.tensor([[1.0], [2.0], [2.0], [3.0]])
    assert inspect.nearest_neighbours(x, 2).tolist() == [[3, 1], [3, 2], [3, 1], [1, 2]]


@pytest.mark.parametrize("unbiased", [False, True])
def test_kernel_alignment_is_that_of_the_kernels(unbiased):
    x, y = (view.double() for view in related())
    k, l = x @ x.T, y @ y.T

    def ratio(k, l):
        parts = [dense_hsic(a, b, unbiased) for a, b in ((k, l), (k, k), (l, l))]
        return float(parts[0] / ((parts[1] * parts[2]).sqrt() + 1e-6))

    assert inspect.cka(x, y, unbiased=unbiased) == pytest.approx(ratio(k, l), rel=1e-9)
    rbf = [torch.exp(-torch.cdist(view, view).square() / (2 * 0.7**2)) for view in (x, y)]
    assert inspect.cka(x, y, kernel="rbf", sigma=0.7, unbiased=unbiased) == pytest.approx(ratio(*rbf), rel=1e-6)

    def masks(kernel):
        seen = kernel.clone()
        if unbiased:
            seen.fill_diagonal_(-math.inf)
        return torch.zeros_like(kernel).scatter_(1, seen.topk(6, dim=1).indices, 1)

    of_k, of_l = masks(k), masks(l)
    both = of_k * of_l
    parts = [dense_hsic(m * a, m * b, unbiased) for m, a, b in ((both, k, l), (of_k, k, k), (of_l, l, l))]
    expected = float(parts[0] / ((parts[1] * parts[2]).sqrt() + 1e-6))
    assert inspect.cknna(x, y, 6, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)


def test_cycles_are_those_of_the_definition():
    x, y = related(noise=2.0)
    near = [inspect.nearest_neighbours(view, 3).tolist() for view in (x, y)]
    met = [any(i in near[0][j] for j in near[1][i]) for i in range(60)]
    assert inspect.cycle_knn(x, y, 3) == pytest.approx(sum(met) / 60)


def test_outliers_are_clamped_at_an_order_statistic():
    x = torch.arange(-10.0, 10.0).reshape(4, 5)
    limit = x.abs().flatten().sort().values[int(0.9 * 20)]
    assert inspect.clamp_outliers(x, 0.9).abs().max() == limit
    assert torch.equal(inspect.clamp_outliers(x, 1), x)


def test_the_search_finds_the_layers_that_share_most():
    x, y = related()
    noise = features(60, 12, 7)
    found = inspect.align(torch.stack([noise, x], 1), [features(60, 9, 8), features(60, 9, 9), y], k=5, shuffles=30)
    assert found.layers == (1, 2)
    assert found.table.shape == (2, 3)
    assert found.score == found.table.max()
    assert found.interval[0] <= found.score <= found.interval[1]
    # The best of six pairs of shuffled rows is above chance.
    assert found.chance == pytest.approx(5 / 59)
    assert found.chance < found.shuffled < found.score
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    alone = inspect.align(x, y, k=5, shuffles=1, resamples=0)
    assert alone.shuffled == pytest.approx(inspect.align(x, y[shuffled], k=5, shuffles=0, resamples=0).score)
    assert alone.interval is None
    kernel = inspect.align(x, y, metric="cka", k=5, shuffles=2)
    assert kernel.interval is None
    assert kernel.chance is None
    assert kernel.shuffled < kernel.score


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: inspect.mutual_knn(x, x[:50], 5), "the same samples in the same order, got 60 and 50"),
        (lambda x: inspect.mutual_knn(x, x, 60), "k: from 1 to the number of samples less one, 59, got 60"),
        (lambda x: inspect.mutual_knn(x[0], x[0], 6), r"\(samples, width\), got \(12,\)"),
        (lambda x: inspect.mutual_knn(x.int(), x, 6), "floating-point numbers, got torch.int32"),
        (lambda x: inspect.mutual_knn(x / 0, x, 6), "not finite"),
        (lambda x: inspect.cknna(x, x, 1), "k: at least 2 for cknna, got 1"),
        (lambda x: inspect.cka(x, x, kernel="cubic"), "kernel: linear or rbf, got 'cubic'"),
        (lambda x: inspect.cka(x, x, sigma=0.0), "sigma: a positive number"),
        (lambda x: inspect.cka(x[:3], x[:3], unbiased=True), "at least 4 samples, got 3"),
        (lambda x: inspect.clamp_outliers(x, 0.0), "quantile: above 0, at most 1, got 0.0"),
        (lambda x: inspect.align(x, x, metric="knn"), "metric: mutual_knn, .* got 'knn'"),
        (lambda x: inspect.align(x, x[:40]), "the same samples in every layer, got 60 and 40"),
        (lambda x: inspect.align([], x), "no layers"),
        (lambda x: inspect.align(x[None, None], x), "got \\(1, 1, 60, 12\\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(features())


FRAMES, CAPTIONS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 3, 5, 8, 10)
PUBLISHED = {
    "VideoMAEv2": inspect.ScalingLaw(0.41, 0.15, 0.13, 0.75, 1.30),
    "DINOv2": inspect.ScalingLaw(0.37, 0.05, 0.13, 1.76, 1.40),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fit_finds_the_published_numbers_again(name):
    law = PUBLISHED[name]
    clean = law.scores(FRAMES, CAPTIONS)
    exact = inspect.fit_scaling_law(FRAMES, CAPTIONS, clean)
    noisy = clean + 0.002 * np.random.default_rng(0).standard_normal(clean.shape)
    fitted = inspect.fit_scaling_law(FRAMES, CAPTIONS, noisy)
    for field in ("limit", "frame_loss", "caption_loss", "frame_rate", "caption_rate"):
        assert getattr(exact, field) == pytest.approx(getattr(law, field), rel=1e-4)
        assert getattr(fitted, field) == pytest.approx(getattr(law, field), rel=0.1)
    assert fitted.r2 >= law.explains(FRAMES, CAPTIONS, noisy)
    assert exact.r2 == pytest.approx(1)


def test_what_was_not_varied_is_part_of_the_limit():
    law = inspect.ScalingLaw(0.4, 0.2, 0.0, 0.8, 1.0)
    found = inspect.fit_scaling_law(FRAMES, [3], law.scores(FRAMES, [3]))
    assert (found.limit, found.frame_loss, found.caption_loss) == pytest.approx((0.4, 0.2, 0.0), abs=1e-4)
    assert found.frame_rate == pytest.approx(0.8, rel=1e-3)


@pytest.mark.parametrize(
    ("frames", "captions", "scores", "message"),
    [
        ([1, 2], [1, 2], np.ones((2, 3)), r"\(2, 2\), got \(2, 3\)"),
        ([0, 2, 3], [1], np.ones((3, 1)), "positive numbers"),
        ([1, 2], [1, 2], np.eye(2), "at least three different numbers of one, got 2, 2"),
        ([1, 2, 3], [1], np.ones((3, 1)), "not all equal"),
    ],
)
def test_a_fit_needs_points(frames, captions, scores, message):
    with pytest.raises(ValueError, match=message):
        inspect.fit_scaling_law(frames, captions, scores)
