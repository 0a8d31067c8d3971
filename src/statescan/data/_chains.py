"""Copying and dynamic programs with a chain of thought: what a state of constant size can do, and what it cannot.

Ren, Li and Liu 2024, "Exploring the Limitations of Mamba in COPY and CoT Reasoning" (arXiv 2410.03810); no generator was
published, the definitions are ours. A sequence is a question, then the steps of the program as tokens (the chain of
thought), then the answer. Steps and answer are asked for, the question is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least

#: Token ids that all of these tasks share; 5 to 9 are + - * ( ) of `Arithmetic`, symbols and numbers begin at `SYMBOL`.
PAD, BOS, SEP, EQ, EOS, SYMBOL = 0, 1, 2, 3, 4, 10
_PLUS, _MINUS, _TIMES, _OPEN, _CLOSE = range(5, 10)
#: One of so many questions is kept for tests, whichever batch it comes in.
_PARTS = 8


def longest_increasing(values: Tensor) -> Tensor:
    """Lengths of the longest strictly increasing subsequences that end at each place: (batch, n) to (batch, n)."""
    lengths = torch.ones_like(values)
    for i in range(1, values.shape[1]):
        before = torch.where(values[:, :i] < values[:, i : i + 1], lengths[:, :i], 0)
        lengths[:, i] = 1 + before.amax(1)
    return lengths


def edit_distances(first: Tensor, second: Tensor) -> Tensor:
    """Levenshtein's table: (batch, n), (batch, m) to (batch, n + 1, m + 1); the distance is its last entry."""
    batch, n = first.shape
    m = second.shape[1]
    table = torch.zeros(batch, n + 1, m + 1, dtype=torch.int64)
    table[:, :, 0], table[:, 0] = torch.arange(n + 1), torch.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            change = table[:, i - 1, j - 1] + (first[:, i - 1] != second[:, j - 1])
            table[:, i, j] = torch.minimum(torch.minimum(table[:, i - 1, j], table[:, i, j - 1]) + 1, change)
    return table


def local_recurrence(inputs: Tensor, weights: Sequence[int], modulus: int) -> Tensor:
    """y_i = (x_i + sum_j w_j y_{i-j}) mod p, j from 1; what is before the first is 0: (batch, n) to (batch, n)."""
    outputs = torch.zeros_like(inputs)
    for i in range(inputs.shape[1]):
        total = inputs[:, i].clone()
        for j, weight in enumerate(weights[:i], 1):
            total += weight * outputs[:, i - j]
        outputs[:, i] = total % modulus
    return outputs


def last_values(keys: Tensor, values: Tensor, count: int) -> Tensor:
    """The value that each of `count` keys had last, -1 where it never occurs: (batch, n), (batch, n) to (batch, count)."""
    found = torch.full((keys.shape[0], count), -1, dtype=values.dtype)
    for i in range(keys.shape[1]):
        found.scatter_(1, keys[:, i : i + 1], values[:, i : i + 1])
    return found


class ChainTask:
    """What the tasks of this file share: a batch from sequences and the places that are asked for.

    With ``part="train"`` a task never draws one of the questions of ``part="test"``, whatever the seeds are.
    """

    shortest: ClassVar[int] = 2
    part: str

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences (count, length) up to EOS, and which of their tokens are asked for (length,)."""
        raise NotImplementedError

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples."""
        at_least("batch_size", batch_size, 0)
        if self.part not in ("all", "train", "test"):
            raise ValueError(f"part: all, train or test, got {self.part!r}")
        generator = torch.Generator().manual_seed(seed)
        sequences, asked = self.draw(batch_size, generator)
        if self.part != "all":
            found, kept = [sequences[self._belongs(sequences)]], 0
            for _ in range(100):
                kept = sum(map(len, found))
                if kept >= batch_size:
                    break
                more, _ = self.draw(batch_size * (_PARTS if self.part == "test" else 1), generator)
                found.append(more[self._belongs(more)])
            if kept < batch_size:
                raise ValueError(f"part: there are hardly any questions for {self.part!r}; take longer ones")
            sequences = torch.cat(found)[:batch_size]
        tokens, targets = sequences[:, :-1].contiguous(), sequences[:, 1:].clone()
        targets[:, ~asked[1:]] = IGNORED
        return SyntheticBatch(tokens, targets)

    def _belongs(self, sequences: Tensor) -> Tensor:
        # The rest of a sequence follows from its question, so that all of it may be mixed into the number.
        mixed = torch.zeros(sequences.shape[0], dtype=torch.int64)
        for column in sequences.unbind(1):
            mixed = (mixed * 1_000_003 + column + 1) % 2_147_483_647
        held_back = mixed % 65_537 % _PARTS == 0
        return held_back if self.part == "test" else ~held_back


