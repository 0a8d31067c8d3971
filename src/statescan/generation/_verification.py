"""Which part of a drafted token tree the model agrees with.

Node 0 is the last token of the sequence, the others are guesses of what follows. Verification walks down from it: at a
node the model chooses the next token; where a child has that token the walk goes on there. The tokens chosen are the
result, one more than guesses were accepted, and they are distributed as if the model had been asked one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verification:
    """What came of a tree.

    Fields:
        tokens: the new tokens, at least one.
        path: the nodes that are part of the text, from node 0 on, as many as there are tokens: the last token belongs to
            no node yet.
    """

    tokens: list[int]
    path: list[int]


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """The children of every node, in order."""
    found: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            found[parent].append(node)
    return found


def verify_matching(tokens: Sequence[int], parents: Sequence[int], choose: Callable[[int], int]) -> Verification:
    """Accept children that have the very token the model chooses.

    The choice does not look at the guesses, so this is exact for every draft: with the most probable token as the
    choice, greedy decoding; with a token drawn from the model's distribution, sampling.

    Arguments:
        tokens: a token a node.
        parents: of every node; -1 for node 0.
        choose: gives the model's next token after a node; asked once a node of the path.
    """
    children = children_of(parents)
    node, path, new = 0, [0], []
    while True:
        token = choose(node)
        new.append(token)
        match = next((child for child in children[node] if tokens[child] == token), None)
        if match is None:
            return Verification(new, path)
        node = match
        path.append(node)


def verify_greedy(tokens: Tensor, parents: Tensor, logits: Tensor) -> Verification:
    """`verify_matching` with the most probable tokens: tokens (nodes,), parents (nodes,), logits (nodes, vocabulary)."""
    _check(tokens, parents, logits)
    best = logits.argmax(-1).tolist()
    return verify_matching(tokens.tolist(), parents.tolist(), best.__getitem__)


def verify_rounds(
    tokens: Tensor, parents: Tensor, target: Tensor, draft: Tensor, uniform: Callable[[], float]
) -> Verification:
    """Multi-round speculative sampling: a node's children are tried in turn, then the rest is sampled.

    Child c of a node with the model's distribution p, drawn from the draft's q, is accepted with probability
    min(1, p(c) / q(c)); where it is not, p becomes the normalised positive part of p - q, and q loses c. The children of a
    node must have been drawn from its row of `draft` one after the other, without replacement; then what comes out is
    distributed as p. (Leviathan et al. 2023, arXiv 2211.17192; Miao et al. 2024, "SpecInfer", arXiv 2305.09781.)

    Arguments:
        tokens: (nodes,), parents: (nodes,), int64.
        target: (nodes, vocabulary) probabilities of the model after every node.
        draft: (nodes, vocabulary) probabilities from which the node's children were drawn.
        uniform: gives fresh random numbers in [0, 1).
    """
    _check(tokens, parents, target)
    if draft.shape != target.shape:
        raise ValueError(f"draft: expected the shape of target {tuple(target.shape)}, got {tuple(draft.shape)}")
    names, children = tokens.tolist(), children_of(parents.tolist())
    node, path, new = 0, [0], []
    while True:
        p, q = target[node].double(), draft[node].double().clone()
        accepted = None
        for child in children[node]:
            token = names[child]
            mass = float(q[token])
            if uniform() * mass < float(p[token]):  # a guess that q could not have drawn is accepted where p allows it
                accepted = child
                break
            rest = (p - q).clamp(min=0)
            total = float(rest.sum())
            p = rest / total if total > 0 else p  # p = q up to rounding: nothing is rejected but by rounding
            q[token] = 0
            left = float(q.sum())
            q = q / left if left > 0 else q
        if accepted is None:
            new.append(_draw(p, uniform()))
            return Verification(new, path)
        new.append(names[accepted])
        path.append(accepted)
        node = accepted


def _draw(probabilities: Tensor, number: float) -> int:
    """A token by inversion of the cumulative distribution."""
    cumulative = probabilities.double().cumsum(-1)
    last = int(probabilities.nonzero()[-1])  # rounding must not lead past the last possible token
    return min(int(torch.searchsorted(cumulative, number * float(cumulative[-1]), right=True)), last)


def _check(tokens: Tensor, parents: Tensor, rows: Tensor) -> None:
    if tokens.ndim != 1 or parents.shape != tokens.shape or rows.ndim != 2 or rows.shape[0] != tokens.shape[0]:
        raise ValueError(
            "tokens, parents, logits: expected (nodes,), (nodes,), (nodes, vocabulary), got "
            f"{tuple(tokens.shape)}, {tuple(parents.shape)}, {tuple(rows.shape)}"
        )
