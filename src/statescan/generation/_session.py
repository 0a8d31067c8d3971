"""Where a continuation stands, as a value: it can be stored, moved, forked and resumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from statescan.generation._text import CONTEXT
from statescan.layers import State

_PAD = -1


@dataclass(frozen=True)
class GenerationState:
    """All that one or more continuations need to go on as if they had never stopped.

    Fields (the first axis is the sequence):
        model: the model's state after every token but the last.
        last: (sequences,), int64: the last token, not yet fed to the model.
        seeds, drawn: (sequences,), int64: the sampler's random state, a seed and how many numbers were used.
        recent: (sequences, 16), int64: the last tokens, oldest first, -1 in front where there are fewer; they
            let text go on in the middle of a character.
        held: (sequences, characters), int64: code points of text held back because it may begin a stop string,
            -1 behind.
        seen: (sequences, vocabulary), bool: tokens that occurred, kept where a repetition penalty is in use.
    """

    model: State
    last: Tensor
    seeds: Tensor
    drawn: Tensor
    recent: Tensor
    held: Tensor
    seen: Tensor | None = None

    def __len__(self) -> int:
        """How many sequences it holds."""
        return self.last.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.as_state().nbytes

    def as_state(self) -> State:
        """The same as one nested `State`."""
        entries: dict[str, Any] = {
            "model": self.model,
            "last": self.last,
            "seeds": self.seeds,
            "drawn": self.drawn,
            "recent": self.recent,
            "held": self.held,
        }
        if self.seen is not None:
            entries["seen"] = self.seen
        return State(entries)

    @classmethod
    def from_state(cls, state: State) -> GenerationState:
        """The inverse of `as_state`."""
        names = ("model", "last", "seeds", "drawn", "recent", "held")
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(
                f"state: this is not a generation state, it lacks {', '.join(missing)}; "
                "a model's own state is loaded with State.load"
            )
        model, last, seeds, drawn, recent, held = (state[name] for name in names)
        return cls(model, last, seeds, drawn, recent, held, state["seen"] if "seen" in state else None)  # noqa: SIM401

    def to(self, device: torch.device | str) -> GenerationState:
        """The same on another device."""
        return self.from_state(self.as_state().to(device))

    def clone(self) -> GenerationState:
        """A copy that shares no memory."""
        return self.from_state(self.as_state().clone())

    def select(self, indices: Tensor | Sequence[int]) -> GenerationState:
        """The sequences with these indices, in this order; repeating an index forks a sequence.

        Forks share their seed: pass `seed` when going on, or they stay the same.
        """
        return self.from_state(self.as_state().select(torch.as_tensor(indices, dtype=torch.int64)))

    @classmethod
    def concatenate(cls, states: Sequence[GenerationState]) -> GenerationState:
        """Continuations side by side, for one batch."""
        width = max(state.held.shape[1] for state in states)
        entries = []
        for state in states:
            held = torch.nn.functional.pad(state.held, (0, width - state.held.shape[1]), value=_PAD)
            entries.append(replace(state, held=held).as_state())
        return cls.from_state(State.concatenate(entries))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        self.as_state().save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GenerationState:
        """Read what `save` wrote."""
        return cls.from_state(State.load(path))


def pad_recent(tokens: Sequence[int]) -> Tensor:
    """The last tokens of one sequence as `GenerationState.recent` has them, (1, CONTEXT)."""
    return torch.tensor([[_PAD] * (CONTEXT - len(tokens)) + list(tokens)], dtype=torch.int64)


def unpad(row: Tensor) -> list[int]:
    """The entries of a row that are no padding."""
    return [value for value in row.tolist() if value != _PAD]
