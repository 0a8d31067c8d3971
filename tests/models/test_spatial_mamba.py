"""Spatial-Mamba: fusion in training and evaluation, fresh kernels, states of scans."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan
from statescan import ops
from statescan.layers.grid import StateFusion, StructureAwareSSM


def fusion(**options: Any) -> StateFusion:
    torch.manual_seed(0)
    module = StateFusion(3, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter)
    return module


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_merged_kernel_equals_the_dilated_ones_everywhere(padding: str) -> None:
    module, x = fusion(), torch.randn(2, 9, 13, 3)
    arguments = dict(kernels=list(module.kernels), weights=module.weights, padding=padding)
    apart = ops.state_fusion(x, **arguments)
    torch.testing.assert_close(ops.state_fusion(x, **arguments, merged=True), apart, rtol=1e-4, atol=1e-4)


def test_training_and_evaluation_differ_at_the_border_alone() -> None:
    module, x = fusion(), torch.randn(1, 16, 18, 3)
    trained, evaluated = module.train()(x), module.eval()(x)
    torch.testing.assert_close(trained[:, 5:-5, 5:-5], evaluated[:, 5:-5, 5:-5], rtol=1e-5, atol=1e-5)
    assert (trained - evaluated).abs().max() > 0.1
    same = fusion(eval_padding="replicate")
    torch.testing.assert_close(same.train()(x), same.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_step_after_an_evaluation_changes_the_next_one() -> None:
    module, x = fusion(), torch.randn(1, 7, 7, 3)
    before = module.eval()(x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(x).square().mean().backward()
    optimizer.step()
    after = module.eval()(x)
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_states_of_a_scan(states: int, backend: str) -> None:
    torch.manual_seed(0)
    x, delta, B = torch.randn(2, 7, 4), torch.randn(2, 7, 4), torch.randn(2, 7, states)
    A, bias = -torch.rand(4, states), torch.randn(4)
    with ops.backend(backend):
        given = ops.selective_states(x, delta, A, B, delta_bias=bias, delta_softplus=True)
    step = torch.nn.functional.softplus(delta + bias)
    h = torch.zeros(2, 4, states)
    for t in range(7):
        h = torch.exp(step[:, t, :, None] * A) * h + step[:, t, :, None] * x[:, t, :, None] * B[:, t, None]
        torch.testing.assert_close(given[:, t], h, rtol=1e-4, atol=1e-5)
    leaves = [tensor.double().requires_grad_() for tensor in (x, delta, A, B)]
    assert torch.autograd.gradcheck(lambda *a: ops.selective_states(*a, delta_softplus=True), leaves)


def test_several_states_and_gradients_of_the_fusion() -> None:
    module = fusion().double()
    x = torch.randn(1, 4, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    y = module.eval()(x)
    torch.testing.assert_close(y[..., 1], module(x[..., 1]))
    assert torch.autograd.gradcheck(module, (x,))
    mixer = StructureAwareSSM(6, state_dim=3)
    assert mixer(torch.randn(2, 4, 5, 6)).shape == (2, 4, 5, 6)


def test_wrong_fusions_are_refused() -> None:
    module, x = fusion(), torch.randn(1, 4, 5, 4)
    with pytest.raises(ValueError, match=r"states: \(batch, height, width, 3 channels"):
        module(x)
    with pytest.raises(ValueError, match="kernels, weights, dilations: as many of each"):
        ops.state_fusion(x, list(module.kernels), module.weights[:2])
    with pytest.raises(ValueError, match=r"kernels: \(channels, 1, 3, 3\) each"):
        ops.state_fusion(x, [torch.ones(4, 1, 5, 5)], torch.ones(1), dilations=(1,))
    with pytest.raises(ValueError, match=r"A, B: \(4, states\)"):
        ops.selective_states(x[0], x[0], torch.ones(4, 2), torch.ones(4, 5, 3))


@pytest.mark.parametrize("route", ["raster", "column", "raster_reversed"])
def test_one_walk_of_any_route_sees_its_past(route: str) -> None:
    torch.manual_seed(0)
    mixer = StructureAwareSSM(4, route=route, fusion=False)
    mixer.convolution = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[0, 1, 1].sum(), x)
    reads = (gradient[0].abs().sum(-1) > 0).flatten()
    walk = statescan.routes.get(route).table(3, 4)[0].tolist()
    place = walk.index(5)
    assert {cell for cell in range(12) if reads[cell]} == set(walk[: place + 1])


def test_fusion_sees_what_the_scan_has_not_come_to() -> None:
    torch.manual_seed(0)
    for fused in (True, False):
        mixer = StructureAwareSSM(4, fusion=fused)
        mixer.convolution = torch.nn.Identity()  # type: ignore[assignment]
        x = torch.randn(1, 9, 9, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(mixer(x)[0, 2, 2].sum(), x)
        assert bool((gradient[0, 7, 7].abs() > 0).any()) == fused
