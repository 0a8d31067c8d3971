"""Guesses of what a model will say, as token trees: by looking up n-grams, or by asking a smaller model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from statescan.generation._sampling import SamplingConfig, process_logits
from statescan.layers import State

TreeKind = Literal["chain", "static", "dynamic"]
TREES: tuple[TreeKind, ...] = ("chain", "static", "dynamic")


@dataclass(frozen=True)
class TokenTree:
    """Guesses that share beginnings.

    Fields:
        tokens: a token a node; node 0 is the last token of the sequence.
        parents: of every node, each before its children; -1 for node 0.
        probabilities: (nodes, vocabulary): from what each node's children were drawn, one after the other without
            replacement; None where they were not drawn but chosen.
    """

    tokens: list[int]
    parents: list[int]
    probabilities: Tensor | None = None


class DraftSession(Protocol):
    """The guesses for one sequence."""

    def propose(self, depth: int) -> TokenTree:
        """A tree whose node 0 is the sequence's last token, at most `depth` levels of guesses under it."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence went on with these tokens."""
        ...


class Draft(Protocol):
    """What makes guesses."""

    def begin(self, tokens: Sequence[int], *, vocabulary: int, sampling: SamplingConfig, seed: int) -> DraftSession:
        """Guesses for a sequence that so far is `tokens`, at least one; all guesses are below `vocabulary`."""
        ...


