"""A route: one or several walks over a grid, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

#: Gives the cells of a grid of (height, width) in visiting order: one array, or one a walk; -1 where a walk pads.
Rule = Callable[[int, int], "np.ndarray | Sequence[np.ndarray]"]


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

    def table(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """The walks (walks, length) int64; computed once for each size and device."""
        return _table(self, height, width, torch.device(device or "cpu"))

    def inverse(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Where each walk visits each cell (walks, height x width) int64; the walk's length where it never does."""
        return _inverse(self, height, width, torch.device(device or "cpu"))

    def directions(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """How each walk came to each place, (walks, length) int64: 0 at its start, 1 from the left (it went right), 2 it
        went left, 3 up, 4 down. A jump counts as a start."""
        return _directions(self, height, width, torch.device(device or "cpu"))

    @property
    def walks(self) -> int:
        """How many walks there are."""
        return self.table(2, 2).shape[0]

    def walk(self, grid: Tensor) -> Tensor:
        """grid (batch, height, width, channels) -> sequences (batch, length, walks, channels)."""
        _, height, width, channels = _check_grid(grid)
        table = self.table(height, width, grid.device)
        cells = grid.flatten(1, 2)
        if bool(_has_padding(self, height, width)):
            cells = torch.cat([cells, cells.new_zeros(cells.shape[0], 1, channels)], 1)  # index -1 reads the zeros
            table = table.where(table >= 0, cells.shape[1] - 1)
        return cells[:, table.transpose(0, 1).reshape(-1)].unflatten(1, (table.shape[1], table.shape[0]))

    def unwalk(self, sequences: Tensor, height: int, width: int) -> Tensor:
        """sequences (batch, length, walks, channels) -> what each walk left at each cell, (batch, height, width, walks,
        channels); zero where it never came."""
        batch, _, walks, channels = self._check_sequences(sequences, height, width)
        inverse = self.inverse(height, width, sequences.device)
        if _is_partial(self, height, width):
            sequences = torch.cat([sequences, sequences.new_zeros(batch, 1, walks, channels)], 1)
        which = torch.arange(walks, device=sequences.device)
        return sequences[:, inverse.transpose(0, 1), which].unflatten(1, (height, width))

    def merge(self, sequences: Tensor, height: int, width: int) -> Tensor:
        """sequences (batch, length, walks, channels) -> the sum over walks at each cell, (batch, height, width,
        channels)."""
        return self.unwalk(sequences, height, width).sum(3)

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


@lru_cache(maxsize=1024)
def _table(route: Route, height: int, width: int, device: torch.device) -> Tensor:
    walks = _walks(route, height, width)
    length = max(len(walk) for walk in walks)
    table = np.full((len(walks), length), -1, dtype=np.int64)
    for row, walk in zip(table, walks, strict=True):
        row[: len(walk)] = walk
    if table.size and (table.max() >= height * width or table.min() < -1):
        raise ValueError(f"route {route.name!r}: a cell outside of the {height} x {width} grid")
    return torch.from_numpy(table).to(device)


@lru_cache(maxsize=1024)
def _inverse(route: Route, height: int, width: int, device: torch.device) -> Tensor:
    table = route.table(height, width).numpy()
    walks, length = table.shape
    inverse = np.full((walks, height * width), length, dtype=np.int64)
    for row, walk in zip(inverse, table, strict=True):
        visited = walk[walk >= 0]
        if len(np.unique(visited)) != len(visited):
            raise ValueError(f"route {route.name!r} comes twice to a cell of the {height} x {width} grid")
        row[visited] = np.flatnonzero(walk >= 0)
    return torch.from_numpy(inverse).to(device)


@lru_cache(maxsize=1024)
def _directions(route: Route, height: int, width: int, device: torch.device) -> Tensor:
    table = route.table(height, width).numpy()
    rows, columns = np.divmod(table, width)
    down, right = np.diff(rows, axis=1), np.diff(columns, axis=1)
    inside = (table[:, 1:] >= 0) & (table[:, :-1] >= 0)
    entered = np.zeros_like(table)
    for step, code in (((0, 1), 1), ((0, -1), 2), ((-1, 0), 3), ((1, 0), 4)):
        entered[:, 1:][inside & (down == step[0]) & (right == step[1])] = code
    return torch.from_numpy(entered).to(device)


@lru_cache(maxsize=1024)
def _has_padding(route: Route, height: int, width: int) -> bool:
    return bool((route.table(height, width) < 0).any())


@lru_cache(maxsize=1024)
def _is_partial(route: Route, height: int, width: int) -> bool:
    length = route.table(height, width).shape[1]
    return bool((route.inverse(height, width) == length).any())
