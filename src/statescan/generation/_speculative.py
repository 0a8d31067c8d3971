"""Decoding with a draft: guesses are read as one token tree a pass, and what the model agrees with is kept.

Wu et al. 2025, "STree: Speculative Tree Decoding for Hybrid State-Space Models", arXiv 2505.14969. A pass leaves the state
as it was; the state after the accepted path is replayed from the inputs of its nodes when the next pass begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from statescan import ops
from statescan.generation._drafts import Draft, DraftSession, TokenTree
from statescan.generation._engine import Stream, _Sequence
from statescan.generation._sampling import process_logits, sample, uniform
from statescan.generation._session import GenerationState, pad_recent
from statescan.generation._verification import Verification, verify_matching, verify_rounds
from statescan.layers import State
from statescan.layers._tree import forward_tree, replay

Acceptance = Literal["matching", "rounds"]
ACCEPTANCES: tuple[Acceptance, ...] = ("matching", "rounds")


@dataclass
class SpeculationCounts:
    """What speculation did: passes of the model after the prompt, nodes it read, and tokens that came out."""

    passes: int = 0
    nodes: int = 0
    tokens: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """How many tokens a pass gave; plain decoding gives 1."""
        return self.tokens / self.passes if self.passes else 0.0


@dataclass
class _Moment:
    """Where a sequence stood after one token of a pass."""

    token: int
    drawn: int
    recent: list[int]
    held: str


@dataclass
class _Row:
    """One sequence: where it was before the latest pass (`state`, `seen`, the first of `moments`), and what that brought."""

    sequence: _Sequence
    state: State
    session: DraftSession
    seen: Tensor | None
    moments: list[_Moment]
    trace: Any = None
    path: list[int] = field(default_factory=list)


class SpeculativeStream(Stream):
    """A `Stream` whose steps are passes over drafted trees; `counts` says what came of them.

    Sequences are decoded side by side, each with a tree of its own, a pass a sequence in turn.
    """

    def __init__(self, *args: Any, draft: Draft, acceptance: Acceptance = "matching", **options: Any) -> None:
        super().__init__(*args, **options)
        if acceptance not in ACCEPTANCES:
            raise ValueError(f"acceptance: expected one of {', '.join(ACCEPTANCES)}, got {acceptance!r}")
        self._draft, self._acceptance = draft, acceptance
        self._rows: list[_Row] = []
        self.counts = SpeculationCounts()

    def _advance(self) -> None:
        if self._prompts is not None:
            self._begin()
            return
        self._leaving = []
        for number, row in enumerate(self._rows):
            if self._pass(row):
                self._leaving.append(number)

    def _begin(self) -> None:
        """Read the prompts and draw one token, as a plain stream does; then every sequence has a state of its own."""
        assert self._prompts is not None
        known = [
            prompt if len(prompt) >= len(sequence.recent) else [*sequence.recent]
            for sequence, prompt in zip(self._running, self._prompts, strict=True)
        ]
        super()._advance()
        assert self._state is not None
        for number, sequence in enumerate(self._running):
            token = int(self._last[number])
            session = self._draft.begin(
                [*known[number], token],
                vocabulary=self._vocabulary,
                sampling=self._sampling,
                seed=sequence.seed,
            )
            state = self._state.select([number])
            seen = None if self._seen is None else self._seen[number : number + 1]
            self._rows.append(_Row(sequence, state, session, seen, [self._moment(sequence, token)]))
        self._state = None

    def _moment(self, sequence: _Sequence, token: int) -> _Moment:
        held = "" if sequence.text is None else sequence.text.held
        return _Moment(token, sequence.drawn, list(sequence.recent), held)

    def _settle(self, row: _Row) -> None:
        """Bring state and seen tokens up to the last token: replay the path that the latest pass accepted."""
        steps = len(row.moments) - 1
        row.state, row.seen = self._after(row, steps)
        row.moments, row.trace, row.path = row.moments[-1:], None, []

    def _after(self, row: _Row, steps: int) -> tuple[State, Tensor | None]:
        """State and seen tokens after so many tokens of the latest pass."""
        if not steps:
            return row.state, row.seen
        path = torch.tensor([row.path[:steps]], device=self._last.device)
        seen = None if row.seen is None else row.seen.clone()
        if seen is not None:
            seen[0, [moment.token for moment in row.moments[1 : steps + 1]]] = True
        return replay(self._model, row.trace, path, row.state), seen

    def _pass(self, row: _Row) -> bool:
        """Propose, read, verify; whether the sequence ended."""
        self._settle(row)
        sequence = row.sequence
        tree = row.session.propose(sequence.remaining - 1)
        tokens = torch.tensor([tree.tokens], device=self._last.device)
        parents = torch.tensor(tree.parents, device=self._last.device)
        with self._filtered([sequence]):
            logits, row.trace = forward_tree(self._model, tokens, parents, row.state)
        mask = ops.tree_mask(parents)
        seen = self._seen_at_nodes(row, tokens[0], mask)
        processed = process_logits(logits[0, :, : self._vocabulary], self._sampling, seen)
        found, numbers = self._verify(tree, tokens[0], parents, processed, sequence)
        self.counts.passes += 1
        self.counts.nodes += len(tree.tokens)
        # A round may use several random numbers for a token. Counted from the end, those of a later token are never
        # used again by one that goes on from an earlier token's state.
        if not self._sampling.greedy:
            sequence.drawn += numbers - len(found.tokens)
        ended = False
        for token in found.tokens:
            piece = self._accept(sequence, token)
            self._pieces.append(piece)
            row.moments.append(self._moment(sequence, token))
            self.counts.tokens += 1
            if piece.finish_reason is not None:
                ended = True
                break
        row.path = found.path
        if not ended:
            row.session.extend(found.tokens)
        return ended

    def _seen_at_nodes(self, row: _Row, tokens: Tensor, mask: Tensor) -> Tensor | None:
        """Which tokens occurred before each node's choice, its path included: (nodes, vocabulary)."""
        if row.seen is None:
            return None
        seen = row.seen.expand(len(tokens), -1).clone()
        node, above = mask.nonzero(as_tuple=True)
        seen[node, tokens[above]] = True
        return seen

    def _verify(
        self, tree: TokenTree, tokens: Tensor, parents: Tensor, processed: Tensor, sequence: _Sequence
    ) -> tuple[Verification, int]:
        """What the model agrees with, and how many random numbers that took."""
        if self._sampling.greedy:
            best = processed.argmax(-1).tolist()
            return verify_matching(tree.tokens, tree.parents, best.__getitem__), 0
        count = 0

        def number() -> float:
            nonlocal count
            count += 1
            return uniform(sequence.seed, sequence.drawn + count - 1)

        if self._acceptance == "rounds":
            if tree.probabilities is None:
                raise ValueError("acceptance: verification in rounds needs a draft that draws its guesses (drawn=True)")
            target = processed.softmax(-1).cpu()
            found = verify_rounds(tokens.cpu(), parents.cpu(), target, tree.probabilities.double(), number)
            return found, count

        def choose(node: int) -> int:
            nonlocal count
            count += 1  # every token has the random number that plain decoding would use for it
            return int(sample(processed[node : node + 1], [sequence.seed], [sequence.drawn + count - 1]))

        return verify_matching(tree.tokens, tree.parents, choose), count

    def _drop_finished(self) -> None:
        if not self._leaving:
            return
        gone = set(self._leaving)
        self._leaving = []
        self._rows = [row for number, row in enumerate(self._rows) if number not in gone]
        self._running = [row.sequence for row in self._rows]

    def state_of(self, sequence: int = 0) -> GenerationState:
        """As `Stream.state_of`, after the latest token whose piece was handed out, in the middle of a pass too."""
        for number, row in enumerate(self._rows):
            if row.sequence.index == sequence:
                return self._snapshot(number)
        return super().state_of(sequence)

    def _keep_finished(self) -> None:
        if self._keep_states:
            for number in self._leaving:
                row = self._rows[number]
                self._finished[row.sequence.index] = self._snapshot_after(row, len(row.moments) - 1)

    def _snapshot(self, row: int) -> GenerationState:
        found = self._rows[row]
        waiting = sum(piece.sequence == found.sequence.index for piece in self._pieces)
        return self._snapshot_after(found, max(len(found.moments) - 1 - waiting, 0))

    def _snapshot_after(self, row: _Row, steps: int) -> GenerationState:
        """Cloned outside inference mode, so that the tensors may take part in training later."""
        moment = row.moments[steps]
        with torch.no_grad():
            state, seen = self._after(row, steps)
        return GenerationState(
            model=state.clone(),
            last=torch.tensor([moment.token], device=self._last.device),
            seeds=torch.tensor([row.sequence.seed]),
            drawn=torch.tensor([moment.drawn]),
            recent=pad_recent(moment.recent),
            held=torch.tensor([[ord(character) for character in moment.held]], dtype=torch.int64),
            seen=None if seen is None else seen.clone(),
        )
