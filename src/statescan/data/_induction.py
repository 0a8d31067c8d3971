"""Induction heads: repeat what followed a special token the last time it was seen.

Olsson et al. 2022. Two forms: that of Gu and Dao 2023, section 4.1.2, whose generator was not published, and that of
Fu et al. 2023 (H3; github.com/HazyResearch/safari, `dataloaders/synthetics.py`), drawn number for number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least


@dataclass(frozen=True)
class InductionHeads:
    """The special token stands at a random place, a token follows it; the sequence ends with the special token.

    The last token of the vocabulary is the special one. One answer a sequence, at its end.

    Fields:
        length: tokens of a sequence, both special tokens included.
        vocab_size: the special token included.
    """

    length: int = 256
    vocab_size: int = 16

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples."""
        at_least("batch_size", batch_size, 0)
        at_least("length", self.length, 3)
        at_least("vocab_size", self.vocab_size, 3)
        generator = torch.Generator().manual_seed(seed)
        special = self.vocab_size - 1
        tokens = torch.randint(0, special, (batch_size, self.length), generator=generator)
        places = torch.randint(0, self.length - 2, (batch_size, 1), generator=generator)
        tokens.scatter_(1, places, special)
        tokens[:, -1] = special
        targets = torch.full_like(tokens, IGNORED)
        targets[:, -1] = tokens.gather(1, places + 1).squeeze(1)
        return SyntheticBatch(tokens, targets)


def induction_head_sequences(
    count: int,
    *,
    vocab_size: int,
    input_length: int,
    induction_length: int = 1,
    triggers: int = 1,
    seed: int = 0,
) -> Tensor:
    """Sequences of H3's induction-head task, question and answer together.

    Token ``vocab_size - 1`` (written "=>") is the trigger; token 0 (written ".") does not occur. The trigger is
    written into `input_length` random tokens, at one place in half of the sequences and at up to `triggers` places in
    the others; the tokens after its first occurrence are copied after the later ones, and after the trigger that ends
    the input.

    Returns:
        (count, input_length + 1 + induction_length), int64.
    """
    at_least("vocab_size", vocab_size, 3)
    at_least("induction_length", induction_length, 1)
    at_least("triggers", triggers, 1)
    at_least("input_length", input_length, induction_length + 2)
    rng = np.random.default_rng(seed)
    trigger = vocab_size - 1
    weights = np.full(vocab_size, 1 / (vocab_size - 2))
    weights[[0, trigger]] = 0
    sequences = np.empty((count, input_length + 1 + induction_length), dtype=np.int64)
    for sequence in sequences:
        sequence[:input_length] = rng.choice(vocab_size, input_length, p=weights)
        sequence[input_length] = trigger
        wanted = 1 if rng.uniform() < 0.5 else triggers
        places: list[int] = []
        for place in sorted(rng.integers(input_length - (1 + induction_length), size=wanted)):
            if not places or place - places[-1] > induction_length:
                places.append(place)
        answer = sequence[places[0] + 1 : places[0] + 1 + induction_length].copy()
        for place in (*places, input_length):
            sequence[place] = trigger
            sequence[place + 1 : place + 1 + induction_length] = answer
    return torch.from_numpy(sequences)


@dataclass(frozen=True)
class InductionHead:
    """H3's form: several triggers, more than one token to repeat (see `induction_head_sequences`).

    Fields:
        length: random tokens before the trigger that asks.
        vocab_size: the two special tokens included.
        induction_length: tokens to repeat.
        triggers: places, at most, where the trigger stands before it asks.
    """

    length: int = 30
    vocab_size: int = 20
    induction_length: int = 1
    triggers: int = 1

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples; only the answer is asked, not the random tokens before it."""
        sequences = induction_head_sequences(
            batch_size,
            vocab_size=self.vocab_size,
            input_length=self.length,
            induction_length=self.induction_length,
            triggers=self.triggers,
            seed=seed,
        )
        return shifted(sequences, self.induction_length)


def shifted(sequences: Tensor, answers: int) -> SyntheticBatch:
    """Sequences (batch, length + 1) as a batch in which the last `answers` tokens are asked for."""
    tokens, targets = sequences[:, :-1].contiguous(), sequences[:, 1:].clone()
    targets[:, :-answers] = IGNORED
    return SyntheticBatch(tokens, targets)
