"""`Route`: what is walked is put back, whatever the walk pads or leaves out; values compose; graphs hold the tables."""

import numpy as np
import pytest
import torch

from statescan import routes


@pytest.mark.parametrize("name", ["raster", "column", "cross", "bidirectional"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 4), (6, 5)])
def test_what_is_walked_is_put_back(name, size):
    grid = torch.randn(2, *size, 3)
    route = routes.get(name)
    sequences = route.walk(grid)
    assert sequences.shape == (2, size[0] * size[1], route.walks, 3)
    back = route.unwalk(sequences, *size)
    assert torch.equal(back, grid[:, :, :, None].expand_as(back))
    torch.testing.assert_close(route.merge(sequences, *size), route.walks * grid)


def test_the_gradient_of_walking_is_the_merge():
    grid = torch.randn(1, 3, 4, 2, requires_grad=True)
    route = routes.get("cross")
    weight = torch.randn(1, 12, 4, 2)
    (gradient,) = torch.autograd.grad((route.walk(grid) * weight).sum(), grid)
    torch.testing.assert_close(gradient, route.merge(weight, 3, 4))


def partial(height, width):
    return [np.array([0, -1, 2]), np.array([1])]


def test_padding_reads_zeros_and_cells_left_out_get_none():
    route = routes.Route("partial", partial)
    grid = torch.arange(4.0).view(1, 2, 2, 1) + 1
    sequences = route.walk(grid)
    assert sequences[0, :, :, 0].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert route.merge(sequences + 1, 2, 2).flatten().tolist() == [2, 3, 4, 0]
    assert route.pads(2, 2)
    assert route.misses(2, 2)


def test_routes_compose():
    both = routes.get("raster") + routes.get("column").reversed()
    assert both.table(2, 3).tolist() == [[0, 1, 2, 3, 4, 5], [5, 2, 4, 1, 3, 0]]


def test_tables_are_made_once():
    assert routes.get("cross").table(6, 7) is routes.get("cross").table(6, 7)


def test_walking_compiles_as_one_graph_for_any_size():
    route = routes.get("cross")
    compiled = torch.compile(lambda x: route.merge(route.walk(x), *x.shape[1:3]), fullgraph=True, backend="aot_eager")
    for height, width in ((3, 4), (5, 4), (6, 7)):
        grid = torch.randn(1, height, width, 2)
        torch.testing.assert_close(compiled(grid), 4 * grid)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routes.get("crss"), "unknown 'crss'; nearest: 'cross'"),
        (lambda: routes.register("cross", partial), "exists already"),
        (lambda: routes.get("cross").walk(torch.zeros(2, 3, 4)), r"grid: \(batch, height, width, channels\)"),
        (lambda: routes.get("cross").merge(torch.zeros(1, 6, 3, 2), 2, 3), r"sequences: \(batch, 6, 4, channels\)"),
        (lambda: routes.get("cross").table(0, 3), "at least 1 x 1"),
        (lambda: routes.Route("bad", lambda h, w: np.array([9])).table(2, 2), "a cell outside of the 2 x 2 grid"),
        (lambda: routes.Route("bad", lambda h, w: np.array([1, 1])).inverse(2, 2), "comes twice to a cell"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)])
def test_walks_that_share_the_cells_are_merged_by_one_reading(size):
    shared, crossed = routes.get("atrous_step2"), routes.get("cross")
    assert shared.shares(*size) and not crossed.shares(*size)
    sequences = torch.randn(2, shared.length(*size), shared.walks, 3, requires_grad=True)
    merged, joined = shared.merge(sequences, *size), shared.join(shared.unwalk(sequences, *size))
    assert torch.equal(merged, joined)
    weight = torch.randn_like(merged)
    (have,), (want,) = (torch.autograd.grad(made, sequences, weight) for made in (merged, joined))
    assert torch.equal(have, want)
