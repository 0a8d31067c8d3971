"""State tracking: the state after reading is a product in a group, which decay alone cannot follow.

Grazzi et al. 2024 (arXiv 2411.12537) and Sarrof et al. 2024 (arXiv 2405.17394): a diagonal recurrence with positive real
eigenvalues solves none of these at arbitrary length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least


@dataclass(frozen=True)
class ModularSum:
    """Numbers below p; at every one of them, or only at the last, their sum modulo p is asked.

    Fields:
        length: numbers of a sequence.
        modulus: p.
        every: ask after every number.
    """

    shortest: ClassVar[int] = 2

    length: int = 32
    modulus: int = 5
    every: bool = True

    @property
    def vocab_size(self) -> int:
        """The numbers."""
        return self.modulus

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples."""
        at_least("batch_size", batch_size, 0)
        at_least("length", self.length, 1)
        at_least("modulus", self.modulus, 2)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.modulus, (batch_size, self.length), generator=generator)
        targets = tokens.cumsum(1) % self.modulus
        if not self.every:
            targets[:, :-1] = IGNORED
        return SyntheticBatch(tokens, targets)


@dataclass(frozen=True)
class Parity(ModularSum):
    """Bits: is the number of ones odd? Fields are those of `ModularSum`."""

    modulus: int = 2
