"""Which training objective how often: a model of their rewards chooses. Blouir et al. 2024, arXiv 2411.01030.

Every so many steps the validation loss of each objective is measured. What changed is the reward of the probabilities that
were in force; a small network learns from all measurements so far to foretell rewards, and the probabilities with
the best forecast are in force next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: How steeply a reward grows with the improvement.
_STEEPNESS = 100 * math.e
#: Probability that exploring leaves to all objectives it does not try, for each class it tries.
_UNEXPLORED = 0.005


def objective_reward(old: Tensor, new: Tensor) -> Tensor:
    """The reward of each objective for a change of its validation loss, in [-1, 1]: positive where the loss fell.

    With n = e sqrt(old new) ((new - old) / (old + 1e-8))^3 it is -100 e tanh(n), clipped; 0 where that is undefined.

    Arguments:
        old, new: losses before and after, of one shape.
    """
    if old.shape != new.shape:
        raise ValueError(f"new: expected the shape of old {tuple(old.shape)}, got {tuple(new.shape)}")
    ratio = (new - old) / (old + 1e-8)
    slope = (new * old).sqrt() * ratio**3 * math.e
    return torch.nan_to_num(-_STEEPNESS * torch.tanh(slope), nan=0.0).clamp(-1, 1)


def normalise_actions(actions: Tensor) -> Tensor:
    """Rows (..., objectives) as probabilities. If any entry is negative, the smallest of each row is subtracted first."""
    if actions.numel() and actions.min() < 0:
        actions = actions - actions.min(dim=-1, keepdim=True).values
    return actions / actions.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class ExplorationSchedule:
    """How probable exploring is at a step: forced at first, then a cosine from the highest rate to the lowest.

    Arguments:
        decay_steps: at which the lowest rate is reached.
        warmup_steps: before the cosine begins.
        forced_steps: at the beginning, with the rate `forced_rate`.
        lowest, highest: rates; a highest of 0 or less means never.
        amplitude_decay: the cosine's amplitude shrinks to this power of the progress, if not 1.
    """

    decay_steps: int
    warmup_steps: int = 0
    forced_steps: int = 0
    lowest: float = 0.2
    highest: float = 0.5
    forced_rate: float = 1.0
    amplitude_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.decay_steps - 1:
            raise ValueError(
                f"warmup_steps: expected 0 to decay_steps - 2 = {self.decay_steps - 2}, got {self.warmup_steps}"
            )
        if self.lowest > self.highest > 0:
            raise ValueError(f"lowest: expected at most highest = {self.highest}, got {self.lowest}")

    def __call__(self, step: int) -> float:
        """The probability of exploring at `step`."""
        if self.highest <= 0:
            return 0.0
        if step < self.forced_steps:
            return self.forced_rate
        span = self.decay_steps - 1 - self.warmup_steps
        step = max(0, min(step - self.warmup_steps, span))
        amplitude = (self.highest - self.lowest) / 2
        shrunk = amplitude * self.amplitude_decay ** (step / (2 * self.decay_steps - 2))
        rate = self.lowest + amplitude + shrunk * math.cos(math.pi * step / span)
        return min(self.highest, max(self.lowest, rate))
