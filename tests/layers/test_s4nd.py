"""S4ND: a product of kernels is a convolution over several axes, at any resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from statescan.layers import S4, S4ND

DIM = 3


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def build(**options: Any) -> Any:
    torch.manual_seed(7)
    return S4ND(DIM, **{"state_dim": 8, "kernel": "diagonal"} | options).eval()


def two_sided(kernel: Tensor, length: int) -> Tensor:
    """(…, 2 length - 1): delays from -(length - 1) to length - 1, from a kernel and its backward half."""
    forward, backward = kernel.chunk(2)
    wide = forward.new_zeros(*forward.shape[:-1], 2 * length - 1)
    wide[..., length - 1 :][..., : forward.shape[-1]] = forward[..., :length]
    behind = backward[..., : length - 1].flip(-1)
    wide[..., length - 1 - behind.shape[-1] : length - 1] = behind
    return wide


@pytest.mark.parametrize("options", [dict(), dict(channels=2, tensor_rank=3), dict(kernel="dplr"), dict(max_length=4)])
@torch.no_grad()
def test_two_axes_are_a_dense_convolution(options: dict[str, Any]) -> None:
    layer, x = build(**options), noise(2, 5, 6, DIM)
    taps = [min(size, most or size) for size, most in zip((5, 6), layer.max_length, strict=True)]
    rows, columns = (two_sided(k, n) for k, n in zip(layer.axis_kernels(taps), (5, 6), strict=True))
    dense = torch.einsum("rhi,rhj->rhij", rows, columns).unflatten(0, (layer.tensor_rank, layer.channels)).mean(0)
    want = torch.zeros(2, 5, 6, layer.channels, DIM)
    for i in range(5):
        for j in range(6):
            window = dense[:, :, 4 - torch.arange(5) + i][..., 5 - torch.arange(6) + j]
            want[:, i, j] = torch.einsum("chst,bsth->bch", window, x)
    want = (want + x[..., None, :] * layer.D).flatten(-2)
    torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["diagonal", "dplr"])
@torch.no_grad()
def test_one_axis_is_the_sequence_layer(kernel: str) -> None:
    layer = build(axes=1, kernel=kernel, initialisation="legs", linear=False, output="glu", discretization="bilinear")
    options = dict(state_dim=8, kernel=kernel, initialisation="legs", bidirectional=True, discretization="bilinear")
    sequence = S4(DIM, **options).eval()
    sequence.load_state_dict({name.replace("kernels.0.", "kernel."): t for name, t in layer.state_dict().items()})
    x = noise(2, 11, DIM)
    torch.testing.assert_close(layer(x), sequence(x)[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_three_axes_one_after_the_other() -> None:
    """A kernel of rank one convolves axis by axis."""
    layer, x = build(axes=3, initialisation="diag-inv"), noise(1, 4, 3, 5, DIM)
    y = x
    for axis, kernel in enumerate(layer.axis_kernels(x.shape[1:-1])):
        size = y.shape[1 + axis]
        taps = two_sided(kernel, size)[0]
        lag = torch.arange(size)[:, None] - torch.arange(size) + size - 1
        y = torch.einsum("hts,b...sh->b...th", taps[:, lag], y.movedim(1 + axis, -2)).movedim(-2, 1 + axis)
    torch.testing.assert_close(layer(x), y + x * layer.D, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_direction_reads_only_what_lies_before() -> None:
    layer, x = build(bidirectional=False, axes=2), noise(1, 6, 5, DIM)
    changed = x.clone()
    changed[:, 3, 2] += 1
    moved = (layer(changed) - layer(x)).abs().amax((0, 3)) > 1e-6
    assert not moved[:3].any()
    assert not moved[:, :2].any()
    both = build(bidirectional=True)
    moved = (both(changed) - both(x)).abs().amax((0, 3)) > 1e-7
    assert moved[:3, :2].any()


@torch.no_grad()
def test_a_band_limit_carries_over_to_another_resolution() -> None:
    """A smooth image of twice the resolution, read at rate 1/2, gives nearly the output, and without the limit not."""

    def error(bandlimit: float | None) -> float:
        layer = build(state_dim=64, bandlimit=bandlimit, dt_min=0.1, dt_max=1.0, discretization="bilinear")
        angle = torch.arange(32) / 32 * 2 * torch.pi
        x = (torch.sin(angle)[:, None] * torch.cos(angle))[None, :, :, None].expand(1, 32, 32, DIM)
        fine, coarse = pooled(layer(x, rate=0.5)), layer(pooled(x))
        return float((coarse - fine).norm() / fine.norm())

    assert error(0.2) < 0.15
    assert error(None) > 0.2


def pooled(x: Tensor) -> Tensor:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


@torch.no_grad()
def test_rates_may_differ_between_axes() -> None:
    layer, x = build(), noise(1, 6, 6, DIM)
    torch.testing.assert_close(layer(x, rate=(2.0, 2.0)), layer(x, rate=2.0))
    assert not torch.allclose(layer(x, rate=(2.0, 1.0)), layer(x, rate=2.0))


@pytest.mark.parametrize("kernel", ["diagonal", "dplr"])
def test_double_precision_and_gradients(kernel: str) -> None:
    layer = build(kernel=kernel, linear=False, output="glu").double()
    x = noise(2, 4, 3, DIM).double().requires_grad_()
    layer(x)
    y = layer(x)
    assert y.dtype == torch.float64
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (x, *layer.parameters()))
    assert torch.autograd.gradcheck(layer, (x.detach().requires_grad_(),))


@torch.no_grad()
def test_empty_inputs_and_half_precision() -> None:
    layer = build(channels=2)
    assert layer(noise(0, 4, 5, DIM)).shape == (0, 4, 5, 2 * DIM)
    assert layer(noise(2, 0, 5, DIM)).shape == (2, 0, 5, 2 * DIM)
    half = build().bfloat16()
    assert half(noise(1, 4, 5, DIM).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build()(noise(2, 4, DIM)), r"x: \(batch, 2 axes, 3 channels\), got \(2, 4, 3\)"),
        (lambda: build()(noise(2, 4, 4, DIM), rate=(1.0,)), "rate: a positive number, or one for each of 2 axes"),
        (lambda: build()(noise(2, 4, 4, DIM), rate=0.0), "rate: a positive number"),
        (lambda: build(max_length=(3, 4, 5)), "max_length: one bound for each of 2 axes, got 3"),
        (lambda: build(axes=0), "axes: at least 1, got 0"),
        (lambda: build(activation="glu"), "activation: 'glu' halves the channels"),
        (lambda: build(kernel="dlpr"), "kernel: unknown 'dlpr'; nearest: 'dplr'"),
    ],
)
def test_what_is_refused_says_so(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
