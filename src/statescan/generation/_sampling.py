"""From logits to the next token: pure functions on tensors, and the settings that choose among them.

The order is that of Hugging Face `transformers`: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_REMOVED = float("-inf")


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Fields:
        temperature: divides the logits; 0 is greedy decoding (the most probable token, whatever the rest says).
        top_k: keep the k most probable tokens; None keeps all.
        top_p: keep the smallest set of most probable tokens whose probabilities sum to at least this
            (nucleus sampling, Holtzman et al. 2020); 1 keeps all.
        min_p: remove tokens less probable than this fraction of the most probable one (Nguyen et al. 2024).
        repetition_penalty: divides positive and multiplies negative logits of tokens that already occurred in the
            prompt or the continuation (CTRL, Keskar et al. 2019, section 4.1); 1 is none.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature: expected a finite number >= 0 (0 is greedy), got {self.temperature!r}")
        if self.top_k is not None and (isinstance(self.top_k, bool) or not isinstance(self.top_k, int)):
            raise TypeError(f"top_k: expected an int or None, got {self.top_k!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, or None to keep all tokens, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a probability in (0, 1], got {self.top_p!r}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected a probability in [0, 1], got {self.min_p!r}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(
                f"repetition_penalty: expected a finite number > 0 (1 is none), got {self.repetition_penalty!r}"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of the tokens already seen.

    Arguments:
        logits: (batch, vocabulary).
        seen: (batch, vocabulary), bool.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (batch, vocabulary) with all but the k largest of a row at minus infinity; ties with the k-th stay."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, _REMOVED)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (batch, vocabulary) with all outside the nucleus at minus infinity.

    The nucleus is the smallest set of most probable tokens whose probabilities sum to at least p.
    """
    if p >= 1 or logits.numel() == 0:
        return logits
    probabilities = logits.softmax(-1)
    # All tokens under (1 - p) / vocabulary together weigh less than 1 - p, so none is in the nucleus: only
    # the others need sorting, for a trained model a few hundred of fifty thousand.
    candidates = int((probabilities >= (1 - p) / logits.shape[-1]).sum(-1).max())
    largest, tokens = probabilities.topk(max(candidates, 1))
    weight_before = largest.cumsum(-1) - largest
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, tokens, weight_before < p)
    return logits.masked_fill(~keep, _REMOVED)


def keep_min_p(logits: Tensor, fraction: float) -> Tensor:
    """Logits (batch, vocabulary) with tokens under `fraction` of the largest probability at minus infinity."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < fraction * probabilities.amax(-1, keepdim=True), _REMOVED)


def process_logits(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Logits (batch, vocabulary) in float32 after all that `config` asks for; greedy stops after the penalty."""
    logits = logits.float()
    if config.repetition_penalty != 1:
        if seen is None:
            raise ValueError("seen: a repetition penalty needs the tokens that already occurred")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.greedy:
        return logits
    if config.temperature != 1:
        logits = logits / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    return logits


def uniform(seed: int, count: int) -> float:
    """The `count`-th random number in [0, 1) of the sequence that `seed` names.

    A function of its two arguments, so that the whole state of a sampler is a pair of integers: a sequence does
    not depend on its neighbours in a batch, on the device, or on the process it started in.
    """
    digest = hashlib.blake2b(f"{seed}:{count}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, seeds: Iterable[int], counts: Iterable[int]) -> Tensor:
    """One token a row, drawn by inversion of the cumulative distribution.

    Arguments:
        logits: (batch, vocabulary), float; minus infinity removes a token.
        seeds, counts: which random number each row uses (see `uniform`).

    Returns tokens (batch,), int64.
    """
    numbers = [uniform(seed, count) for seed, count in zip(seeds, counts, strict=True)]
    cumulative = logits.softmax(-1).double().cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unsqueeze(-1) * total
    # Rounding may bring the product up to the total itself, past the last token of positive probability.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def next_tokens(
    logits: Tensor,
    config: SamplingConfig,
    *,
    seeds: Iterable[int] = (),
    counts: Iterable[int] = (),
    seen: Tensor | None = None,
) -> Tensor:
    """The next token of each row of logits (batch, vocabulary): tokens (batch,), int64."""
    processed = process_logits(logits, config, seen)
    if config.greedy:
        return processed.argmax(-1)
    return sample(processed, seeds, counts)
