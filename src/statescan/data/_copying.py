"""Copying and selective copying.

Arjovsky et al. 2016 (copying); Gu and Dao 2023, section 3.1 (selective copying). The generator draws as that of S4
(github.com/state-spaces/s4, `torch_copying_data`) does, number for number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least

NOISE = 0


def copying(
    batch_size: int, *, noise_length: int, memorize: int, vocab_size: int, selective: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Sequences in which some tokens must be remembered, and those tokens.

    Token 0 is noise, ``vocab_size - 1`` is the marker that asks for an answer, the others are data. `memorize` data
    tokens stand among `noise_length` noise tokens, at the front or, if `selective`, at random places; as many
    markers follow, and at the first marker the first data token is to be answered, and so on.

    Returns:
        inputs (batch, noise_length + 2 * memorize) and the data tokens in order (batch, memorize), both int64.
    """
    at_least("batch_size", batch_size, 0)
    at_least("noise_length", noise_length, 0)
    at_least("memorize", memorize, 1)
    at_least("vocab_size", vocab_size, 3)
    generator = torch.Generator().manual_seed(seed)
    length = noise_length + memorize
    data = torch.randint(1, vocab_size - 1, (batch_size, memorize), generator=generator)
    places = torch.arange(memorize).expand(batch_size, memorize)
    if selective and batch_size:
        shuffled = [torch.randperm(length, generator=generator)[:memorize] for _ in range(batch_size)]
        places = torch.stack(shuffled).sort(1).values
    inputs = torch.full((batch_size, length + memorize), NOISE)
    inputs.scatter_(1, places, data)
    inputs[:, length:] = vocab_size - 1
    return inputs, data


@dataclass(frozen=True)
class Copying:
    """The data tokens stand at the front: a delay, which a time-invariant model can learn.

    Fields:
        length: noise tokens.
        memorize: data tokens.
        vocab_size: noise, data and marker tokens together.
    """

    length: int = 256
    memorize: int = 16
    vocab_size: int = 16

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples; the answers are asked at the markers."""
        return _batch(self, batch_size, selective=False, seed=seed)


@dataclass(frozen=True)
class SelectiveCopying:
    """The data tokens stand at random places: what to remember depends on the input.

    Fields:
        length: noise tokens.
        memorize: data tokens.
        vocab_size: noise, data and marker tokens together.
    """

    length: int = 256
    memorize: int = 16
    vocab_size: int = 16

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples; the answers are asked at the markers."""
        return _batch(self, batch_size, selective=True, seed=seed)


def _batch(task: Copying | SelectiveCopying, batch_size: int, *, selective: bool, seed: int) -> SyntheticBatch:
    tokens, data = copying(
        batch_size,
        noise_length=task.length,
        memorize=task.memorize,
        vocab_size=task.vocab_size,
        selective=selective,
        seed=seed,
    )
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -task.memorize :] = data
    return SyntheticBatch(tokens, targets)