def _sequence(question: Sequence[Any], steps: Sequence[Any], answer: Any, *, show_steps: bool) -> tuple[Tensor, Tensor]:
    """Columns or blocks of them, numbers standing for a column: question, asked-for steps, asked-for answer, EOS."""
    asked_for = [*(steps if show_steps else ()), answer, EOS]
    rows = next(block.shape[0] for block in (*question, answer) if isinstance(block, Tensor))

    def wide(block: Any) -> Tensor:
        if not isinstance(block, Tensor):
            return torch.full((rows, 1), block)
        return block if block.ndim == 2 else block[:, None]

    left, right = (torch.cat([wide(block) for block in blocks], dim=1) for blocks in (question, asked_for))
    asked = torch.arange(left.shape[1] + right.shape[1]) >= left.shape[1]
    return torch.cat([left, right], dim=1), asked


@dataclass(frozen=True)
class StringCopy(ChainTask):
    """BOS s SEP s EOS: say a random string again.

    Fields:
        length: n, symbols of the string.
        symbols: how many different ones there are.
        part: all, train or test: see `ChainTask`.
    """

    length: int = 20
    symbols: int = 16
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks and symbols."""
        return SYMBOL + self.symbols

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        at_least("length", self.length, 1)
        at_least("symbols", self.symbols, 1)
        string = torch.randint(SYMBOL, self.vocab_size, (count, self.length), generator=generator)
        return _sequence([BOS, string, SEP], [string[:, :-1]], string[:, -1], show_steps=True)


@dataclass(frozen=True)
class LastOccurrence(ChainTask):
    """BOS k v k v … SEP q v EOS: the value that the key q had last.

    Fields:
        length: n, pairs.
        keys: different keys; with fewer of them than pairs, they repeat.
        values: different values.
        part: see `ChainTask`.
    """

    length: int = 16
    keys: int = 8
    values: int = 16
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks, keys and values."""
        return SYMBOL + self.keys + self.values

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        for name in ("length", "keys", "values"):
            at_least(name, getattr(self, name), 1)
        keys = torch.randint(self.keys, (count, self.length), generator=generator)
        values = torch.randint(self.values, (count, self.length), generator=generator)
        place = torch.randint(self.length, (count, 1), generator=generator)
        query = keys.gather(1, place)
        answer = last_values(keys, values, self.keys).gather(1, query)
        pairs = torch.stack([SYMBOL + keys, SYMBOL + self.keys + values], dim=2).flatten(1)
        question = [BOS, pairs, SEP, SYMBOL + query]
        return _sequence(question, [], SYMBOL + self.keys + answer, show_steps=False)


