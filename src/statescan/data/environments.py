"""Environments that need memory, many copies at once: repeat what was seen, a cart-pole without speeds, one to learn anew.

They keep the interface of Gymnasium's vector environments, ended episodes beginning anew within the same step; what
`as_gymnasium` gives is one in name as well. Gymnasium itself is needed for that alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from statescan._names import nearest

Array = np.ndarray
#: Observations, rewards, terminated, truncated, and further information.
Step = tuple[Array, Array, Array, Array, dict[str, Any]]


class MemoryEnvironment:
    """Base of the environments: `count` copies, stepped together.

    Arguments:
        count: copies.

    Attributes:
        observation_dim: numbers of an observation.
        action_count: actions to choose from.
    """

    observation_dim: int
    action_count: int

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count: at least 1 environment, got {count}")
        self.count = count
        self._generator = np.random.default_rng()
        self._ready = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode everywhere: observations (count, observation_dim) float32, and an empty dictionary.

        With a seed, all that follows depends on it and on the actions alone.
        """
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self._begin(np.arange(self.count))
        self._ready = True
        return self._observe(), {}

    def step(self, actions: Array) -> Step:
        """Act everywhere.

        Arguments:
            actions: (count,) whole numbers below `action_count`.

        Returns:
            observations (count, observation_dim) float32, rewards (count,) float64, terminated and truncated (count,)
            bool, and a dictionary. Where an episode ended, the observation is the first of the next one, and its last
            one stands in ``final_obs`` (all copies; those that ended are marked in ``_final_obs``).
        """
        actions = np.asarray(actions)
        if not self._ready:
            raise ValueError("step: call reset first")
        if actions.shape != (self.count,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions: expected {self.count} whole numbers, got {actions.dtype} {actions.shape}")
        if actions.size and not (actions.min() >= 0 and actions.max() < self.action_count):
            raise ValueError(f"actions: below {self.action_count}, got {actions.min()} to {actions.max()}")
        rewards, terminated, truncated = self._advance(actions)
        observations, ended = self._observe(), terminated | truncated
        information: dict[str, Any] = {}
        if ended.any():
            information = {"final_obs": observations, "_final_obs": ended}
            self._begin(np.flatnonzero(ended))
            observations = self._observe()
        return observations, rewards, terminated, truncated, information

    def _begin(self, rows: Array) -> None:
        raise NotImplementedError

    def _advance(self, actions: Array) -> tuple[Array, Array, Array]:
        raise NotImplementedError

    def _observe(self) -> Array:
        raise NotImplementedError


class RepeatPrevious(MemoryEnvironment):
    """Name the suit that was shown `delay` cards ago. POPGym's task (Morad et al. 2023), with all returns in [-1, 1].

    A shuffled deck of equally many cards of four suits is shown card by card; every answer counts 1 / (cards - delay), for
    it if it is right, against it if it is wrong; the first `delay` answers count nothing. Guessing gives -0.5.

    Arguments:
        count: copies.
        delay: how far back.
        cards: of the deck, a multiple of 4 above the delay.
    """

    observation_dim = action_count = 4

    def __init__(self, count: int, *, delay: int = 4, cards: int = 52) -> None:
        super().__init__(count)
        if cards % 4 or cards < 4:
            raise ValueError(f"cards: a multiple of 4, got {cards}")
        if not 0 <= delay < cards:
            raise ValueError(f"delay: from 0 to below the {cards} cards, got {delay}")
        self.delay, self.cards = delay, cards
        self._deck = np.zeros((count, cards), dtype=np.int64)
        self._time = np.zeros(count, dtype=np.int64)

    def _begin(self, rows: Array) -> None:
        ordered = np.tile(np.arange(self.cards) % 4, (len(rows), 1))
        self._deck[rows] = self._generator.permuted(ordered, axis=1)
        self._time[rows] = 0

    def _advance(self, actions: Array) -> tuple[Array, Array, Array]:
        asked = self._time - self.delay
        right = self._deck[np.arange(self.count), np.maximum(asked, 0)] == actions
        rewards = np.where(asked < 0, 0.0, np.where(right, 1.0, -1.0) / (self.cards - self.delay))
        self._time += 1
        ended = self._time == self.cards
        return rewards, ended, np.zeros_like(ended)

    def _observe(self) -> Array:
        shown = self._deck[np.arange(self.count), np.minimum(self._time, self.cards - 1)]
        return np.eye(4, dtype=np.float32)[shown]


class StatelessCartPole(MemoryEnvironment):
    """Balance a pole on a cart, seeing positions but no speeds. Barto, Sutton and Anderson 1983; POPGym's variant.

    Every step that the pole stands counts 1 / steps, so a full episode returns 1. An episode ends when the pole leans
    more than 12 degrees or the cart is 2.4 from the middle, and is cut after `steps`.

    Arguments:
        count: copies.
        steps: of an episode, at most.
        noise: deviation of normal noise on observations.
    """

    observation_dim, action_count = 2, 2
    #: Gravity, masses of cart and pole, half the pole's length, force, and seconds of a step.
    _GRAVITY, _CART, _POLE, _HALF, _FORCE, _SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    _EDGE, _LEAN = 2.4, math.radians(12)

    def __init__(self, count: int, *, steps: int = 200, noise: float = 0.0) -> None:
        super().__init__(count)
        if steps < 1:
            raise ValueError(f"steps: at least 1, got {steps}")
        if noise < 0:
            raise ValueError(f"noise: 0 or more, got {noise}")
        self.steps, self.noise = steps, noise
        self._state = np.zeros((count, 4))  # position, speed, angle, its speed
        self._time = np.zeros(count, dtype=np.int64)

    def _begin(self, rows: Array) -> None:
        self._state[rows] = self._generator.uniform(-0.05, 0.05, (len(rows), 4))
        self._time[rows] = 0

    def _advance(self, actions: Array) -> tuple[Array, Array, Array]:
        fallen, cut = self._push(np.where(actions == 1, self._FORCE, -self._FORCE))
        return np.full(self.count, 1 / self.steps), fallen, cut

    def _push(self, force: Array) -> tuple[Array, Array]:
        """Move everything by one step: which poles fell, and which stood to the end."""
        x, speed, angle, turning = self._state.T
        sine, cosine, mass = np.sin(angle), np.cos(angle), self._CART + self._POLE
        push = (force + self._POLE * self._HALF * turning**2 * sine) / mass
        lever = self._HALF * (4 / 3 - self._POLE * cosine**2 / mass)
        swing = (self._GRAVITY * sine - cosine * push) / lever
        drive = push - self._POLE * self._HALF * swing * cosine / mass
        change = np.stack([speed, drive, turning, swing], axis=1)
        self._state = self._state + self._SECONDS * change
        self._time += 1
        fallen = (np.abs(self._state[:, 0]) > self._EDGE) | (np.abs(self._state[:, 2]) > self._LEAN)
        return fallen, ~fallen & (self._time == self.steps)

    def _observe(self) -> Array:
        # In units of what ends an episode.
        seen = self._state[:, [0, 2]] / (self._EDGE, self._LEAN)
        if self.noise:
            seen = seen + self._generator.normal(scale=self.noise, size=seen.shape)
        return seen.astype(np.float32)


class MetaCartPole(StatelessCartPole):
    """A cart-pole whose sensors and motor are connected anew in every episode, which has several trials to find out how.

    The meta-learning task of Lu et al. 2023 (section 4.4 and the published code), on a `StatelessCartPole`: at an
    episode's beginning a random matrix with orthogonal columns of length sqrt 2 is drawn, through which position and angle
    are seen, and, for the motor, which has one dimension, a sign. Every trial of an episode begins in the same state.

    Every step counts 1 / (trials * steps), so an episode whose poles all stand returns 1.

    Arguments:
        count: copies.
        trials: of an episode, which ends with the last of them.
        steps: of a trial, at most.
        sensors: numbers that position and angle are seen as, at least 2; one more tells that a trial has just begun.
        turned: whether the motor's sign is drawn as well; the published task leaves it.
        noise: deviation of normal noise on position and angle.
    """

    def __init__(
        self,
        count: int,
        *,
        trials: int = 16,
        steps: int = 200,
        sensors: int = 4,
        turned: bool = True,
        noise: float = 0.0,
    ) -> None:
        super().__init__(count, steps=steps, noise=noise)
        if trials < 1:
            raise ValueError(f"trials: at least 1, got {trials}")
        if sensors < 2:
            raise ValueError(f"sensors: at least 2, for position and angle, got {sensors}")
        self.trials, self.sensors, self.turned = trials, sensors, turned
        self.observation_dim = sensors + 1
        self._projection = np.zeros((count, sensors, 2))
        self._sign = np.ones(count)
        self._first = np.zeros((count, 4))
        self._trial = np.zeros(count, dtype=np.int64)

    def _begin(self, rows: Array) -> None:
        super()._begin(rows)
        self._first[rows] = self._state[rows]
        self._trial[rows] = 0
        # QR of normal numbers is uniform over orthogonal columns once their signs are, too.
        columns, upper = np.linalg.qr(self._generator.normal(size=(len(rows), self.sensors, 2)))
        signs = np.sign(np.diagonal(upper, axis1=1, axis2=2))
        self._projection[rows] = math.sqrt(2) * columns * signs[:, None, :]
        if self.turned:
            self._sign[rows] = self._generator.choice([-1.0, 1.0], len(rows))

    def _advance(self, actions: Array) -> tuple[Array, Array, Array]:
        fallen, cut = self._push(self._sign * np.where(actions == 1, self._FORCE, -self._FORCE))
        again = fallen | cut
        self._trial += again
        ended = self._trial == self.trials
        # An episode's last observation is that of its last trial.
        over = again & ~ended
        self._state[over] = self._first[over]
        self._time[over] = 0
        return np.full(self.count, 1 / (self.trials * self.steps)), ended, np.zeros_like(ended)

    def _observe(self) -> Array:
        seen = np.einsum("csk,ck->cs", self._projection, super()._observe())
        return np.concatenate([seen, (self._time == 0)[:, None]], axis=1).astype(np.float32)


#: Environments by name.
ENVIRONMENTS: dict[str, type[MemoryEnvironment]] = {
    "repeat_previous": RepeatPrevious,
    "stateless_cart_pole": StatelessCartPole,
    "meta_cart_pole": MetaCartPole,
}


def memory_environment(name: str, count: int, **options: Any) -> Any:
    """Copies of an environment by name.

    Arguments:
        name: one of `ENVIRONMENTS`.
        count: copies.
        options: the environment's.

    Raises:
        ValueError: an unknown name or option; the nearest known one is named.
    """
    if name not in ENVIRONMENTS:
        hint = nearest(name, ENVIRONMENTS)
        raise ValueError(f"environment: unknown {name!r}{hint}; known: {', '.join(ENVIRONMENTS)}")
    try:
        return ENVIRONMENTS[name](count, **options)
    except TypeError as error:
        raise ValueError(f"environment: {name}: {error}") from None


def as_gymnasium(environment: MemoryEnvironment) -> Any:
    """The same environment as a `gymnasium.vector.VectorEnv`, with spaces and metadata. Needs gymnasium (extra ``rl``)."""
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space

    class Vector(VectorEnv):
        def __init__(self) -> None:
            self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
            self.num_envs = environment.count
            shape = (environment.observation_dim,)
            self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
            self.single_action_space = gymnasium.spaces.Discrete(environment.action_count)
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)
            self.action_space = batch_space(self.single_action_space, self.num_envs)

        def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
            return environment.reset(seed=seed, options=options)

        def step(self, actions: Array) -> Step:
            return environment.step(actions)

    return Vector()
