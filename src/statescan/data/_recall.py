"""Associative recall: give the value that stood beside a key.

`associative_recall_sequences`: Fu et al. 2023 (H3; github.com/HazyResearch/safari, `dataloaders/synthetics.py`).
`multi_query_recall`: Arora et al. 2023 (Zoology; github.com/HazyResearch/zoology, `data/multiquery_ar.py`).
Both draw as the published code does, number for number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statescan.data._induction import shifted
from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least


def associative_recall_sequences(
    count: int,
    *,
    vocab_size: int,
    input_length: int,
    key_length: int = 1,
    allow_absent: bool = True,
    seed: int = 0,
) -> Tensor:
    """Sequences of H3's associative-recall task, question and answer together.

    Token 0 (written ".") answers for an absent key, token ``vocab_size - 1`` (written "=>") asks; the lower half of
    the others are keys, the upper half values. Every sequence has a map of its own from keys (of `key_length`
    tokens) to values and shows ``input_length // (key_length + 1)`` pairs of it, with repetition; then "=>", a key,
    its value.

    Arguments:
        allow_absent: the key may be one that was not shown.

    Returns:
        (count, ``input_length // (key_length + 1) * (key_length + 1) + key_length + 2``), int64.
    """
    at_least("vocab_size", vocab_size, 4)
    at_least("key_length", key_length, 1)
    at_least("input_length", input_length, key_length + 1)
    rng = np.random.default_rng(seed)
    absent, ask, ordinary = 0, vocab_size - 1, vocab_size - 2
    key_tokens = np.arange(1, 1 + ordinary // 2)
    value_tokens = np.arange(1 + ordinary // 2, 1 + ordinary)
    grid = np.meshgrid(*[key_tokens] * key_length, indexing="ij")
    keys = np.stack([axis.ravel() for axis in grid], axis=1)
    pairs = input_length // (key_length + 1)
    sequences = []
    for _ in range(count):
        values = [rng.choice(value_tokens) for _ in keys]
        shown = [int(rng.choice(len(keys))) for _ in range(pairs)]
        present = list(dict.fromkeys(shown))
        asked = int(rng.choice(len(keys)))
        while not allow_absent and asked not in present:
            asked = present[int(rng.choice(len(present)))]
        sequence: list[int] = []
        for key in shown:
            sequence += [*keys[key], values[key]]
        answer = values[asked] if asked in present else absent
        sequences.append([*sequence, ask, *keys[asked], answer])
    width = pairs * (key_length + 1) + key_length + 2
    return torch.from_numpy(np.array(sequences, dtype=np.int64).reshape(count, width))


@dataclass(frozen=True)
class AssociativeRecall:
    """H3's form: one question a sequence (see `associative_recall_sequences`).

    Fields:
        length: tokens that show pairs.
        vocab_size: the two special tokens included.
        key_length: tokens of a key.
        allow_absent: the key asked for may be one that was not shown.
    """

    length: int = 40
    vocab_size: int = 20
    key_length: int = 1
    allow_absent: bool = False

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples; only the value at the end is asked."""
        sequences = associative_recall_sequences(
            batch_size,
            vocab_size=self.vocab_size,
            input_length=self.length,
            key_length=self.key_length,
            allow_absent=self.allow_absent,
            seed=seed,
        )
        return shifted(sequences, 1)


def multi_query_recall(
    count: int,
    *,
    vocab_size: int,
    input_length: int,
    pairs: int,
    power: float = 0.01,
    random_non_queries: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Multi-query associative recall (MQAR): pairs first, then every key once more, far apart or near.

    Keys are drawn from ``1 ... vocab_size // 2 - 1``, values from the upper half. The distance of a question from the
    pairs follows a power law.

    Arguments:
        pairs: keys with a value, each asked once.
        power: 1 spreads the questions evenly; near 0 most stand close to the pairs.
        random_non_queries: fill the places between questions with random tokens instead of 0.

    Returns:
        inputs and labels (count, input_length), int64; a label is the value at the position of a question,
        `IGNORED` elsewhere.
    """
    at_least("pairs", pairs, 1)
    if input_length % 2 or input_length < 4 * pairs:
        raise ValueError(
            f"input_length: expected an even number, at least 4 tokens for each of {pairs} pairs, got {input_length}"
        )
    if vocab_size <= max(input_length, 2 * pairs + 1):
        raise ValueError(f"vocab_size: expected more than the input_length of {input_length}, got {vocab_size}")
    rng = np.random.RandomState(seed)
    shown = 2 * pairs
    space = (input_length - shown) // 2
    weights = power * np.arange(1, space + 1) ** (power - 1)
    weights /= weights.sum()

    def draw(choices: np.ndarray, probabilities: np.ndarray | None = None) -> np.ndarray:
        drawn = [rng.choice(choices, pairs, replace=False, p=probabilities) for _ in range(count)]
        return np.array(drawn, dtype=np.int64).reshape(count, pairs)

    keys = draw(np.arange(1, vocab_size // 2))
    values = draw(np.arange(vocab_size // 2, vocab_size))
    questions = shown + 2 * draw(np.arange(space), weights)
    inputs = np.zeros((count, input_length), dtype=np.int64)
    inputs[:, 0:shown:2], inputs[:, 1:shown:2] = keys, values
    np.put_along_axis(inputs, questions, keys, axis=1)
    labels = np.full_like(inputs, IGNORED)
    np.put_along_axis(labels, questions, values, axis=1)
    tokens = torch.from_numpy(inputs)
    if random_non_queries:
        filler = torch.randint(vocab_size, tokens.shape, generator=torch.Generator().manual_seed(seed))
        tokens = tokens.where(tokens != 0, filler)
    return tokens, torch.from_numpy(labels)


@dataclass(frozen=True)
class MultiQueryRecall:
    """MQAR as published (see `multi_query_recall`).

    Fields:
        length: tokens of a sequence.
        pairs: keys with a value.
        vocab_size: keys, values and the filler 0.
        power: of the law of distances.
        random_non_queries: random tokens between the questions.
    """

    length: int = 64
    pairs: int = 4
    vocab_size: int = 256
    power: float = 0.01
    random_non_queries: bool = False

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples."""
        tokens, labels = multi_query_recall(
            batch_size,
            vocab_size=self.vocab_size,
            input_length=self.length,
            pairs=self.pairs,
            power=self.power,
            random_non_queries=self.random_non_queries,
            seed=seed,
        )
        return SyntheticBatch(tokens, labels)