@dataclass(frozen=True)
class PrefixLookup(ChainTask):
    """BOS s SEP g a EOS: what follows a piece g of the string s; where g occurs again, what follows it last.

    Fields:
        length: symbols of the string.
        piece: symbols of the piece.
        symbols: how many different ones there are.
        part: see `ChainTask`.
    """

    shortest: ClassVar[int] = 8

    length: int = 20
    piece: int = 2
    symbols: int = 16
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks and symbols."""
        return SYMBOL + self.symbols

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        at_least("piece", self.piece, 1)
        at_least("length", self.length, self.piece + 1)
        at_least("symbols", self.symbols, 1)
        string = torch.randint(SYMBOL, self.vocab_size, (count, self.length), generator=generator)
        place = torch.randint(self.length - self.piece, (count, 1), generator=generator)
        piece = string.gather(1, place + torch.arange(self.piece))
        windows = string[:, :-1].unfold(1, self.piece, 1)  # each is followed by a symbol
        same = (windows == piece[:, None]).all(2)
        last = (same * torch.arange(1, same.shape[1] + 1)).amax(1, keepdim=True) - 1
        return _sequence([BOS, string, SEP, piece], [], string.gather(1, last + self.piece), show_steps=False)


@dataclass(frozen=True)
class LongestIncreasing(ChainTask):
    """BOS a_1 … a_n EQ L_1 … L_n answer EOS: L_i needs any of the L before it; the answer is the largest.

    Fields:
        length: n.
        largest: numbers are from 1 to so much.
        chain_of_thought: show the L; else the answer follows the question.
        part: see `ChainTask`.
    """

    length: int = 12
    largest: int = 30
    chain_of_thought: bool = True
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks and numbers."""
        return SYMBOL + max(self.largest, self.length) + 1

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        at_least("length", self.length, 1)
        at_least("largest", self.largest, 1)
        values = torch.randint(1, self.largest + 1, (count, self.length), generator=generator)
        lengths = longest_increasing(values)
        question = [BOS, SYMBOL + values, EQ]
        return _sequence(question, [SYMBOL + lengths], SYMBOL + lengths.amax(1), show_steps=self.chain_of_thought)


@dataclass(frozen=True)
class EditDistance(ChainTask):
    """BOS s SEP t EQ rows of Levenshtein's table, a SEP after each, answer EOS: an entry needs the last m + 2 entries.

    Half of the strings t are s with changes, so that distances are not all alike.

    Fields:
        length: n, symbols of s, and of t unless `other` is given.
        other: m, symbols of t; None: n.
        symbols: how many different ones there are.
        chain_of_thought: show the table; else the answer follows the question.
        part: see `ChainTask`.
    """

    length: int = 5
    other: int | None = None
    symbols: int = 4
    chain_of_thought: bool = True
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks, symbols and distances."""
        return SYMBOL + self.symbols + max(self.length, self.other or 0) + 1

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        n, m = self.length, self.length if self.other is None else self.other
        at_least("length", n, 1)
        at_least("other", m, 1)
        at_least("symbols", self.symbols, 1)
        first = torch.randint(self.symbols, (count, n), generator=generator)
        second = torch.randint(self.symbols, (count, m), generator=generator)
        kept = torch.rand(count, min(n, m), generator=generator) < 0.7
        kept &= torch.rand(count, 1, generator=generator) < 0.5
        second[:, : min(n, m)] = torch.where(kept, first[:, : min(n, m)], second[:, : min(n, m)])
        table = SYMBOL + self.symbols + edit_distances(first, second)
        ends = torch.full((count, n + 1, 1), SEP)
        rows = torch.cat([table, ends], dim=2).flatten(1)
        question = [BOS, SYMBOL + first, SEP, SYMBOL + second, EQ]
        return _sequence(question, [rows], table[:, -1, -1], show_steps=self.chain_of_thought)


@dataclass(frozen=True)
class Arithmetic(ChainTask):
    """BOS expression EQ expression EQ … EQ value EOS: each line has the left-most bracket of two numbers worked out.

    Every operation, + - or *, has its brackets; numbers are those of Z_p.

    Fields:
        length: k, operations.
        modulus: p.
        chain_of_thought: show the lines; else the value follows the question.
        part: see `ChainTask`.
    """

    length: int = 4
    modulus: int = 7
    chain_of_thought: bool = True
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks and numbers."""
        return SYMBOL + self.modulus

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        at_least("length", self.length, 1)
        at_least("modulus", self.modulus, 2)
        # A list of numbers far longer than a tree can use: reading it takes no calls of the generator.
        drawn = torch.randint(1 << 30, (count, 3 * self.length + 2), generator=generator).tolist()
        rows = [arithmetic_lines(_tree(self.length, iter(numbers), self.modulus), self.modulus) for numbers in drawn]
        widths = [4 * left + 1 for left in range(self.length, -1, -1)]
        lines = [
            torch.tensor([row[index] for row in rows], dtype=torch.int64).view(count, width)
            for index, width in enumerate(widths)
        ]
        marks: list[Any] = []
        for line in lines[1:-1]:
            marks += [line, EQ]
        return _sequence([BOS, lines[0], EQ], marks, lines[-1][:, 0], show_steps=self.chain_of_thought)


