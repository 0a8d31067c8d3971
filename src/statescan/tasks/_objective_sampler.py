"""Which training objective how often: a model of their rewards chooses. Blouir et al. 2024, arXiv 2411.01030.

Every so many steps the validation loss of each objective is measured. What changed is the reward of the probabilities that
were in force; a small network learns from all measurements so far to foretell rewards, and the probabilities with
the best forecast are in force next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statescan.layers import Attention, ResidualBlock, ResidualStack, SplitRMSNorm, State

#: How steeply a reward grows with the improvement.
_STEEPNESS = 100 * math.e
#: Probability that exploring leaves to all objectives it does not try, for each class it tries.
_UNEXPLORED = 0.005
#: Rounds that the reward model reads at most.
_HISTORY = 2048
#: Candidates whose rewards are forecast at once; bounds the memory.
_CANDIDATES_AT_ONCE = 1024


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
    """

    decay_steps: int
    warmup_steps: int = 0
    forced_steps: int = 0
    lowest: float = 0.2
    highest: float = 0.5
    forced_rate: float = 1.0

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
        rate = self.lowest + amplitude + amplitude * math.cos(math.pi * step / span)
        return min(self.highest, max(self.lowest, rate))


class RewardModel(nn.Module):
    """A small causal transformer from a history of (losses, probabilities) to the rewards of each round.

    Arguments:
        objectives: how many.
        width: channels, a multiple of 8.
        depth: blocks of attention (four heads, two of keys and values) and a gated product.

    Raises:
        ValueError: a width that is no multiple of 8.
    """

    def __init__(self, objectives: int, *, width: int = 256, depth: int = 4):
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(f"width: expected a multiple of 8, got {width}")
        self.norm = SplitRMSNorm(2 * objectives)
        self.entrance = nn.Linear(2 * objectives, width, bias=False)
        self.blocks = ResidualStack(
            [
                ResidualBlock(
                    Attention(width, 4, kv_heads=2, rotary_dim=width // 4),
                    SplitRMSNorm(width),
                    _GatedProduct(width, width * 8 // 3),
                    SplitRMSNorm(width),
                )
                for _ in range(depth)
            ]
        )
        self.last_norm = SplitRMSNorm(width)
        self.exit = nn.Linear(width, objectives, bias=False)

    def forward(self, pairs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Pairs (batch, rounds, 2 objectives) -> rewards (batch, rounds, objectives) in [-1, 1], and the state after."""
        hidden, state = self.blocks(self.entrance(self.norm(pairs)), state)
        return torch.tanh(self.exit(self.last_norm(hidden))), state


class _GatedProduct(nn.Module):
    """W_o (a sigmoid(b)) with a, b = W_i x."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.entrance = nn.Linear(dim, 2 * inner, bias=False)
        self.exit = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(F.glu(self.entrance(x)))


class ObjectiveSampler:
    """Chooses how often each objective is trained, from how the validation losses of all of them moved before.

    After each round a `RewardModel` is fitted to the history: pairs of the losses at the beginning of a round and the
    probabilities that were in force, to the rewards. Then four times `candidates` probabilities are drawn, a fourth uniform
    and three from Pareto distributions of the exponents 3, 2 and 1. Their forecast rewards are summed, each objective
    divided by how many are of its kind; the mean of the `best` is in force next. A round that explores favours one or two
    kinds drawn at random.

    Arguments:
        kinds: of the objectives, in order; variants of one objective have one kind.
        steps: of the whole training; exploring is forced in the first twentieth and becomes rarer in the first half.
        schedule: another schedule of exploring.
        exploring: what a round that explores does with the probabilities it drew: they are in force (``direct``), or they
            are a fourth of the candidates in place of the uniform ones (``candidates``, as in the published code; there a
            reward model that knows nothing yet may pass them by).
        width, depth: of the reward model.
        candidates, best: how many probabilities are compared, and averaged.
        iterations: of AdamW, a round.
        learning_rate: at the middle of a round; it climbs from a thousandth of that and falls back.
        seed: of everything that is drawn.

    Raises:
        ValueError: no objectives, or a number that is too small.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        steps: int,
        schedule: ExplorationSchedule | None = None,
        exploring: Literal["direct", "candidates"] = "direct",
        width: int = 256,
        depth: int = 4,
        candidates: int = 4096,
        best: int = 8,
        iterations: int = 200,
        learning_rate: float = 5e-4,
        seed: int = 0,
    ):
        if not kinds:
            raise ValueError("kinds: expected at least one objective")
        given = {"candidates": candidates, "best": best, "iterations": iterations}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if exploring not in ("direct", "candidates"):
            raise ValueError(f"exploring: unknown {exploring!r}; known: direct, candidates")
        if schedule is None:
            if steps < 20:
                raise ValueError(f"steps: expected at least 20, got {steps}; or give a schedule")
            schedule = ExplorationSchedule(steps // 2, steps // 10, steps // 20)
        self.kinds, self.schedule = tuple(kinds), schedule
        self.exploring = exploring
        self.candidates, self.best = candidates, min(best, 4 * candidates)
        self.iterations, self.learning_rate = iterations, learning_rate
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.model = RewardModel(len(kinds), width=width, depth=depth)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=0.1)
        self._generator = torch.Generator().manual_seed(seed)
        count = len(kinds)
        self._weights = torch.tensor([len(set(kinds)) / self.kinds.count(kind) for kind in kinds])
        #: Probabilities in force, (objectives,).
        self.probabilities = torch.full((count,), 1 / count)
        #: Losses at the beginning of the round; None before the first.
        self.losses: Tensor | None = None
        self._pairs, self._rewards = torch.zeros(0, 2 * count), torch.zeros(0, count)

    @property
    def rewards(self) -> Tensor:
        """What every round so far brought, (rounds, objectives)."""
        return self._rewards

    def update(self, losses: Sequence[float] | Tensor, *, step: int) -> Tensor:
        """End a round and begin the next.

        Arguments:
            losses: of validation, one an objective, measured at `step`.
            step: of the training.

        Returns:
            the probabilities now in force.

        Raises:
            ValueError: losses of another number, or not finite.
        """
        with torch.inference_mode(False), torch.enable_grad():
            new = torch.tensor([float(loss) for loss in losses])
            if len(new) != len(self.kinds):
                raise ValueError(f"losses: expected {len(self.kinds)}, one an objective, got {len(new)}")
            if not new.isfinite().all():
                raise ValueError(f"losses: expected finite numbers, got {new.tolist()}")
            if self.losses is not None:
                pair = torch.cat([self.losses, self.probabilities])
                self._pairs = torch.cat([self._pairs, pair[None]])[-_HISTORY:]
                self._rewards = torch.cat([self._rewards, objective_reward(self.losses, new)[None]])[-_HISTORY:]
                self._fit()
            self.losses = new
            explored = self._exploring() if float(self._draw()) < self.schedule(step) else None
            if explored is not None and self.exploring == "direct":
                self.probabilities = explored
            else:
                self.probabilities = self._best(self._actions(explored))
        return self.probabilities

    def choose(self, count: int, *, seed: int) -> list[int]:
        """The numbers of `count` objectives, drawn from the probabilities; a pure function of both and the seed."""
        chances = self.probabilities.double().numpy()
        drawn = np.random.default_rng(seed).choice(len(self.kinds), count, p=chances / chances.sum())
        return [int(number) for number in drawn]

    def state_dict(self) -> dict[str, Any]:
        """All that an interrupted training needs to go on."""
        return {
            "kinds": list(self.kinds),
            "probabilities": self.probabilities,
            "losses": self.losses,
            "pairs": self._pairs,
            "rewards": self._rewards,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: it is of other objectives.
        """
        if tuple(state["kinds"]) != self.kinds:
            raise ValueError(f"state: of the objectives {', '.join(state['kinds'])}, not {', '.join(self.kinds)}")
        self.probabilities, self.losses = state["probabilities"], state["losses"]
        self._pairs, self._rewards = state["pairs"], state["rewards"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])

    def _fit(self) -> None:
        for iteration in range(self.iterations):
            climb = 1 - abs(2 * iteration / self.iterations - 1)
            for group in self._optimizer.param_groups:
                group["lr"] = self.learning_rate * (1e-3 + (1 - 1e-3) * climb)
            self._optimizer.zero_grad()
            forecast, _ = self.model(self._pairs[None])
            F.mse_loss(forecast[0], self._rewards).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def _actions(self, base: Tensor | None) -> Tensor:
        shape = (self.candidates, len(self.kinds))
        base = self._draw(*shape) if base is None else base.expand(shape)
        # A Pareto distribution's scale is lost when rows are divided by their sums.
        heavy = [(1 - self._draw(*shape)) ** (-1 / exponent) for exponent in (3, 2, 1)]
        return normalise_actions(torch.cat([base, *heavy]))

    def _exploring(self) -> Tensor:
        """Probabilities that favour one or two kinds."""
        kinds = sorted(set(self.kinds))
        tried = 1 + int(self._draw() < 0.5)
        chosen = {kinds[int(self._draw() * len(kinds))] for _ in range(tried)}
        rest = len(self.kinds) / max(1, len(self.kinds) - tried) * _UNEXPLORED * tried
        action = torch.zeros(len(self.kinds))
        for kind in kinds:
            variants = torch.tensor([own == kind for own in self.kinds])
            number = int(variants.sum())
            action[variants] = normalise_actions(self._draw(number) + 1e-6) if kind in chosen else rest / number
        return normalise_actions(action)

    @torch.no_grad()
    def _best(self, actions: Tensor) -> Tensor:
        assert self.losses is not None
        # The history is read once; what the attention keeps of it serves all candidates.
        _, state = self.model(self._pairs[None])
        sums = []
        for part in actions.split(_CANDIDATES_AT_ONCE):
            pairs = torch.cat([self.losses.expand_as(part), part], dim=-1)
            forecast, _ = self.model(pairs[:, None], state.select([0] * len(part)))
            sums.append((forecast[:, 0] * self._weights).sum(-1))
        best = torch.cat(sums).topk(self.best).indices
        return normalise_actions(actions[best].mean(0))
