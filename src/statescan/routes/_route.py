"""A route: one or several walks over a grid, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from statescan.routes._merges import Merge, merge_rule

#: Gives the cells of a grid of (height, width) in visiting order: one array, or one a walk; -1 where a walk pads.
Rule = Callable[..., "np.ndarray | Sequence[np.ndarray]"]


@dataclass(frozen=True)
class Route:
    """Walks over a grid of H x W cells, cell (row, column) having index row x W + column.

    A route is a value: two of the same name, rule and arguments are equal and share their tables.

    Arguments:
        name: what it is called.
        rule: (height, width) -> the walks, each an array of cell indices in visiting order. Walks that are shorter than
            the longest one, and places that belong to no cell, hold -1: zeros are read there and nothing is written.
        arguments: further keyword arguments of the rule, as pairs.
        tokens: how many tokens beside the grid the walks visit (classes, registers); their indices follow the cells'.
        repeats: how often a walk comes to a cell at most.
    """

    name: str
    rule: Rule
    arguments: tuple[tuple[str, Any], ...] = ()
    tokens: int = 0
    repeats: int = 1

    def table(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """The walks (walks, length) int64; computed once for each size and device."""
        return _constant_tensor("table", self, index(height), index(width), torch.device(device or "cpu"))

    def inverse(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Where each walk visits each cell, then each token: (walks x repeats, height x width + tokens) int64; the
        walk's length where it never does."""
        return _constant_tensor("inverse", self, index(height), index(width), torch.device(device or "cpu"))

    def positions(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Where the tokens beside the grid stand in each walk: (walks, tokens) int64."""
        return self.inverse(height, width, device)[:, height * width :]

    def directions(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """How each step of each walk was made (walks, length) int64: 0 start or jump, 1 right, 2 left, 3 up, 4 down."""
        return _constant_tensor("directions", self, index(height), index(width), torch.device(device or "cpu"))

    @property
    def walks(self) -> int:
        """How many walks there are."""
        return _constant_count(self)

    def walk(self, grid: Tensor, tokens: Tensor | None = None) -> Tensor:
        """grid (batch, height, width, channels) -> sequences (batch, length, walks, channels).

        Arguments:
            grid: what is walked.
            tokens: (batch, tokens, channels), for a route that visits tokens beside the grid.
        """
        _, height, width, _ = _check_grid(grid)
        table = self.table(height, width, grid.device)
        cells = grid.flatten(1, 2)
        if self.tokens or tokens is not None:
            cells = torch.cat([cells, self._check_tokens(tokens, grid)], 1)
        if self.pads(height, width):  # index -1 reads zeros behind the last cell
            cells = torch.cat([cells, cells.new_zeros(cells.shape[0], 1, cells.shape[2])], 1)
            table = torch.where(table < 0, cells.shape[1] - 1, table)
        return cells.index_select(1, table.transpose(0, 1).flatten()).unflatten(1, (-1, self.walks))

    def unwalk(self, sequences: Tensor, height: int, width: int) -> Tensor:
        """sequences (batch, length, walks, channels) -> what each walk left at each cell, (batch, height, width, walks x
        repeats, channels); zero where it never came. What it left at tokens stands at `positions`."""
        batch, _, walks, channels = self._check_sequences(sequences, height, width)
        inverse = self.inverse(height, width, sequences.device)[:, : height * width]
        if self.misses(height, width):
            sequences = torch.cat([sequences, sequences.new_zeros(batch, 1, walks, channels)], 1)
        which = torch.arange(walks, device=sequences.device).repeat_interleave(self.repeats)
        return sequences[:, inverse.transpose(0, 1), which].unflatten(1, (height, width))

    def merge(self, sequences: Tensor, height: int, width: int, how: str | Merge = "sum") -> Tensor:
        """sequences (batch, length, walks, channels) -> one grid (batch, height, width, channels).

        Arguments:
            sequences: what the walks read, in their order.
            height, width: of the grid.
            how: what becomes of the walks at a cell; see `join`.
        """
        if how == "sum" and self.shares(height, width):
            self._check_sequences(sequences, height, width)
            visits = _constant_tensor("visits", self, index(height), index(width), sequences.device)
            return sequences.flatten(1, 2).index_select(1, visits).unflatten(1, (height, width))
        return self.join(self.unwalk(sequences, height, width), how)

    def join(self, values: Tensor, how: str | Merge = "sum") -> Tensor:
        """What the walks left at each cell (batch, height, width, walks, channels) -> one grid.

        `how`: ``sum``, ``mean``, ``concatenate`` (walks x channels, walk after walk), ``attention``
        (`routes.route_attention`), or a function of (..., walks, channels).
        """
        return merge_rule(how)(values)

    @property
    def adds(self) -> bool:
        """Whether `join` adds the walks up; a subclass may do something else with them."""
        return type(self).join is Route.join

    def length(self, height: int, width: int) -> int:
        """How long the walks are, with what they pad."""
        return _constant_length(self, index(height), index(width))

    def pads(self, height: int, width: int) -> bool:
        """Whether walks hold places that belong to no cell."""
        return _constant_pads(self, index(height), index(width))

    def misses(self, height: int, width: int) -> bool:
        """Whether a walk leaves cells out."""
        return _constant_misses(self, index(height), index(width))

    def shares(self, height: int, width: int) -> bool:
        """Whether the walks divide the cells among them: each is visited once by all walks together."""
        return _constant_shares(self, index(height), index(width))

    def reversed(self) -> Route:
        """Every walk backwards."""
        return Route(f"{self.name}_reversed", _backwards, (("route", self),), self.tokens, self.repeats)

    def __add__(self, other: Route) -> Route:
        """The walks of both, one after another.

        Raises:
            ValueError: they visit different numbers of tokens, or cells differently often.
        """
        if (self.tokens, self.repeats) != (other.tokens, other.repeats):
            raise ValueError(
                f"routes: {self.name!r} and {other.name!r} visit {self.tokens} and {other.tokens} tokens, and come to a "
                f"cell {self.repeats} and {other.repeats} times; expected the same of both"
            )
        arguments = (("first", self), ("second", other))
        return Route(f"{self.name}+{other.name}", _together, arguments, self.tokens, self.repeats)

    def _check_sequences(self, sequences: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
        walks, length = self.walks, self.length(height, width)
        if sequences.ndim != 4 or sequences.shape[1:3] != (length, walks):
            raise ValueError(
                f"sequences: (batch, {length}, {walks}, channels) for route {self.name!r} over {height} x {width}, "
                f"got {tuple(sequences.shape)}"
            )
        batch, length, walks, channels = sequences.shape
        return batch, length, walks, channels

    def _check_tokens(self, tokens: Tensor | None, grid: Tensor) -> Tensor:
        expected = (grid.shape[0], self.tokens, grid.shape[3])
        if tokens is None or tuple(tokens.shape) != expected:
            got = "none" if tokens is None else str(tuple(tokens.shape))
            raise ValueError(f"tokens: {expected} for route {self.name!r}, got {got}")
        return tokens


def walks_of(route: Route, height: int, width: int) -> list[np.ndarray]:
    """The walks as arrays, straight from the rule."""
    if height < 1 or width < 1:
        raise ValueError(f"grid: at least 1 x 1 cells, got {height} x {width}")
    found = route.rule(height, width, **dict(route.arguments))
    return [found] if isinstance(found, np.ndarray) and found.ndim == 1 else list(found)


def _backwards(height: int, width: int, *, route: Route) -> list[np.ndarray]:
    return [walk[::-1] for walk in walks_of(route, height, width)]


def _together(height: int, width: int, *, first: Route, second: Route) -> list[np.ndarray]:
    return [*walks_of(first, height, width), *walks_of(second, height, width)]


def _check_grid(grid: Tensor) -> tuple[int, int, int, int]:
    if grid.ndim != 4:
        raise ValueError(f"grid: (batch, height, width, channels), got {tuple(grid.shape)}")
    batch, height, width, channels = grid.shape
    return batch, height, width, channels


@lru_cache(maxsize=1024)
def _table(route: Route, height: int, width: int) -> np.ndarray:
    walks = walks_of(route, height, width)
    table = np.full((len(walks), max(len(walk) for walk in walks)), -1, dtype=np.int64)
    for row, walk in zip(table, walks, strict=True):
        row[: len(walk)] = walk
    if table.size and (table.max() >= height * width + route.tokens or table.min() < -1):
        raise ValueError(f"route {route.name!r}: a cell outside of the {height} x {width} grid")
    return table


@lru_cache(maxsize=1024)
def _inverse(route: Route, height: int, width: int) -> np.ndarray:
    table = _table(route, height, width)
    walks, length = table.shape
    inverse = np.full((walks, route.repeats, height * width + route.tokens), length, dtype=np.int64)
    for rows, walk in zip(inverse, table, strict=True):
        times = np.flatnonzero(walk >= 0)
        times = times[np.argsort(walk[times], kind="stable")]  # by cell, and by time at each cell
        cells, starts, counts = np.unique(walk[times], return_index=True, return_counts=True)
        if len(counts) and counts.max() > route.repeats:
            most = f"{'twice' if route.repeats == 1 else f'more than {route.repeats} times'}"
            raise ValueError(f"route {route.name!r} comes {most} to a cell of the {height} x {width} grid")
        visit = np.arange(len(times)) - np.repeat(starts, counts)
        rows[visit, np.repeat(cells, counts)] = times
    return inverse.reshape(walks * route.repeats, -1)


@lru_cache(maxsize=1024)
def _directions(route: Route, height: int, width: int) -> np.ndarray:
    table = _table(route, height, width)
    rows, columns = np.divmod(table, width)
    down, right = np.diff(rows, axis=1), np.diff(columns, axis=1)
    inside = (table[:, 1:] >= 0) & (table[:, :-1] >= 0)
    found = np.zeros_like(table)
    for code, step in enumerate(((0, 1), (0, -1), (-1, 0), (1, 0)), start=1):
        found[:, 1:][inside & (down == step[0]) & (right == step[1])] = code
    return found


@lru_cache(maxsize=1024)
def _facts(route: Route, height: int, width: int) -> tuple[bool, bool, bool]:
    """Whether walks pad, whether they leave cells out, and whether each cell has one visit alone."""
    table = _table(route, height, width)
    missed = _inverse(route, height, width)[:, : height * width] == table.shape[1]
    return bool((table < 0).any()), bool(missed.any()), bool(((~missed).sum(0) == 1).all())


@lru_cache(maxsize=1024)
def _visits(route: Route, height: int, width: int) -> np.ndarray:
    """Where the one visit to each cell stands in sequences (length x walks); meaningless where there are more."""
    walks, length = _table(route, height, width).shape
    inverse = _inverse(route, height, width)[:, : height * width]
    which = (inverse < length).argmax(0)
    return np.take_along_axis(inverse, which[None], 0)[0] * walks + which // route.repeats


@lru_cache(maxsize=1024)
def _count(route: Route) -> int:
    return len(walks_of(route, 2, 2))


_MAKERS: dict[str, Callable[[Route, int, int], np.ndarray]] = {
    "table": _table,
    "inverse": _inverse,
    "directions": _directions,
    "visits": _visits,
}
_TENSORS: dict[tuple[object, ...], Tensor] = {}


# `operator.index` fixes a symbolic size where `torch.compile` passes one; `int` would keep it.
def _constant_tensor(
    kind: Literal["table", "inverse", "directions", "visits"],
    route: Route,
    height: int,
    width: int,
    device: torch.device,
) -> Tensor:
    # The rules are plain Python and numpy: a compiled graph has a node that knows them, an exported one keeps the tables.
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return torch.ops.statescan.route_table(_constant_key(route), kind, height, width, device)
    return _kept(kind, route, height, width, device)


@torch.library.custom_op("statescan::route_table", mutates_args=())
def _route_table(route: int, kind: str, height: int, width: int, device: torch.device) -> Tensor:
    return _kept(kind, _ROUTES[route], height, width, device).clone()


@_route_table.register_fake
def _(route: int, kind: str, height: int, width: int, device: torch.device) -> Tensor:
    shape = _MAKERS[kind](_ROUTES[route], height, width).shape
    return torch.empty(shape, dtype=torch.int64, device=device)


def _kept(kind: str, route: Route, height: int, width: int, device: torch.device) -> Tensor:
    key = (kind, route, height, width, device)
    found = _TENSORS.get(key)
    if found is None:
        with torch.inference_mode(False):  # what is kept must serve training too
            found = torch.from_numpy(_MAKERS[kind](route, height, width)).to(device)
        if type(found) is Tensor:  # and no tracer's fake
            if len(_TENSORS) >= 4096:
                _TENSORS.clear()
            _TENSORS[key] = found
    return found


#: Routes by number, which is how a compiled graph names them.
_ROUTES: list[Route] = []


def _constant_key(route: Route) -> int:
    if route not in _ROUTES:
        _ROUTES.append(route)
    return _ROUTES.index(route)


def _constant_count(route: Route) -> int:
    return _count(route)


def _constant_length(route: Route, height: int, width: int) -> int:
    return _table(route, height, width).shape[1]


def _constant_pads(route: Route, height: int, width: int) -> bool:
    return _facts(route, height, width)[0]


def _constant_misses(route: Route, height: int, width: int) -> bool:
    return _facts(route, height, width)[1]


def _constant_shares(route: Route, height: int, width: int) -> bool:
    return _facts(route, height, width)[2]


for _function in (
    _constant_key,
    _constant_count,
    _constant_length,
    _constant_pads,
    _constant_misses,
    _constant_shares,
):
    # What `torch.compiler.assume_constant_result` does, without importing the compiler.
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined, union-attr]
