"""`merged_scan`: its kernel against the composition and the float64 reference."""

import dataclasses

import pytest
import torch

from statescan import ops, routes
from statescan.kernels import cpu_merged_scan
from statescan.layers import grid

CASES = {
    "VMamba": dict(route="cross", size=(6, 5), channels=32, rank=3),
    "odd channels": dict(route="cross", size=(7, 3), channels=37, rank=2),
    "more blocks than a strip": dict(route="bidirectional", size=(3, 4), channels=100, rank=5),
    "one cell": dict(route="cross", size=(1, 1), channels=5, rank=1),
    "two states": dict(route="cross", size=(4, 4), channels=16, rank=2, states=2),
    "four states": dict(route="cross", size=(3, 5), channels=18, rank=2, states=4),
    "three states: no kernel": dict(route="cross", size=(3, 5), channels=18, rank=2, states=3),
    "no rank": dict(route="cross", size=(3, 2), channels=8, rank=0),
    "batch": dict(route="cross", size=(4, 3), channels=20, rank=2, batch=3),
    "windows that pad": dict(route="window2", size=(3, 3), channels=4, rank=1),
    "no images": dict(route="cross", size=(3, 3), channels=4, rank=1, batch=0),
}


def arguments(route, size, channels, rank, states=1, batch=2, dtype=torch.float32):
    torch.manual_seed(0)
    route = routes.get(route)
    walks, cells = route.walks, size[0] * size[1]
    made = {
        "x": torch.randn(batch, cells, channels),
        "selected": torch.randn(batch, cells, walks, rank + 2 * states),
        "delta_weight": torch.randn(walks, channels, rank),
        "A": -torch.rand(walks * channels, states) - 0.1,
        "D": torch.randn(walks * channels),
        "delta_bias": torch.randn(walks * channels) - 1,
    }
    return {name: value.to(dtype) for name, value in made.items()} | {"order": route.table(*size, torch.device("cpu"))}


@pytest.mark.parametrize("case", CASES)
def test_kernel_and_composition_agree_with_the_reference(case):
    made = arguments(**CASES[case])
    want = ops.merged_scan_reference(**arguments(**CASES[case], dtype=torch.float64)).float()
    with torch.no_grad():
        found = ops.merged_scan(**made)
    torch.testing.assert_close(found, want, rtol=2e-5, atol=2e-5)
    leaf = made["x"].clone().requires_grad_()
    composed = ops.merged_scan(**made | {"x": leaf})
    torch.testing.assert_close(composed.detach(), want, rtol=2e-5, atol=2e-5)
    if leaf.numel():
        assert composed.requires_grad


def test_it_has_gradients_in_everything_that_floats():
    made = arguments(route="cross", size=(2, 3), channels=3, rank=2, batch=1, dtype=torch.float64)
    order = made.pop("order")
    leaves = [value.requires_grad_() for value in made.values()]

    def call(*values):
        return ops.merged_scan(**dict(zip(made, values, strict=True)), order=order)

    assert torch.autograd.gradcheck(call, leaves)


def test_strided_cells_are_read_where_they_lie():
    made = arguments(route="cross", size=(4, 4), channels=16, rank=2)
    wide = torch.randn(2, 16, 40)
    wide[..., 8:24] = made["x"]
    with torch.no_grad():
        assert torch.equal(ops.merged_scan(**made | {"x": wide[..., 8:24]}), ops.merged_scan(**made))


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(cpu_merged_scan, "_WORK_PER_THREAD", 1)
    made = arguments(route="cross", size=(5, 4), channels=70, rank=2, batch=3)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(cpu_merged_scan.cpu, "threads", lambda threads=threads: threads)
        with torch.no_grad():
            found.append(ops.merged_scan(**made))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nan_passes_through_and_a_pinned_reference_is_obeyed():
    made = arguments(route="cross", size=(3, 3), channels=16, rank=2)
    made["x"][0, 4, 3] = float("nan")
    with torch.no_grad():
        found = ops.merged_scan(**made)
        assert torch.isnan(found[0, :, 3]).any()
        assert not torch.isnan(found[1]).any()
        with ops.backend("reference"):
            assert torch.equal(ops.merged_scan(**made).nan_to_num(), ops.merged_scan_reference(**made).nan_to_num())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 9, 15)}, "A"),
        ({"selected": torch.zeros(2, 9, 4, 5)}, "selected"),
        ({"order": torch.full((4, 9), 9)}, "order holds cells from 0 to 8"),
        ({"order": torch.zeros(4, 9)}, "order"),
        ({"A": torch.full((64, 1), float("nan"))}, "NaN"),
        ({"D": torch.zeros(3)}, "D"),
    ],
)
def test_bad_arguments_are_named(change, message):
    made = arguments(route="cross", size=(3, 3), channels=16, rank=2)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        ops.merged_scan(**made | change)


def test_a_route_that_joins_walks_otherwise_is_obeyed():
    class Halved(routes.Route):
        def join(self, values, how="sum"):
            return super().join(values, how) / 2

    plain = routes.get("cross")
    halved = Halved(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    scan = grid.RouteScan(8, 4, state_dim=1, dt_rank=2)
    cells = torch.randn(1, 3, 4, 8)
    with torch.no_grad():
        for module in (scan, grid.PackedRouteScan(scan)):
            torch.testing.assert_close(module(cells, halved), module(cells, plain) / 2)