def _tree(operations: int, numbers: Any, modulus: int) -> list[int]:
    """Tokens of a random expression."""
    if not operations:
        return [SYMBOL + next(numbers) % modulus]
    left = next(numbers) % operations
    operator = (_PLUS, _MINUS, _TIMES)[next(numbers) % 3]
    one, other = _tree(left, numbers, modulus), _tree(operations - 1 - left, numbers, modulus)
    return [_OPEN, *one, operator, *other, _CLOSE]


def arithmetic_lines(tokens: list[int], modulus: int) -> list[list[int]]:
    """An expression and what is left of it after each operation, the left-most bracket of two numbers first."""
    lines = [tokens]
    while len(tokens) > 1:
        start = next(
            i for i in range(len(tokens)) if tokens[i] == _OPEN and tokens[i + 4] == _CLOSE and tokens[i + 2] < _OPEN
        )
        one, operator, other = tokens[start + 1] - SYMBOL, tokens[start + 2], tokens[start + 3] - SYMBOL
        value = {_PLUS: one + other, _MINUS: one - other, _TIMES: one * other}[operator] % modulus
        tokens = [*tokens[:start], SYMBOL + value, *tokens[start + 5 :]]
        lines.append(tokens)
    return lines


@dataclass(frozen=True)
class LocalProgram(ChainTask):
    """BOS x_1 y_1 x_2 y_2 … x_n y_n EOS with y_i = (x_i + sum_j w_j y_{i-j}) mod p: exactly local.

    Fields:
        length: n.
        weights: w_1 to w_m; their number m is the locality.
        modulus: p.
        interleaved: each y after its x, so that it needs the last 2 m + 1 tokens only; else all x come first, then EQ and
            all y, and a model must find x_i again.
        part: see `ChainTask`.
    """

    length: int = 20
    weights: tuple[int, ...] = (1, 2, 3)
    modulus: int = 7
    interleaved: bool = True
    part: str = "all"

    @property
    def vocab_size(self) -> int:
        """Marks and numbers."""
        return SYMBOL + self.modulus

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ChainTask`."""
        at_least("length", self.length, 1)
        at_least("modulus", self.modulus, 2)
        inputs = torch.randint(self.modulus, (count, self.length), generator=generator)
        outputs = local_recurrence(inputs, self.weights, self.modulus)
        inputs, outputs = inputs + SYMBOL, outputs + SYMBOL
        if not self.interleaved:
            return _sequence([BOS, inputs, EQ], [outputs[:, :-1]], outputs[:, -1], show_steps=True)
        pairs = torch.stack([inputs, outputs], dim=2).flatten(1)
        ends = [torch.full((count, 1), mark) for mark in (BOS, EOS)]
        asked = torch.tensor([False, *[False, True] * self.length, True])
        return torch.cat([ends[0], pairs, ends[1]], dim=1), asked