class Trie:
    """A tree under construction: sequences that share beginnings are stored once."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self._children: dict[tuple[int, int], int] = {}

    def child(self, node: int, token: int) -> int:
        """The child of a node with this token, made if it is not there."""
        if (node, token) not in self._children:
            self._children[node, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(node)
        return self._children[node, token]

    def tree(self, probabilities: Tensor | None = None) -> TokenTree:
        """The finished tree."""
        return TokenTree(self.tokens, self.parents, probabilities)


@dataclass(frozen=True)
class NGramDraft:
    """What followed the last tokens when they occurred before, in the prompt or the continuation (Saxena 2023).

    Fields:
        longest, shortest: lengths of the n-grams looked up, the longest first.
        depth: tokens of a guess.
        branches: guesses, of the latest occurrences first; they share their beginnings. 1 is a chain.
        nodes: of the tree, at most.
    """

    longest: int = 4
    shortest: int = 1
    depth: int = 8
    branches: int = 1
    nodes: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"shortest, longest: 1 <= shortest <= longest, got {self.shortest} and {self.longest}")
        for name, least in (("depth", 1), ("branches", 1), ("nodes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: at least {least}, got {getattr(self, name)}")

    def begin(self, tokens: Sequence[int], *, vocabulary: int, sampling: SamplingConfig, seed: int) -> DraftSession:
        """See `Draft`."""
        return _NGramSession(self, tokens)


class _NGramSession:
    def __init__(self, settings: NGramDraft, tokens: Sequence[int]) -> None:
        self._settings = settings
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], deque[int]] = {}  # where the latest occurrences ended
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        kept = 2 * self._settings.branches + 1
        for token in tokens:
            self._tokens.append(token)
            end = len(self._tokens)
            for length in range(self._settings.shortest, min(self._settings.longest, end) + 1):
                key = tuple(self._tokens[end - length :])
                self._after.setdefault(key, deque(maxlen=kept)).append(end)

    def propose(self, depth: int) -> TokenTree:
        settings, trie, end = self._settings, Trie(self._tokens[-1]), len(self._tokens)
        guesses = 0
        for length in range(min(settings.longest, end), settings.shortest - 1, -1):
            for start in reversed(self._after.get(tuple(self._tokens[end - length :]), ())):
                if start == end:  # the occurrence that is looked up
                    continue
                before, node = len(trie.tokens), 0
                for token in self._tokens[start : start + min(depth, settings.depth)]:
                    if len(trie.tokens) >= settings.nodes:
                        return trie.tree()
                    node = trie.child(node, token)
                guesses += len(trie.tokens) > before
                if guesses == settings.branches:
                    return trie.tree()
        return trie.tree()


@dataclass(frozen=True)
class ModelDraft:
    """What a smaller model of the same vocabulary says.

    Fields:
        model: a language model with ``forward(tokens, state)`` and ``step(tokens, state)``.
        tree: ``chain``: the most probable token, `depth` times. ``static``: `branching[i]` most probable tokens under
            every node of level i. ``dynamic``: the `nodes` most probable continuations by the draft's own reckoning, found
            by a beam search of width `beams` to `depth` (Li et al. 2024, "EAGLE-2", arXiv 2406.16858).
        depth: levels of a chain or dynamic tree.
        branching: children a node by level, of a static tree.
        beams, nodes: of a dynamic tree; nodes counts the root.
        least: a dynamic tree does not go deeper where all beams are less probable than this.
        drawn: draw children from the draft's distribution without replacement instead of taking the most probable ones,
            for verification in rounds (`verify_rounds`); for chains and static trees.
    """

    model: Any
    tree: TreeKind = "chain"
    depth: int = 4
    branching: tuple[int, ...] = (3, 2, 1)
    beams: int = 4
    nodes: int = 16
    least: float = 0.01
    drawn: bool = False

    def __post_init__(self) -> None:
        if self.tree not in TREES:
            raise ValueError(f"tree: expected one of {', '.join(TREES)}, got {self.tree!r}")
        for name, least in (("depth", 1), ("beams", 1), ("nodes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: at least {least}, got {getattr(self, name)}")
        if not self.branching or any(count < 1 for count in self.branching):
            raise ValueError(f"branching: at least 1 child a level, got {tuple(self.branching)}")
        if self.drawn and self.tree == "dynamic":
            raise ValueError("drawn: which nodes a dynamic tree keeps depends on what was drawn; use chain or static")

    def begin(self, tokens: Sequence[int], *, vocabulary: int, sampling: SamplingConfig, seed: int) -> DraftSession:
        """See `Draft`."""
        own = getattr(self.model.config, "vocab_size", vocabulary)
        if own < vocabulary // 2:  # a draft may miss a few rare tokens, not be of another tokenizer
            raise ValueError(f"draft: its vocabulary of {own} tokens is not that of the model, {vocabulary}")
        return _ModelSession(self, tokens, vocabulary, sampling, seed)


class _ModelSession:
    def __init__(
        self, settings: ModelDraft, tokens: Sequence[int], vocabulary: int, sampling: SamplingConfig, seed: int
    ) -> None:
        self._settings, self._vocabulary = settings, vocabulary
        # A repetition penalty would need every path's tokens; the draft may do without.
        self._sampling = SamplingConfig(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        self._state: State | None = None
        self._unread = list(tokens)
        self._device = next(settings.model.parameters()).device
        self._generator = torch.Generator().manual_seed(seed % 2**63)

    def extend(self, tokens: Sequence[int]) -> None:
        self._unread += tokens

    def propose(self, depth: int) -> TokenTree:
        settings, root = self._settings, self._unread[-1]
        logits = self._read()
        assert self._state is not None
        if settings.tree == "dynamic":
            return self._search(root, logits, self._state, min(depth, settings.depth))
        branching = settings.branching if settings.tree == "static" else (1,) * settings.depth
        return self._grow(root, logits, self._state, branching[:depth])

    def _read(self) -> Tensor:
        """Logits (1, vocabulary) after what has not been read yet; the state is then after it."""
        model, unread = self._settings.model, self._unread
        self._unread = []
        if self._state is not None and len(unread) == 1:
            logits, self._state = model.step(torch.tensor(unread, device=self._device), self._state)
            return logits[:, : self._vocabulary]
        chunk = 2048
        logits = torch.empty(0)
        for start in range(0, len(unread), chunk):
            tokens = torch.tensor([unread[start : start + chunk]], device=self._device)
            logits, self._state = model(tokens, self._state, last=1)
        return logits[:, -1, : self._vocabulary]

    def _advance(self, tokens: list[int], state: State, rows: list[int]) -> tuple[Tensor, State]:
        """Logits after one more token on each of these rows of a state."""
        logits, after = self._settings.model.step(torch.tensor(tokens, device=self._device), state.select(rows))
        return logits[:, : self._vocabulary], after

    def _grow(self, root: int, logits: Tensor, state: State, branching: Sequence[int]) -> TokenTree:
        """A tree of a fixed shape, level by level."""
        trie, level = Trie(root), [0]
        drawn: list[Tensor] = []
        for number, count in enumerate(branching):
            if self._settings.drawn:
                probabilities = self._probabilities(logits)
                drawn += list(probabilities)
                chosen = self._draw(probabilities, count)
            else:
                chosen = logits.topk(min(count, logits.shape[1])).indices.tolist()
            new, rows, tokens = [], [], []
            for row, (node, children) in enumerate(zip(level, chosen, strict=True)):
                for token in children:
                    new.append(trie.child(node, token))
                    rows.append(row)
                    tokens.append(token)
            level = new
            if number + 1 < len(branching):
                logits, state = self._advance(tokens, state, rows)
        if not self._settings.drawn:
            return trie.tree()
        rows_of_inner = torch.stack(drawn) if drawn else torch.zeros(0, self._vocabulary)
        missing = torch.zeros(len(trie.tokens) - len(drawn), self._vocabulary)  # leaves draw nothing
        return trie.tree(torch.cat([rows_of_inner, missing]))

    def _probabilities(self, logits: Tensor) -> Tensor:
        """What children are drawn from, (rows, vocabulary) in float64."""
        if self._sampling.greedy:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros(logits.shape, dtype=torch.float64).scatter_(1, best.cpu(), 1.0)
        kept = process_logits(logits, self._sampling).double().softmax(-1).cpu()
        missing = self._vocabulary - kept.shape[1]
        return torch.nn.functional.pad(kept, (0, missing)) if missing > 0 else kept

    def _draw(self, probabilities: Tensor, count: int) -> list[list[int]]:
        """Tokens drawn one after the other without replacement: those of the largest perturbed logarithms, in order."""
        noise = -torch.log(-torch.log(torch.rand(probabilities.shape, generator=self._generator, dtype=torch.float64)))
        order = (probabilities.log() + noise).topk(min(count, probabilities.shape[1])).indices
        possible = torch.gather(probabilities, 1, order) > 0
        return [row[keep].tolist() for row, keep in zip(order, possible, strict=True)]

    def _search(self, root: int, logits: Tensor, state: State, depth: int) -> TokenTree:
        """The most probable continuations: a beam search, then the best of all nodes it met."""
        settings = self._settings
        # (logarithm of the probability, depth, candidate above, token); candidates come after those above them.
        candidates: list[tuple[float, int, int, int]] = []
        beams, scores = [-1], [0.0]
        for level in range(1, depth + 1):
            best = logits.float().log_softmax(-1).topk(min(settings.beams, logits.shape[1]))
            found = []
            for row, (values, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                for value, token in zip(values, tokens, strict=True):
                    found.append((scores[row] + value, len(candidates), row))
                    candidates.append((scores[row] + value, level, beams[row], token))
            found = sorted(found, key=lambda entry: (-entry[0], entry[1]))[: settings.beams]
            if level == depth or found[0][0] < math.log(settings.least) or not found:
                break
            beams, scores = [entry[1] for entry in found], [entry[0] for entry in found]
            logits, state = self._advance([candidates[c][3] for c in beams], state, [entry[2] for entry in found])
        # No node is more probable than the one above it, and of equals the upper comes first: what is kept is a tree.
        order = sorted(range(len(candidates)), key=lambda c: (-candidates[c][0], candidates[c][1], c))
        trie, node_of = Trie(root), {-1: 0}
        for candidate in sorted(order[: settings.nodes - 1]):
            _, _, above, token = candidates[candidate]
            node_of[candidate] = trie.child(node_of[above], token)
        return trie.tree()
