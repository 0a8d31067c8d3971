"""`route_scan`: the kernel against walking, scanning and putting back; routes that pad and routes that leave out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops, routes
from tests.ops._cases import HALF, check_against_reference, random

PADDED = torch.tensor([[0, 5, -1, 2, 11, -1], [-1, -1, 3, 4, 9, 10]])


def arguments(height=5, width=7, channels=6, states=3, *, batch=2, order="cross", extras=True, **options):
    """Named arguments of `route_scan`; `order` is a table or a route's name."""
    order = routes.get(order).table(height, width) if isinstance(order, str) else order
    walks, cells = len(order), height * width
    made = {
        "x": random(batch, cells, channels),
        "delta": 0.5 * random(batch, cells, walks, channels, seed=1),
        "A": -0.1 - 2 * random(walks * channels, states, seed=2).abs(),
        "B": random(batch, cells, walks, states, seed=3),
        "C": random(batch, cells, walks, states, seed=4),
        "order": order,
        "delta_softplus": True,
    }
    if extras:
        made["D"], made["delta_bias"] = random(walks * channels, seed=5), random(walks * channels, seed=6) - 2
    return made | options


def floats(**options):
    return {
        n: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for n, v in arguments(**options).items()
    }


CASES = {
    "cross": dict(),
    "no extras": dict(extras=False),
    "steps as they are": dict(extras=False, delta_softplus=False),
    "one walk": dict(order="raster"),
    "two walks, many channels": dict(order="bidirectional", channels=37),
    "one state": dict(states=1, channels=33),
    "sixteen states": dict(states=16, channels=20),
    "longer than a tile": dict(height=13, width=11, channels=17),
    "padding and cells left out": dict(height=3, width=4, order=PADDED),
    "one cell": dict(height=1, width=1),
    "no cells": dict(batch=2, height=0, width=4, order=torch.zeros(2, 0, dtype=torch.int64)),
    "no batch": dict(batch=0),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_reference(case):
    check_against_reference(ops.route_scan, ops.route_scan_reference, arguments(**CASES[case]))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype):
    check_against_reference(
        ops.route_scan,
        ops.route_scan_reference,
        arguments(),
        dtype=dtype,
        narrow=("x", "delta", "B", "C"),
        tolerance=2 * HALF[dtype],
    )


def test_steps_that_lie_walk_after_walk():
    """As a batch of matrix products, one a walk, leaves them."""
    made = floats(batch=3)
    laid = made["delta"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    assert not laid.is_contiguous()
    want = ops.route_scan(**made)
    assert torch.equal(ops.route_scan(**made | {"delta": laid}), want)
    leaf = laid.detach().requires_grad_()
    plain = made["delta"].detach().requires_grad_()
    (have,) = torch.autograd.grad(ops.route_scan(**made | {"delta": leaf}).square().sum(), leaf)
    (want,) = torch.autograd.grad(ops.route_scan(**made | {"delta": plain}).square().sum(), plain)
    torch.testing.assert_close(have, want)


def test_both_threads_give_what_one_gives():
    made = floats(height=20, width=20, channels=64, states=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.route_scan(**made)
        torch.set_num_threads(2)
        two = ops.route_scan(**made)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.sampled_from(["cross", "bidirectional", "column"]))
def test_is_walking_scanning_and_putting_back(height, width, channels, name):
    made = arguments(height, width, channels, 2, batch=1, order=name)
    route = routes.get(name)

    def walk(rows):
        return torch.stack([rows[:, cells, k] for k, cells in enumerate(made["order"])], 2)

    scanned = ops.selective_scan(
        route.walk(made["x"].view(1, height, width, channels)).flatten(2),
        walk(made["delta"]).flatten(2),
        made["A"],
        walk(made["B"]),
        walk(made["C"]),
        made["D"],
        delta_bias=made["delta_bias"],
        delta_softplus=True,
    )
    want = route.merge(scanned.view(1, -1, route.walks, channels), height, width)
    torch.testing.assert_close(ops.route_scan(**made).sum(2).view_as(want), want)


def test_gradcheck_of_the_reference():
    made = arguments(2, 2, 2, 2, batch=1, order=torch.tensor([[0, -1, 3], [2, 1, 0]]))
    names = [n for n, v in made.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    rest = {n: v for n, v in made.items() if n not in names}
    assert torch.autograd.gradcheck(
        lambda *values: ops.route_scan_reference(**dict(zip(names, values, strict=True)), **rest),
        [made[n].requires_grad_() for n in names],
    )


@pytest.mark.parametrize("case", ["cross", "padding and cells left out"])
def test_registration(case):
    args = ops._route_scan._bind(**floats(**CASES[case]))
    args = [a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args]
    torch.library.opcheck(torch.ops.statescan.route_scan.default, (*args[:-1], True))


def test_compiles_as_one_graph_with_gradients():
    made = floats()
    leaf = made["delta"].requires_grad_()
    compiled = torch.compile(lambda **kwargs: ops.route_scan(**kwargs).square().sum(), fullgraph=True)
    (have,) = torch.autograd.grad(compiled(**made), leaf)
    (want,) = torch.autograd.grad(ops.route_scan(**made).square().sum(), leaf)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 35)}, "x"),
        ({"delta": torch.randn(2, 35, 3, 6)}, "delta"),
        ({"order": torch.zeros(4, 35)}, r"order \(walks, length\) of int64"),
        ({"order": torch.full((4, 35), 35)}, "order holds cells from 0 to 34 and -1 for padding, got 35 to 35"),
        ({"A": torch.full((24, 3), float("nan"))}, "A"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        ops.route_scan(**floats() | change)
