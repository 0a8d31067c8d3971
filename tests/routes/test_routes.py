"""Walks: each visits what it says, and back; routes as values; what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statescan import routes

#: Every route that visits each cell once a walk.
WHOLE = [
    *(name for name in routes.names() if name not in ("multiscale_low", "middle_token", "two_tokens")),
    *("window1", "window2", "window3_flip", "window7", "window2_column_first", "window3_column_first_flip"),
    *("nested_s_stripe2_shift0", "nested_s_stripe2_shift1", "nested_s_stripe4_shift2", "nested_s_stripe40_shift0"),
    *("shuffle0", "shuffle7", "snake_reversed", "window2_reversed"),
]
#: Those that step to a neighbour every time.
CONTIGUOUS = ["snake", "snake_pair", "corners_zigma", "continuous", "spiral", "spiral_mirrored"]


def grid_of(height, width, channels=2, batch=1):
    return torch.randn(batch, height, width, channels, dtype=torch.float64)


def steps(walk, width):
    rows, columns = np.divmod(walk, width)
    return np.abs(np.diff(rows)), np.abs(np.diff(columns))


@pytest.mark.parametrize("name", WHOLE)
def test_every_walk_visits_every_cell_once_and_back(name):
    route = routes.get(name)
    for height in range(1, 13):
        for width in range(1, 13):
            table = route.table(height, width)
            for walk in table:
                assert torch.equal(walk[walk >= 0].sort().values, torch.arange(height * width)), (height, width)
            x = grid_of(height, width)
            back = route.unwalk(route.walk(x), height, width)
            assert back.shape == (1, height, width, route.walks, 2)
            assert torch.equal(back, x.unsqueeze(3).expand_as(back))


@pytest.mark.parametrize("name", [*WHOLE, "atrous_step2", "atrous_step3"])
def test_walking_indices_gives_the_table(name):
    route = routes.get(name)
    for height, width in ((1, 1), (1, 5), (4, 4), (5, 7), (6, 3)):
        indices = torch.arange(height * width).reshape(1, height, width, 1) + 1
        assert torch.equal(route.walk(indices)[0, ..., 0].T, route.table(height, width) + 1)


@pytest.mark.parametrize("name", ["cross", "snake", "window3", "atrous_step2", "multiscale_low", "gilbert"])
def test_the_gradient_of_a_walk_is_the_merge(name):
    route = routes.get(name)
    x = grid_of(5, 7).requires_grad_()
    sequences = route.walk(x)
    weight = torch.randn_like(sequences)
    (gradient,) = torch.autograd.grad((sequences * weight).sum(), x)
    torch.testing.assert_close(gradient, route.merge(weight, 5, 7))
    y = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((route.merge(y, 5, 7) * x.detach()).sum(), y)
    torch.testing.assert_close(gradient, route.walk(x.detach()))


@pytest.mark.parametrize("name", CONTIGUOUS)
def test_contiguous_walks_step_to_neighbours(name):
    for height in range(1, 13):
        for width in range(1, 13):
            for walk in routes.get(name).table(height, width).numpy():
                rows, columns = steps(walk, width)
                assert (rows + columns == 1).all(), (height, width)


def test_gilbert_has_at_most_one_diagonal_step():
    for height in range(2, 13):
        for width in range(2, 13):
            rows, columns = steps(routes.get("gilbert").table(height, width)[0].numpy(), width)
            assert rows.max(initial=0) <= 1 and columns.max(initial=0) <= 1
            long, short = max(height, width), min(height, width)
            expected = long % 2 == 1 and short % 2 == 0 and short > 2
            assert ((rows + columns) == 2).sum() == expected, (height, width)


def test_hilbert_is_contiguous_on_squares_of_powers_of_two():
    for side in (2, 4, 8, 16):
        rows, columns = steps(routes.get("hilbert").table(side, side)[0].numpy(), side)
        assert (rows + columns == 1).all()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_atrous_walks_share_the_cells(step):
    route = routes.atrous(step)
    for height, width in ((1, 1), (1, 4), (2, 2), (5, 7), (9, 6)):
        table = route.table(height, width)
        assert table.shape[0] == step**2
        assert torch.equal(table[table >= 0].sort().values, torch.arange(height * width))
        x = grid_of(height, width)
        assert torch.equal(route.merge(route.walk(x), height, width), x)


def test_a_walk_that_comes_again_gives_each_visit():
    route = routes.get("multiscale_low")
    x = grid_of(3, 4)
    sequences = route.walk(x)
    assert sequences.shape == (1, 36, 1, 2)
    visits = route.unwalk(sequences, 3, 4)
    assert visits.shape == (1, 3, 4, 3, 2)
    assert torch.equal(route.merge(sequences, 3, 4, "mean"), visits.mean(3))
    # The three parts: rows reversed, columns, columns reversed.
    parts = [f"{name}" for name in ("raster_reversed", "column", "column_reversed")]
    for part, name in zip(sequences[:, :, 0].split(12, 1), parts, strict=True):
        assert torch.equal(part, routes.get(name).walk(x)[:, :, 0])


@pytest.mark.parametrize(("route", "count"), [(routes.registers(3), 3), ("middle_token", 1), ("two_tokens", 2)])
def test_tokens_beside_the_grid(route, count):
    route = routes.get(route)
    x, tokens = grid_of(4, 5, batch=2), torch.randn(2, count, 2, dtype=torch.float64)
    sequences = route.walk(x, tokens)
    assert sequences.shape == (2, 20 + count, 1, 2)
    assert torch.equal(sequences[:, route.positions(4, 5)[0], 0], tokens)
    assert torch.equal(route.merge(sequences, 4, 5), x)
    with pytest.raises(ValueError, match=rf"tokens: \(2, {count}, 2\) for route '{route.name}', got none"):
        route.walk(x)
    with pytest.raises(ValueError, match=r"tokens: .* got "):
        route.walk(x, tokens[:, :0])


def test_directions_say_how_each_cell_was_entered():
    found = routes.get("snake_pair").directions(2, 3)
    assert found.tolist() == [[0, 1, 1, 4, 2, 2], [0, 4, 1, 3, 1, 4]]
    assert routes.get("raster").directions(2, 3).tolist() == [[0, 1, 1, 0, 1, 1]]  # a jump is a new start


def test_nested_s_of_the_whole_width_is_the_snake():
    for height, width in ((4, 6), (5, 3)):
        nested = routes.nested_s(max(height, width)).table(height, width)
        snakes = routes.get("snake_pair").table(height, width)
        assert torch.equal(nested[::2], snakes)


def test_merges():
    walks = torch.randn(2, 3, 4, 5, 6)
    route = routes.get("cross") + routes.get("raster")
    sequences = route.walk(torch.randn(2, 3, 4, 6))
    unwalked = route.unwalk(sequences, 3, 4)
    torch.testing.assert_close(route.merge(sequences, 3, 4), unwalked.sum(3))
    torch.testing.assert_close(route.merge(sequences, 3, 4, "mean"), unwalked.mean(3))
    assert torch.equal(route.merge(sequences, 3, 4, "concatenate"), unwalked.flatten(3))
    assert torch.equal(route.merge(sequences, 3, 4, lambda y: y.amax(-2)), unwalked.amax(3))
    with pytest.raises(ValueError, match="merge: unknown 'meen'; nearest: 'mean'"):
        route.merge(sequences, 3, 4, "meen")
    with pytest.raises(ValueError, match="two or more"):
        routes.route_attention(walks[..., :1, :])


def test_route_attention_is_its_formula_and_drops_what_all_agree_on():
    y = torch.randn(2, 4, 6, dtype=torch.float64)
    total, mean = y.sum(1), y.mean(1)
    deviation = ((y - mean[:, None]) ** 2).sum(1).div(3).sqrt()
    expected = total * (deviation / ((y - y.min(1, keepdim=True).values).mean(1) + 1e-5) - 0.5).clamp(min=0)
    torch.testing.assert_close(routes.route_attention(y, threshold=0.5), expected, rtol=1e-10, atol=1e-10)
    same = torch.randn(2, 1, 6).expand(2, 4, 6)
    assert routes.route_attention(same, threshold=0.0).abs().max() < 1e-4
    assert torch.autograd.gradcheck(lambda y: routes.route_attention(y), y.requires_grad_())


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.sampled_from(WHOLE),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_routes_are_values(first, second, height, width):
    one, two = routes.get(first), routes.get(second)
    assert one == routes.get(first) and hash(one) == hash(routes.get(first))
    assert (one == two) == (first == second)
    both = one + two
    assert both == one + two and both.walks == one.walks + two.walks
    assert both.table(height, width) is (one + two).table(height, width)
    turned = one.reversed()
    assert turned == one.reversed() != one
    assert (
        torch.equal(turned.reversed().table(height, width), one.table(height, width)) or one.length(height, width) > 0
    )
    x = grid_of(height, width)
    assert torch.equal(turned.walk(x), one.walk(x).flip(1))
    assert torch.equal(
        both.unwalk(both.walk(x), height, width)[..., : one.walks, :], one.unwalk(one.walk(x), height, width)
    )
    assert pickle.loads(pickle.dumps(both)) == both and copy.deepcopy(both) == both


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_any_parameters_make_whole_walks(height, width, size, shift, count):
    for route in (routes.windows(size), routes.nested_s(size, shift), routes.shuffle(shift)):
        for walk in route.table(height, width):
            assert torch.equal(walk[walk >= 0].sort().values, torch.arange(height * width))
    sequence = routes.registers(count).table(height, width)[0]
    assert torch.equal(sequence.sort().values, torch.arange(height * width + count))


def test_tables_are_made_once_and_serve_training_after_inference():
    route = routes.get("corners_jpeg")
    with torch.inference_mode():
        first = route.table(11, 9)
    assert route.table(11, 9) is first and not first.is_inference()
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        route.table(11, 10)
    assert type(route.table(11, 10)) is torch.Tensor and route.table(11, 10).tolist()


@pytest.mark.parametrize("name", ["snake", "window3"])
def test_compiles_in_one_graph(name):
    route = routes.get(name)

    def function(x):
        return route.merge(route.walk(x).tanh(), x.shape[1], x.shape[2], "mean")

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for size in ((4, 5), (6, 7), (7, 7)):  # a second size makes sizes symbolic
        x = torch.randn(2, *size, 3, requires_grad=True)
        torch.testing.assert_close(compiled(x), function(x))
        got, expected = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, function))
        torch.testing.assert_close(got, expected)


def test_exports():
    route = routes.get("gilbert")

    class Walk(torch.nn.Module):
        def forward(self, x):
            return route.walk(x)

    x = torch.randn(1, 5, 6, 2)
    assert torch.equal(torch.export.export(Walk(), (x,)).module()(x), route.walk(x))
    assert type(route.table(5, 6)) is torch.Tensor


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snaek", "route: unknown 'snaek'; nearest: 'snake'; known: .*windowN"),
        ("windw7", "unknown 'windw7'; nearest: 'windowN'"),
        ("window0", "size: a window of at least 1, got 0"),
        ("atrous_step0", "step: at least 1, got 0"),
        ("registers0", "registers: at least 1, got 0"),
        ("nested_s_stripe0_shift0", "stripe, shift: at least 1 and 0, got 0 and 0"),
    ],
)
def test_names_and_numbers_that_do_not_fit(name, message):
    with pytest.raises(ValueError, match=message):
        routes.get(name).table(4, 4)


def test_what_is_refused():
    cross = routes.get("cross")
    with pytest.raises(ValueError, match=r"grid: \(batch, height, width, channels\), got \(2, 3\)"):
        cross.walk(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least 1 x 1 cells, got 0 x 3"):
        cross.table(0, 3)
    with pytest.raises(ValueError, match=r"sequences: \(batch, 12, 4, channels\) for route 'cross' over 3 x 4"):
        cross.merge(torch.zeros(1, 12, 3, 2), 3, 4)
    with pytest.raises(ValueError, match="visit 0 and 3 tokens"):
        cross + routes.registers(3)
    with pytest.raises(ValueError, match="not negative, got -1"):
        routes.shuffle(-1)
    with pytest.raises(ValueError, match="route 'cross' exists already"):
        routes.register("cross", lambda height, width: np.arange(height * width))
    with pytest.raises(ValueError, match="route 'window9' exists already"):
        routes.register("window9", lambda height, width: np.arange(height * width))
    with pytest.raises(ValueError, match="comes twice to a cell of the 2 x 2 grid"):
        routes.Route("twice", lambda height, width: np.array([0, 0])).inverse(2, 2)
    with pytest.raises(ValueError, match="a cell outside of the 2 x 2 grid"):
        routes.Route("outside", lambda height, width: np.array([7])).table(2, 2)


def test_a_new_walk_is_one_function():
    name = "backwards_columns_of_a_test"
    try:
        route = routes.register(name, lambda height, width: routes.get("column").table(height, width)[0].numpy()[::-1])
        assert routes.get(name) is route and name in routes.names()
        assert torch.equal(route.table(3, 4), routes.get("column_reversed").table(3, 4))
    finally:
        routes._registry._ROUTES.pop(name, None)
