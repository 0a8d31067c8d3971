"""An actor-critic on S5 for agents that remember. Lu et al. 2023, arXiv 2303.03982.

Two dense layers, a stack of S5 layers whose states are zeroed where episodes begin inside a sequence (section 3.1), and
two heads of three dense layers: the policy and the value. Peculiar: one norm's weights serve every place of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from statescan.layers import S5, RecurrentCell, S5Block, State
from statescan.layers._s5 import Discretization, OutputInit, S5Activation
from statescan.models._model import Model
from statescan.models._registry import Family, Tensors
from statescan.models.s5 import (
    dense_from_published,
    dense_to_published,
    group_layers,
    layer_from_published,
    layer_to_published,
)


@dataclass(frozen=True)
class S5ActorCriticConfig:
    """An actor-critic; the system's fields are those of `layers.S5`, the layer's those of `layers.S5Block`.

    Arguments:
        observation_dim: channels of an observation.
        action_dim: actions to choose from, or channels of a continuous action.
        continuous: actions are normal around the policy's output, with one learned deviation a channel.
        dim: channels of the core.
        encoder_dim: channels of the first dense layer.
        head_dim: channels of the heads' dense layers.
        core: ``s5``; ``gru`` or ``lstm`` to compare; ``none``: an agent without memory.
        depth: layers of the core.
        norm: whether S5 layers have a layer norm, before the system (`prenorm`) or after the sum.
        inner_norm: whether it is (also) applied between system and gate.
        ignore_resets: carry states over the beginnings of episodes; the paper's ablation.
    """

    observation_dim: int = 4
    action_dim: int = 2
    continuous: bool = False
    dim: int = 256
    encoder_dim: int = 128
    head_dim: int = 128
    core: Literal["s5", "gru", "lstm", "none"] = "s5"
    depth: int = 4
    state_dim: int = 256
    blocks: int = 1
    activation: S5Activation = "full_glu"
    norm: bool = False
    prenorm: bool = False
    inner_norm: bool = False
    discretization: Discretization = "zoh"
    conjugate_symmetry: bool = True
    clip_eigenvalues: bool = False
    output_init: OutputInit = "lecun_normal"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    ignore_resets: bool = False

    def __post_init__(self) -> None:
        for name in ("observation_dim", "action_dim", "dim", "encoder_dim", "head_dim", "depth", "state_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        if self.core not in ("s5", "gru", "lstm", "none"):
            raise ValueError(f"core: unknown {self.core!r}; known: s5, gru, lstm, none")


class S5ActorCritic(Model):
    """Policy and value of sequences of observations, with a state between calls."""

    family = "s5_rl"
    undecayed = ("Lambda_", "log_step", ".D", "mixer.B")

    def __init__(self, config: S5ActorCriticConfig):
        super().__init__(config)
        dim, head, root = config.dim, config.head_dim, 2**0.5
        self.encoder = nn.Sequential(
            _dense(config.observation_dim, config.encoder_dim, root),
            nn.LeakyReLU(),
            _dense(config.encoder_dim, dim, root),
            nn.LeakyReLU(),
        )
        layers = [] if config.core == "none" else [_layer(config) for _ in range(config.depth)]
        self.layers = nn.ModuleList(layers)
        self.actor = _head(dim, head, config.action_dim, 0.01)
        self.critic = _head(dim, head, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(config.action_dim)) if config.continuous else None

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros, one entry a layer, named by its number; that of an episode's beginning."""
        layers: list[Any] = list(self.layers)
        return State(
            {str(i): layer.initial_state(batch_size, dtype=dtype, device=device) for i, layer in enumerate(layers)}
        )

    def forward(
        self, observations: Tensor, state: State | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Policy (batch, length, action_dim), values (batch, length), and the state after them.

        Arguments:
            observations: (batch, length, observation_dim).
            state: what an earlier call handed back; None: episodes begin.
            resets: (batch, length) bool, True where an observation is the first of an episode.
        """
        expected = self.config.observation_dim
        if observations.ndim != 3 or observations.shape[2] != expected:
            raise ValueError(f"observations: expected (batch, length, {expected}), got {tuple(observations.shape)}")
        if self.config.ignore_resets:
            resets = None
        hidden = self.encoder(observations)
        after: dict[str, Tensor | State] = {}
        for index, layer in enumerate(self.layers):
            before = state[str(index)] if state else None
            hidden, after[str(index)] = layer(hidden, before, resets=resets)
        return self.actor(hidden), self.critic(hidden)[..., 0], State(after)

    def step(self, observation: Tensor, state: State, *, starts: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """One time: observation (batch, observation_dim) -> policy (batch, action_dim), values (batch,), the state.

        `starts` (batch,) bool: whose episode begins with this observation.
        """
        resets = None if starts is None else starts[:, None]
        policy, values, state = self(observation[:, None], state, resets=resets)
        return policy[:, 0], values[:, 0], state

    def distribution(self, policy: Tensor) -> Distribution:
        """The distribution over actions that `forward` described."""
        if self.log_std is None:
            return Categorical(logits=policy)
        return Independent(Normal(policy, self.log_std.exp().expand_as(policy)), 1)


def _layer(config: S5ActorCriticConfig) -> nn.Module:
    if config.core in ("gru", "lstm"):
        return RecurrentCell(config.dim, kind=config.core)  # type: ignore[arg-type]
    mixer = S5(
        config.dim,
        state_dim=config.state_dim,
        blocks=config.blocks,
        discretization=config.discretization,
        conjugate_symmetry=config.conjugate_symmetry,
        clip_eigenvalues=config.clip_eigenvalues,
        output_init=config.output_init,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
    )
    places: list[Any] = [("before" if config.prenorm else "after")] if config.norm else []
    places += ["inside"] if config.inner_norm else []
    return S5Block(mixer, activation=config.activation, norm_at=places)


def _dense(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    if not linear.weight.is_meta:
        nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def _head(inputs: int, hidden: int, outputs: int, gain: float) -> nn.Sequential:
    return nn.Sequential(
        _dense(inputs, hidden, 2.0),
        nn.LeakyReLU(),
        _dense(hidden, hidden, 2.0),
        nn.LeakyReLU(),
        _dense(hidden, outputs, gain),
    )


#: Published names of dense layers, to ours.
_DENSE = {
    "encoder_0.": "encoder.0.",
    "encoder_1.": "encoder.2.",
    "action_body_0.": "actor.0.",
    "action_body_1.": "actor.2.",
    "action_decoder.": "actor.4.",
    "value_body_0.": "critic.0.",
    "value_body_1.": "critic.2.",
    "value_decoder.": "critic.4.",
}


def from_published(tensors: Tensors, config: S5ActorCriticConfig) -> Tensors:
    """From luchris429/popjaxrl, flax's tree paths joined by dots. Cores other than S5 keep our names."""
    layers, others = group_layers(tensors, "s5.layers_")
    ours: Tensors = {}
    for name, tensor in others.items():
        for theirs, mine in _DENSE.items():
            if name.startswith(theirs):
                name, tensor = dense_from_published(mine + name.removeprefix(theirs), tensor)
                break
        ours[name] = tensor
    for number, layer in layers.items():
        ours |= {f"layers.{number}.{name}": tensor for name, tensor in layer_from_published(layer).items()}
    return ours


def to_published(tensors: Tensors, config: S5ActorCriticConfig) -> Tensors:
    """The inverse of `from_published`."""
    layers, others = group_layers(tensors, "layers.") if config.core == "s5" else ({}, tensors)
    published: Tensors = {}
    for name, tensor in others.items():
        for theirs, mine in _DENSE.items():
            if name.startswith(mine):
                name, tensor = dense_to_published(theirs + name.removeprefix(mine), tensor)
                break
        published[name] = tensor
    for number, layer in layers.items():
        found = layer_to_published(layer, split_C=False)
        published |= {f"s5.layers_{number}.{name}": tensor for name, tensor in found.items()}
    return published


VARIANTS: dict[str, dict[str, Any]] = {
    "s5_rl_tiny": dict(dim=32, encoder_dim=32, head_dim=32, depth=2, state_dim=16),
    "s5_rl_popgym": dict(),
}

FAMILY = Family("s5_rl", S5ActorCriticConfig, S5ActorCritic, VARIANTS, from_published, to_published)
