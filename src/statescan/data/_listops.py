"""ListOps: nested lists of digits under MIN, MAX, MED and SM, whose value is asked. Nangia and Bowman 2018; the generator of
the Long Range Arena (Tay et al. 2021, arXiv 2011.04006), bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

#: Token ids in the order of the published vocabulary of state-space models.
LISTOPS_VOCABULARY = ("<pad>", "<unk>", "<eos>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "X")
_OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
_IDS = {token: index for index, token in enumerate(LISTOPS_VOCABULARY)}
#: A digit, or an operator and its operands.
Tree = Any


def listops_tree(generator: random.Random, *, max_depth: int, max_operands: int, depth: int = 1) -> tuple[Tree, int]:
    """A random tree and the number of its tokens, drawn in the published order.

    Arguments:
        generator: Python's; `random.Random(seed)` gives what the published script gives after `random.seed(seed)`.
        max_depth: above it, a node is a list one time out of four; at it, a digit.
        max_operands: a list has from 2 to so many.
        depth: of this node.
    """
    if depth >= max_depth or generator.random() > 0.25:
        return generator.choice(range(10)), 1
    children = []
    length = 2
    for _ in range(generator.randint(2, max_operands)):
        child, tokens = listops_tree(generator, max_depth=max_depth, max_operands=max_operands, depth=depth + 1)
        children.append(child)
        length += tokens
    return (generator.choice(_OPERATORS), tuple(children)), length


def listops_value(tree: Tree) -> int:
    """What a tree comes to, a digit."""
    if isinstance(tree, int):
        return tree
    operator, children = tree
    values = [listops_value(child) for child in children]
    if operator == "[MED":
        return int(median(values))
    if operator == "[SM":
        return sum(values) % 10
    return min(values) if operator == "[MIN" else max(values)


def listops_tokens(tree: Tree) -> Iterator[str]:
    """Its tokens in reading order; every list ends in ``X``."""
    if isinstance(tree, int):
        yield str(tree)
        return
    operator, children = tree
    yield operator
    for child in children:
        yield from listops_tokens(child)
    yield "X"


def evaluate_listops(tokens: Sequence[str]) -> int:
    """The value of an expression given as tokens, by a stack machine of its own.

    Raises:
        ValueError: tokens that are not one expression.
    """
    stack: list[list[Any]] = [[]]
    for token in tokens:
        if token in _OPERATORS:
            stack.append([token])
        elif token == "X" and len(stack) > 1 and len(stack[-1]) > 1:
            operator, *values = stack.pop()
            stack[-1].append(listops_value((operator, tuple(values))))
        elif token.isdigit() and len(token) == 1:
            stack[-1].append(int(token))
        else:
            raise ValueError(f"listops: {token!r} does not belong where it stands")
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("listops: the tokens are not one whole expression")
    return stack[0][0]


@dataclass(frozen=True)
class ListOps:
    """ListOps expressions of a range of lengths; the published task has the defaults.

    Arguments:
        shortest, longest: tokens of an expression lie strictly between these.
        max_depth, max_operands: of the trees.
        distinct: leave out expressions that were drawn before.
    """

    shortest: int = 500
    longest: int = 2000
    max_depth: int = 10
    max_operands: int = 10
    distinct: bool = True

    def trees(self, count: int, *, seed: int) -> Iterator[Tree]:
        """`count` trees from Python's random numbers of this seed."""
        generator = random.Random(seed)
        seen: set[Tree] = set()
        tries = 0
        while count:
            tree, length = listops_tree(generator, max_depth=self.max_depth, max_operands=self.max_operands)
            tries += 1
            if tries > 1_000_000 and not seen:
                raise ValueError(
                    f"listops: no expression of {self.shortest} to {self.longest} tokens in {tries} draws; allow deeper "
                    "trees or more operands"
                )
            if not self.shortest < length < self.longest or tree in seen:
                continue
            if self.distinct:
                seen.add(tree)
            count -= 1
            yield tree

    def sequences(self, count: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (count, longest of them) padded with 0, lengths (count,) and values (count,); each ends in ``<eos>``."""
        trees = list(self.trees(count, seed=seed))
        rows = [[*(_IDS[token] for token in listops_tokens(tree)), _IDS["<eos>"]] for tree in trees]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        tokens = torch.zeros(count, max(map(len, rows), default=0), dtype=torch.int64)
        for row, target in zip(rows, tokens, strict=True):
            target[: len(row)] = torch.tensor(row)
        return tokens, lengths, torch.tensor([listops_value(tree) for tree in trees], dtype=torch.int64)
