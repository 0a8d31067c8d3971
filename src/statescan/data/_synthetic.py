"""What the synthetic tasks share: a batch, and the numbers that an argument may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

#: Marks a position where nothing is asked; `torch.nn.functional.cross_entropy` ignores it too.
IGNORED = -100


@dataclass(frozen=True)
class SyntheticBatch:
    """Questions and their answers.

    Fields:
        tokens: (batch, length), int64: what a model reads.
        targets: (batch, length), int64: what it must answer after reading up to that position, `IGNORED` where
            nothing is asked.
    """

    tokens: Tensor
    targets: Tensor


class SyntheticTask(Protocol):
    """A generated task: a frozen dataclass of its settings."""

    @property
    def vocab_size(self) -> int:
        """How many token ids there are."""
        ...

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples; a pure function of its arguments and the settings."""
        ...


def batch_seed(seed: int, stream: str, index: int) -> int:
    """The seed of batch `index` of a stream (``"train"``, ``"validation"``), unlike that of any other batch."""
    entropy = [seed, *stream.encode(), index]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def at_least(name: str, value: int, least: int) -> None:
    """Raise unless an integer setting is large enough."""
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
