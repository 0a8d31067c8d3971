"""Direction-aware scans of the cells that are left of a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.layers.grid import DirectionalSS2D, place_cells, take_cells

ROWS, COLUMNS, DIM = 3, 4, 6


def build(reorder: Any) -> DirectionalSS2D:
    torch.manual_seed(0)
    mixer = DirectionalSS2D(DIM, state_dim=4, conv_kernel=3, reorder=reorder, layer_scale=0.5)
    with torch.no_grad():
        mixer.delta_bias += 2.0  # so that aging is seen
        mixer.direction_B.normal_()
    return mixer.double()


def written_out(mixer: DirectionalSS2D, x: Tensor, cells: list[int], ages: bool) -> Tensor:
    """One image, a walk and a cell at a time."""
    hidden, gate = mixer.input_projection(x).chunk(2, dim=-1)
    grid = torch.zeros(ROWS * COLUMNS, hidden.shape[-1], dtype=x.dtype)
    grid[cells] = hidden
    hidden = F.silu(mixer.convolution(grid.view(1, ROWS, COLUMNS, -1))).flatten(0, 2)[cells]
    dt, B, C = mixer.selection_projection(hidden).split([mixer.dt_rank, 4, 4], dim=-1)
    delta = F.softplus(mixer.delta_projection(dt) + 2 * mixer.delta_bias)
    A = -torch.exp(mixer.A_log)
    total = torch.zeros_like(hidden)
    for walk, entered in zip(mixer.route.table(ROWS, COLUMNS), mixer.route.directions(ROWS, COLUMNS), strict=True):
        state = torch.zeros_like(A)
        step, rank = None, 0
        for cell, direction in zip(walk.tolist(), entered.tolist(), strict=True):
            if cell not in cells:
                if ages and step is not None:
                    state = torch.exp(step[:, None] * A) * state
                continue
            place = cells.index(cell)
            row = place if mixer.reorder == "all" else rank  # step sizes, B and C stay in raster order as published
            step, rank = delta[row], rank + 1
            row_B = B[row] + mixer.direction_B[direction]
            state = torch.exp(step[:, None] * A) * state + (step * hidden[place])[:, None] * row_B
            total[place] += state @ C[row] + mixer.D * hidden[place]
    return mixer.output_projection(total * F.silu(gate)) * mixer.layer_scale


@pytest.mark.parametrize("reorder", ["input", "all"])
@pytest.mark.parametrize("ages", [False, True])
def test_what_is_left_of_a_grid_is_scanned_along_its_walks(reorder: Any, ages: bool) -> None:
    mixer = build(reorder)
    rows = [[0, 1, 5, 6, 8, 11], [2, 3, 4, 7, 9, 10]]
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    y = mixer(x, cells=torch.tensor(rows), shape=(ROWS, COLUMNS), ages=ages)
    for image, cells in enumerate(rows):
        assert torch.allclose(y[image], written_out(mixer, x[image], cells, ages), atol=1e-10)


@pytest.mark.parametrize("reorder", ["input", "all"])
@pytest.mark.parametrize("ages", [False, True])
def test_all_cells_left_are_the_grid(reorder: Any, ages: bool) -> None:
    mixer = build(reorder)
    x = torch.randn(2, ROWS, COLUMNS, DIM, dtype=torch.float64)
    cells = torch.arange(ROWS * COLUMNS).expand(2, -1)
    y = mixer(x.flatten(1, 2), cells=cells, shape=(ROWS, COLUMNS), ages=ages)
    assert torch.allclose(y.view(x.shape), mixer(x), atol=1e-10)


def test_cells_are_placed_and_taken() -> None:
    tokens, cells = torch.randn(2, 3, 5), torch.tensor([[0, 4, 5], [1, 2, 3]])
    grid = place_cells(tokens, cells, (2, 3))
    assert grid.shape == (2, 2, 3, 5)
    assert torch.equal(take_cells(grid, cells), tokens)
    assert int((grid != 0).sum()) == tokens.numel()
