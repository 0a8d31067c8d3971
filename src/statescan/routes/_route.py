"""A route: one or several walks over a grid, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Gives the cells of a grid of (height, width) in visiting order: one array, or one a walk; -1 where a walk pads.
Rule = Callable[[int, int], "np.ndarray | Sequence[np.ndarray]"]


#: Routes by a number, which is how a compiled graph names them.
_KEYS: dict[tuple[str, Rule], int] = {}
_ROUTES: dict[int, Route] = {}


@dataclass(frozen=True)
class Route:
    """Walks over a grid of H x W cells, cell (row, column) having index row x W + column.

    Arguments:
        name: what it is called.
        rule: (height, width) -> the walks, each an array of cell indices in visiting order. Walks that are shorter than
            the longest one, and places that belong to no cell, hold -1: zeros are read there and nothing is written.
    """

    name: str
    rule: Rule
    key: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _KEYS.setdefault((self.name, self.rule), len(_KEYS)))
        _ROUTES[self.key] = self

    def table(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """The walks (walks, length) int64; computed once for each size and device."""
        return self._tensor("table", height, width, device)

    def inverse(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Where each walk visits each cell (walks, height x width) int64; the walk's length where it never does."""
        return self._tensor("inverse", height, width, device)

    def is_padded(self, height: int, width: int) -> bool:
        """Whether some walk passes through places that belong to no cell."""
        return self._constant("is_padded", index(height), index(width))

    def is_partial(self, height: int, width: int) -> bool:
        """Whether some walk leaves a cell out."""
        return self._constant("is_partial", index(height), index(width))

    def directions(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """How each walk came to each place, (walks, length) int64: 0 at its start, 1 from the left (it went right), 2 it
        went left, 3 up, 4 down. A jump counts as a start."""
        return self._tensor("directions", height, width, device)

    @property
    def walks(self) -> int:
        """How many walks there are."""
        return self._constant("walks", 2, 2)

    def _tensor(self, kind: str, height: int, width: int, device: torch.device | str | None) -> Tensor:
        if torch.compiler.is_compiling():  # the rules are plain Python and numpy: the graph has a node that knows them
            where = torch.device(device or "cpu")
            return torch.ops.statescan.route_table(self.key, kind, index(height), index(width), where)
        return _derived(self, kind, height, width, torch.device(device or "cpu"))

    # A size that the compiler had taken for a variable is a constant from here on: see the calls of `index`.
    @torch.compiler.assume_constant_result
    def _constant(self, kind: str, height: int, width: int) -> Any:
        return _derived(self, kind, height, width, torch.device("cpu"))

    def walk(self, grid: Tensor) -> Tensor:
        """grid (batch, height, width, channels) -> sequences (batch, length, walks, channels)."""
        _, height, width, channels = _check_grid(grid)
        table = self.table(height, width, grid.device)
        cells = grid.flatten(1, 2)
        if self.is_padded(height, width):
            cells = torch.cat([cells, cells.new_zeros(cells.shape[0], 1, channels)], 1)  # index -1 reads the zeros
            table = table.where(table >= 0, cells.shape[1] - 1)
        return cells[:, table.transpose(0, 1).reshape(-1)].unflatten(1, (table.shape[1], table.shape[0]))

    def unwalk(self, sequences: Tensor, height: int, width: int) -> Tensor:
        """sequences (batch, length, walks, channels) -> what each walk left at each cell, (batch, height, width, walks,
        channels); zero where it never came."""
        batch, _, walks, channels = self._check_sequences(sequences, height, width)
        inverse = self.inverse(height, width, sequences.device)
        if self.is_partial(height, width):
            sequences = torch.cat([sequences, sequences.new_zeros(batch, 1, walks, channels)], 1)
        which = torch.arange(walks, device=sequences.device)
        return sequences[:, inverse.transpose(0, 1), which].unflatten(1, (height, width))

    def merge(self, sequences: Tensor, height: int, width: int) -> Tensor:
        """sequences (batch, length, walks, channels) -> the sum over walks at each cell, (batch, height, width,
        channels)."""
        return self.join(self.unwalk(sequences, height, width))

    def join(self, values: Tensor) -> Tensor:
        """What the walks left at each cell (batch, height, width, walks, channels) -> their sum."""
        return values.sum(3)

    def reversed(self) -> Route:
        """Every walk backwards."""

        def rule(height: int, width: int) -> list[np.ndarray]:
            return [walk[::-1] for walk in _walks(self, height, width)]

        return Route(f"{self.name}_reversed", rule)

    def __add__(self, other: Route) -> Route:
        """The walks of both, one after another."""

        def rule(height: int, width: int) -> list[np.ndarray]:
            return [*_walks(self, height, width), *_walks(other, height, width)]

        return Route(f"{self.name}+{other.name}", rule)

    def _check_sequences(self, sequences: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
        walks, length = self.table(height, width).shape
        if sequences.ndim != 4 or sequences.shape[1:3] != (length, walks):
            raise ValueError(
                f"sequences: (batch, {length}, {walks}, channels) for route {self.name!r} over {height} x {width}, "
                f"got {tuple(sequences.shape)}"
            )
        batch, length, walks, channels = sequences.shape
        return batch, length, walks, channels


@torch.library.custom_op("statescan::route_table", mutates_args=())
def _route_table(key: int, kind: str, height: int, width: int, device: torch.device) -> Tensor:
    return _derived(_ROUTES[key], kind, height, width, device).clone()


@_route_table.register_fake
def _(key: int, kind: str, height: int, width: int, device: torch.device) -> Tensor:
    shape = _derived(_ROUTES[key], kind, height, width, torch.device("meta")).shape
    return torch.empty(shape, dtype=torch.int64, device=device)


def _check_grid(grid: Tensor) -> tuple[int, int, int, int]:
    if grid.ndim != 4:
        raise ValueError(f"grid: (batch, height, width, channels), got {tuple(grid.shape)}")
    batch, height, width, channels = grid.shape
    return batch, height, width, channels


def _walks(route: Route, height: int, width: int) -> list[np.ndarray]:
    if height < 1 or width < 1:
        raise ValueError(f"grid: at least 1 x 1 cells, got {height} x {width}")
    found = route.rule(height, width)
    return [found] if isinstance(found, np.ndarray) and found.ndim == 1 else list(found)


@lru_cache(maxsize=4096)
def _derived(route: Route, kind: str, height: int, width: int, device: torch.device) -> Any:
    if kind == "is_padded":
        return bool((route.table(height, width) < 0).any())
    if kind == "is_partial":
        table = route.table(height, width)
        return bool((route.inverse(height, width) == table.shape[1]).any())
    if kind == "walks":
        return route.table(height, width).shape[0]
    rows = _table(route, height, width)
    if kind == "directions":
        rows = _directions(rows, width)
    elif kind == "inverse":
        rows = _inverse(route, rows, height * width)
    return torch.from_numpy(rows).to(device)


def _table(route: Route, height: int, width: int) -> np.ndarray:
    walks = _walks(route, height, width)
    table = np.full((len(walks), max(len(walk) for walk in walks)), -1, dtype=np.int64)
    for row, walk in zip(table, walks, strict=True):
        row[: len(walk)] = walk
    if table.size and (table.max() >= height * width or table.min() < -1):
        raise ValueError(f"route {route.name!r}: a cell outside of the {height} x {width} grid")
    return table


def _inverse(route: Route, table: np.ndarray, cells: int) -> np.ndarray:
    inverse = np.full((len(table), cells), table.shape[1], dtype=np.int64)
    for row, walk in zip(inverse, table, strict=True):
        visited = walk[walk >= 0]
        if len(np.unique(visited)) != len(visited):
            raise ValueError(f"route {route.name!r} comes twice to a cell of a grid of {cells} cells")
        row[visited] = np.flatnonzero(walk >= 0)
    return inverse


def _directions(table: np.ndarray, width: int) -> np.ndarray:
    rows, columns = np.divmod(table, width)
    down, right = np.diff(rows, axis=1), np.diff(columns, axis=1)
    inside = (table[:, 1:] >= 0) & (table[:, :-1] >= 0)
    entered = np.zeros_like(table)
    for step, code in (((0, 1), 1), ((0, -1), 2), ((-1, 0), 3), ((1, 0), 4)):
        entered[:, 1:][inside & (down == step[0]) & (right == step[1])] = code
    return entered
