"""A stream of tokens cut into training examples, in an order that is a pure function of seed and step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan.data._synthetic import IGNORED
from statescan.data._tokens import TokenStream

#: In place of a position: a row that holds nothing.
NOTHING = -1


@dataclass(frozen=True)
class TokenBatch:
    """What a language model is trained on.

    Fields:
        tokens: (batch, length), int64: what it reads.
        targets: (batch, length), int64: the tokens that follow, `IGNORED` where none does.
        resets: (batch, length), bool: where a document begins, or None where documents are joined.
        fresh: whether these sequences do not continue those of the batch before.
    """

    tokens: Tensor
    targets: Tensor
    resets: Tensor | None = None
    fresh: bool = True


class Order(Protocol):
    """Says which windows make up which batch."""

    @property
    def batch_size(self) -> int:
        """Windows a batch, over all processes."""
        ...

    def positions(self, step: int) -> np.ndarray:
        """(batch_size,), int64: where the windows of a batch begin in the stream, or `NOTHING`."""
        ...

    def fresh(self, step: int) -> bool:
        """Whether the windows of this batch do not continue those of the batch before."""
        ...


@dataclass(frozen=True)
class ShuffledOrder:
    """Every window once an epoch, shuffled; every epoch cuts the stream at other places.

    Fields:
        tokens: length of the stream.
        length: of a window.
        batch_size: windows a batch, over all processes.
        seed: of the shuffling.
    """

    tokens: int
    length: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens <= self.length:
            raise ValueError(
                f"data: {self.tokens} tokens are not enough for a sequence of {self.length} and the token after it; "
                "give more text or a smaller length"
            )

    @property
    def windows(self) -> int:
        """Windows an epoch."""
        return max(1, (self.tokens - self.length) // self.length)

    def positions(self, step: int) -> np.ndarray:
        """Where the windows begin."""
        index = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(index, self.windows)
        found = np.empty_like(index)
        spare = self.tokens - 1 - self.windows * self.length
        for epoch in np.unique(epochs):
            phase, order = _epoch(self.seed, int(epoch), self.windows, spare)
            chosen = epochs == epoch
            found[chosen] = phase + order[places[chosen]] * self.length
        return found

    def fresh(self, step: int) -> bool:
        """Always: neighbouring batches have nothing to do with each other."""
        return True


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, windows: int, spare: int) -> tuple[int, np.ndarray]:
    """Where an epoch's first window begins, up to `spare` tokens behind the stream's beginning, and the windows' order."""
    rng = np.random.default_rng([seed, epoch])
    return int(rng.integers(spare + 1)), rng.permutation(windows)


@dataclass(frozen=True)
class ContinuedOrder:
    """Row b of a batch continues row b of the batch before: the stream is cut into as many lanes as there are rows.

    Fields:
        tokens: length of the stream.
        length: of a window.
        batch_size: lanes, over all processes.
        repeat: begin again when the lanes are through; otherwise there is nothing more.
    """

    tokens: int
    length: int
    batch_size: int
    repeat: bool = True

    def __post_init__(self) -> None:
        if self.repeat and self.tokens - 1 < self.batch_size * self.length:
            raise ValueError(
                f"data: {self.tokens} tokens are not enough for {self.batch_size} rows of {self.length}; "
                "give more text, a smaller length or fewer rows"
            )

    @property
    def steps(self) -> int:
        """Windows of a lane."""
        if self.repeat:
            return (self.tokens - 1) // (self.batch_size * self.length)
        return -(-(self.tokens - 1) // (self.batch_size * self.length))

    def positions(self, step: int) -> np.ndarray:
        """Where the windows begin; `NOTHING` behind the stream's end."""
        place = step % self.steps if self.repeat else step
        found = (np.arange(self.batch_size) * self.steps + place) * self.length
        return np.where((found < self.tokens - 1) & (place < self.steps), found, NOTHING)

    def fresh(self, step: int) -> bool:
        """Where the lanes begin."""
        return step % self.steps == 0 if self.repeat else step == 0


@dataclass(frozen=True)
class SequentialOrder:
    """Every window once, in the order of the stream.

    Fields:
        tokens: length of the stream.
        length: of a window; the last may be shorter.
        batch_size: windows a batch, over all processes.
    """

    tokens: int
    length: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Batches, the last filled up with empty rows."""
        return -(-(self.tokens - 1) // (self.length * self.batch_size))

    def positions(self, step: int) -> np.ndarray:
        """Where the windows begin; `NOTHING` behind the stream's end."""
        found = (step * self.batch_size + np.arange(self.batch_size)) * self.length
        return np.where(found < self.tokens - 1, found, NOTHING)

    def fresh(self, step: int) -> bool:
        """Always."""
        return True


class TokenBatches(IterableDataset):
    """The batches of one process, from batch `first` on: the same whether or not the run was interrupted before it.

    Arguments:
        stream: the tokens.
        order: which windows, in batches over all processes.
        length: of a window.
        resets: mark where documents begin, and do not ask for a document's first token; otherwise documents are
            joined.
        rank, world: which process of how many; each takes its share of the rows of every batch.
        first, last: batches to give; last None is without end.
    """

    def __init__(
        self,
        stream: TokenStream,
        order: Order,
        *,
        length: int,
        resets: bool = True,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        if order.batch_size % world:
            raise ValueError(f"batch_size: {order.batch_size} rows cannot be shared evenly by {world} processes")
        self._stream, self._order, self._length, self._resets = stream, order, length, resets
        share = order.batch_size // world
        self._rows = slice(rank * share, (rank + 1) * share)
        self._steps = (first, last)

    def __iter__(self) -> Iterator[TokenBatch]:
        first, last = self._steps
        for step in itertools.count(first) if last is None else range(first, last):
            yield self.batch(step)

    def batch(self, step: int) -> TokenBatch:
        """Batch number `step`."""
        positions = self._order.positions(step)[self._rows]
        rows = np.zeros((len(positions), self._length + 1), dtype=np.int64)
        targets = np.full((len(positions), self._length), IGNORED)
        resets = np.zeros_like(targets, dtype=bool)
        for row, position in enumerate(positions):
            if position == NOTHING:
                continue
            tokens = self._stream.tokens[position : position + self._length + 1]
            rows[row, : len(tokens)] = tokens
            targets[row, : len(tokens) - 1] = tokens[1:]
            if self._resets:
                begins = self._begins(position)
                resets[row, begins[begins < self._length]] = True
                targets[row, begins[begins > 0] - 1] = IGNORED
        return TokenBatch(
            torch.from_numpy(rows[:, :-1].copy()),
            torch.from_numpy(targets),
            torch.from_numpy(resets) if self._resets else None,
            self._order.fresh(step),
        )

    def _begins(self, position: int) -> np.ndarray:
        """Where documents begin in the window at `position`, counted from there, `length` included."""
        starts = self._stream.starts
        within = slice(*np.searchsorted(starts, [position, position + self._length + 1]))
        return starts[within] - position
