"""Learning to act with memory: proximal policy optimisation over whole sequences. Schulman et al. 2017, arXiv 1707.06347.

Each update plays all copies of an environment for some steps, the agent's state going on from where it was, and then
learns from these sequences, a share of the copies at a time: the state at their beginning is kept, and where episodes
begin inside them it is zeroed, as in Lu et al. 2023, arXiv 2303.03982. With a scan for its core the agent sees a
sequence in one pass where a recurrent cell goes step by step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from statescan.data.environments import memory_environment
from statescan.layers import State
from statescan.models import create_model
from statescan.tasks._run_folder import MetricsFile, write_atomically
from statescan.tasks._settings import overrides

_COLUMNS = ("step", "frames", "mean_return", "mean_length", "policy_loss", "value_loss", "entropy")


@dataclass(frozen=True)
class ReinforcementTraining:
    """Train an agent on an environment that needs memory.

    Example: statescan train reinforcement --environment repeat_previous --core s5 --out runs/repeat
    """

    #: Folder of the run: model, settings and metrics.
    out: Path = Path("runs/latest")
    #: repeat_previous, stateless_cart_pole or meta_cart_pole.
    environment: str = "repeat_previous"
    #: Settings of the environment to change, for instance: --environment-set delay=8
    environment_set: tuple[str, ...] = ()
    #: The agent's memory: s5, gru, lstm, or none.
    core: Literal["s5", "gru", "lstm", "none"] = "s5"
    #: Fields of the agent's config to change; see `statescan.models.s5_rl`.
    set: tuple[str, ...] = (
        "dim=64",
        "depth=2",
        "state_dim=64",
        "encoder_dim=64",
        "head_dim=64",
        "dt_min=0.01",
        "dt_max=1.0",
    )
    #: Give the agent its last action, and whether an episode begins, beside the observation. By its actions even an agent
    #: without memory can leave itself notes.
    previous_action: bool = True
    #: Updates: one sequence played by every copy, and what is learned from it.
    updates: int = 200
    #: Copies of the environment.
    copies: int = 32
    #: Steps played for an update.
    length: int = 128
    #: Passes over an update's sequences.
    epochs: int = 4
    #: Parts into which the copies are shared out for optimiser steps.
    minibatches: int = 4
    #: Learning rate at the start.
    learning_rate: float = 1e-3
    #: Learning rate at the end, as a fraction of that; it falls linearly.
    final_learning_rate: float = 0.1
    #: What a reward a step later is worth.
    discount: float = 0.99
    #: How far advantages look ahead (lambda of generalised advantage estimation).
    lookahead: float = 0.95
    #: How far the policy's ratio may leave 1 before its gain is cut.
    clip: float = 0.2
    #: Weight of the values' loss.
    value_weight: float = 0.5
    #: Weight of the policy's entropy.
    entropy_weight: float = 0.01
    #: Largest norm of the gradient.
    gradient_clip: float = 0.5
    #: Seed of weights, environments and actions.
    seed: int = 0
    #: Where to compute: cpu, or cuda.
    device: str = "cpu"
    #: Updates between lines of metrics.
    log_every: int = 5
    #: Replace the run in the out folder.
    overwrite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        for name in ("updates", "copies", "length", "epochs", "minibatches", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("discount", "lookahead", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.copies % self.minibatches:
            raise ValueError(f"minibatches: {self.minibatches} does not divide {self.copies} copies")
        overrides(self.set)


@dataclass(frozen=True)
class ReinforcementResult:
    """What a run came to.

    Fields:
        updates: made.
        frames: steps of environments.
        validation: mean return and length of the last hundred episodes.
        parameters: of the agent.
        seconds: duration.
        model: folder of the run, which is that of the trained agent.
        metrics: table of the metrics.
    """

    updates: int
    frames: int
    validation: dict[str, float]
    parameters: int
    seconds: float
    model: str
    metrics: str


@dataclass(frozen=True)
class Rollout:
    """What was played for an update, copies first.

    Fields:
        seen: (copies, length, observation_dim), what the agent saw.
        starts: (copies, length) bool, where episodes begin.
        actions: (copies, length).
        log_probabilities, values, rewards: (copies, length).
        ends: (copies, length) bool, where an episode ended with that step.
        before: the agent's state before the first step.
        last_value: (copies,), the value of what comes next.
    """

    seen: Tensor
    starts: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor
    ends: Tensor
    before: State
    last_value: Tensor


class Player:
    """Plays an environment with an agent, from update to update without a break.

    Arguments:
        environment: with the interface of `data.environments`.
        previous_action: see `ReinforcementTraining`.
        seed: of the environment and of the actions drawn.
        device: the agent's.
    """

    def __init__(self, environment: Any, *, previous_action: bool, seed: int, device: str = "cpu") -> None:
        self.environment, self.previous_action, self.device = environment, previous_action, device
        self._generator = torch.Generator().manual_seed(seed)
        self._observation, _ = environment.reset(seed=seed)
        self._starts = torch.ones(environment.count, dtype=torch.bool)
        self._action = torch.zeros(environment.count, dtype=torch.int64)
        self._state: State | None = None
        self._returns = np.zeros(environment.count)
        self._lengths = np.zeros(environment.count, dtype=np.int64)
        #: Return and length of every episode that ended.
        self.episodes: list[tuple[float, int]] = []

    @property
    def seen_dim(self) -> int:
        """Numbers that the agent sees at a step."""
        extra = self.environment.action_count + 1 if self.previous_action else 0
        return self.environment.observation_dim + extra

    def _seen(self) -> Tensor:
        observation = torch.from_numpy(self._observation)
        if not self.previous_action:
            return observation
        action = nn.functional.one_hot(self._action, self.environment.action_count)
        starts = self._starts[:, None]
        return torch.cat([observation, action.masked_fill(starts, 0).float(), starts.float()], dim=1)

    @torch.no_grad()
    def play(self, agent: Any, length: int) -> Rollout:
        """Play `length` steps everywhere."""
        if self._state is None:
            self._state = agent.initial_state(self.environment.count, device=torch.device(self.device))
        before = state = self._state
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(length):
            seen, starts = self._seen(), self._starts
            policy, value, state = agent.step(seen.to(self.device), state, starts=starts.to(self.device))
            # Drawn on the CPU: the same actions wherever the agent is.
            probabilities = policy.float().softmax(-1).cpu()
            action = torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]
            chosen = probabilities.gather(1, action[:, None])[:, 0].log()
            self._observation, reward, terminated, truncated, _ = self.environment.step(action.numpy())
            ends = torch.from_numpy(terminated | truncated)
            steps.append((seen, starts, action, chosen, value.cpu(), torch.from_numpy(reward).float(), ends))
            self._count(reward, ends.numpy())
            self._action, self._starts = action, ends
        self._state = state
        # The state is not kept: this step is played again, by the agent that will have learned.
        _, last_value, _ = agent.step(self._seen().to(self.device), state, starts=self._starts.to(self.device))
        names = ("seen", "starts", "actions", "log_probabilities", "values", "rewards", "ends")
        columns = (torch.stack(column, dim=1).to(self.device) for column in zip(*steps, strict=True))
        played: dict[str, Any] = dict(zip(names, columns, strict=True))
        return Rollout(**played, before=before, last_value=last_value)

    def _count(self, rewards: np.ndarray, ends: np.ndarray) -> None:
        self._returns += rewards
        self._lengths += 1
        for row in np.flatnonzero(ends):
            self.episodes.append((float(self._returns[row]), int(self._lengths[row])))
        self._returns[ends] = 0
        self._lengths[ends] = 0


def advantages(rollout: Rollout, *, discount: float, lookahead: float) -> Tensor:
    """Generalised advantage estimates (copies, length). Schulman et al. 2016, arXiv 1506.02438, equation 16.

    An episode that was cut for its length counts as one that ended, as in the published experiments.
    """
    values = torch.cat([rollout.values, rollout.last_value[:, None].to(rollout.values)], dim=1)
    goes_on = (~rollout.ends).to(values)
    surprise = rollout.rewards + discount * goes_on * values[:, 1:] - values[:, :-1]
    found = torch.zeros_like(surprise)
    running = torch.zeros_like(surprise[:, 0])
    for t in reversed(range(surprise.shape[1])):
        running = surprise[:, t] + discount * lookahead * goes_on[:, t] * running
        found[:, t] = running
    return found


def learn(
    agent: Any,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    settings: ReinforcementTraining,
    generator: torch.Generator,
) -> dict[str, float]:
    """The optimiser steps of one update; gives the means of the losses."""
    gains = advantages(rollout, discount=settings.discount, lookahead=settings.lookahead)
    targets = gains + rollout.values
    sums = dict.fromkeys(("policy_loss", "value_loss", "entropy"), 0.0)
    for _ in range(settings.epochs):
        order = torch.randperm(settings.copies, generator=generator)
        for rows in order.to(gains.device).chunk(settings.minibatches):
            losses = _losses(agent, rollout, rows, gains[rows], targets[rows], settings.clip)
            loss = (
                losses["policy_loss"]
                + settings.value_weight * losses["value_loss"]
                - settings.entropy_weight * losses["entropy"]
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), settings.gradient_clip)
            optimiser.step()
            for name, value in losses.items():
                sums[name] += float(value.detach())
    return {name: value / (settings.epochs * settings.minibatches) for name, value in sums.items()}


def _losses(
    agent: Any, rollout: Rollout, rows: Tensor, gains: Tensor, targets: Tensor, clip: float
) -> dict[str, Tensor]:
    policy, values, _ = agent(rollout.seen[rows], rollout.before.select(rows), resets=rollout.starts[rows])
    chosen = agent.distribution(policy)
    ratio = torch.exp(chosen.log_prob(rollout.actions[rows]) - rollout.log_probabilities[rows])
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    gain = torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains)
    # Values may not leave what they were by more than the clip either.
    old = rollout.values[rows]
    error = torch.maximum((values - targets) ** 2, (old + (values - old).clamp(-clip, clip) - targets) ** 2)
    return {"policy_loss": -gain.mean(), "value_loss": 0.5 * error.mean(), "entropy": chosen.entropy().mean()}


def train_reinforcement(settings: ReinforcementTraining) -> ReinforcementResult:
    """Train an agent; leaves model, settings and metrics in a folder.

    Raises:
        ValueError: an environment, core or setting that does not exist (the nearest name is shown), a folder that holds
            another run, or a loss that is no number.
    """
    began = time.perf_counter()
    environment = memory_environment(settings.environment, settings.copies, **overrides(settings.environment_set))
    player = Player(environment, previous_action=settings.previous_action, seed=settings.seed, device=settings.device)
    torch.manual_seed(settings.seed)
    agent = create_model(
        "s5_rl_popgym",
        **(overrides(settings.set) | {"core": settings.core}),
        observation_dim=player.seen_dim,
        action_dim=environment.action_count,
    ).to(settings.device)
    metrics = _prepare(settings)
    optimiser = torch.optim.Adam(agent.parameters(), lr=settings.learning_rate, eps=1e-5)
    generator = torch.Generator().manual_seed(settings.seed)
    for update in range(1, settings.updates + 1):
        done = (update - 1) / settings.updates
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1 - done * (1 - settings.final_learning_rate))
        numbers = learn(agent, optimiser, player.play(agent, settings.length), settings, generator)
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError(f"update {update}: a loss is no number; a smaller learning_rate may help")
        if update % settings.log_every == 0 or update == settings.updates:
            frames = update * settings.copies * settings.length
            metrics.append({"step": update, "frames": frames, **_recent(player.episodes), **numbers}, _COLUMNS)
    agent.save(settings.out)
    return ReinforcementResult(
        updates=settings.updates,
        frames=settings.updates * settings.copies * settings.length,
        validation=_recent(player.episodes),
        parameters=sum(parameter.numel() for parameter in agent.parameters()),
        seconds=time.perf_counter() - began,
        model=str(settings.out),
        metrics=str(metrics.path),
    )


def _prepare(settings: ReinforcementTraining) -> MetricsFile:
    file = settings.out / "settings.json"
    if file.is_file() and not settings.overwrite:
        raise ValueError(
            f"out: {str(settings.out)!r} already holds a run; replace it with overwrite, or choose another folder"
        )
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        plain = dataclasses.asdict(settings) | {"out": str(settings.out)}
        write_atomically(file, json.dumps(plain, indent=2).encode() + b"\n")
    except OSError as error:
        raise ValueError(f"out: cannot write in {str(settings.out)!r}: {error.strerror}") from None
    metrics = MetricsFile(settings.out / "metrics.csv")
    metrics.path.unlink(missing_ok=True)
    return metrics


def _recent(episodes: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Means over the last hundred episodes; nothing where none has ended."""
    if not episodes:
        return {}
    returns, lengths = zip(*episodes[-100:], strict=True)
    return {"mean_return": sum(returns) / len(returns), "mean_length": sum(lengths) / len(lengths)}
