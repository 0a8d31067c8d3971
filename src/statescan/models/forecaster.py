"""A forecaster of numeric series: normalise the window, embed the channels, mix over time, read off the last position.

No published system: the plainest model that puts any mixer of the library to this use. The normalisation of each window
by its own mean and deviation, undone on the forecast, is that of Kim et al. 2022 (RevIN), without its learnt scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import (
    UNDECAYED,
    GatedMLP,
    ResidualBlock,
    ResidualStack,
    State,
    build_mixer,
    build_norm,
    check_mixer,
    initialise_language_model,
)
from statescan.models._model import Model
from statescan.models._registry import Family


@dataclass(frozen=True)
class ForecasterConfig:
    """A forecaster.

    Arguments:
        channels: of the series.
        horizon: points in time that are forecast at once.
        dim: width of the residual stream.
        depth: blocks.
        mixer: its name (`layers.MIXERS`).
        options: its options where they differ from the defaults.
        mlp_dim: hidden channels of a gated MLP after every mixer; 0: none.
        dropout: fraction of the embedded and of the last features that is set to zero in training.
        window_norm: normalise each window by its own mean and deviation, and undo that on the forecast. Better where the
            level drifts; without it, the level itself is seen, and a series can be followed step by step.
        norm, norm_eps: ``rms`` or ``layer``.
    """

    channels: int = 1
    horizon: int = 24
    dim: int = 64
    depth: int = 2
    mixer: str = "mamba"
    options: dict[str, Any] = field(default_factory=dict)
    mlp_dim: int = 0
    dropout: float = 0.0
    window_norm: bool = True
    norm: str = "rms"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("channels", "horizon", "dim", "depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        check_mixer(self.mixer, self.options)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a fraction from 0 to below 1, got {self.dropout}")


class Forecaster(Model):
    """History of any length -> what follows: x (batch, length, channels) -> (batch, horizon, channels).

    Arguments:
        config: a `ForecasterConfig`.
    """

    family = "forecaster"
    undecayed = UNDECAYED

    def __init__(self, config: ForecasterConfig):
        super().__init__(config)
        self.embedding = nn.Linear(config.channels, config.dim)
        blocks = []
        for _ in range(config.depth):
            channel_mixer = channel_norm = None
            if config.mlp_dim:
                channel_mixer = GatedMLP(config.dim, config.mlp_dim, multiple_of=1, bias=False)
                channel_norm = build_norm(config.norm, config.dim, config.norm_eps)
            norm = build_norm(config.norm, config.dim, config.norm_eps)
            blocks.append(
                ResidualBlock(
                    build_mixer(config.mixer, config.dim, **config.options), norm, channel_mixer, channel_norm
                )
            )
        self.stack = ResidualStack(blocks, residual_in_float32=False)
        self.norm: Any = build_norm(config.norm, config.dim, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, config.horizon * config.channels)
        initialise_language_model(self, depth=config.depth, residuals_per_layer=2 if config.mlp_dim else 1)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """The state before anything: one entry a block."""
        weight = self.head.weight
        return self.stack.initial_state(batch_size, dtype=dtype or weight.dtype, device=device or weight.device)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What follows a history.

        Arguments:
            x: (batch, length, channels); with a state, what came after that.
            state: of an earlier call; not with `window_norm`, which needs the whole window.

        Returns:
            the forecast (batch, horizon, channels) and the state after the last position.
        """
        self._check(x, 3, "(batch, length, channels)")
        if not self.config.window_norm:
            features, state = self.stack(self.dropout(self.embedding(x)), state)
            return self._read(features[:, -1]), state
        if state is not None:
            raise self._needs_window()
        mean = x.mean(1, keepdim=True)
        # Half precision cannot hold the square of a small deviation.
        wide = (x - mean).to(torch.promote_types(x.dtype, torch.float32))
        scale = wide.square().mean(1, keepdim=True).add(1e-5).sqrt().to(x.dtype)
        features, state = self.stack(self.dropout(self.embedding((x - mean) / scale)), None)
        return self._read(features[:, -1]) * scale + mean, state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One point in time: x (batch, channels) -> what follows it, (batch, horizon, channels), and the next state."""
        self._check(x, 2, "(batch, channels)")
        if self.config.window_norm:
            raise self._needs_window()
        features, state = self.stack.step(self.dropout(self.embedding(x)), state)
        return self._read(features), state

    def forecast(self, x: Tensor, horizon: int | None = None) -> Tensor:
        """What follows a history, as far as is wanted: (batch, length, channels) -> (batch, horizon, channels).

        Beyond the config's horizon the forecast goes on from its own values, over a window of the same length.
        """
        wanted = self.config.horizon if horizon is None else horizon
        if wanted < 1:
            raise ValueError(f"horizon: expected at least 1, got {wanted}")
        window = x
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < wanted:
            parts.append(self.forward(window)[0])
            window = torch.cat([window, parts[-1]], 1)[:, -x.shape[1] :]
        return torch.cat(parts, 1)[:, :wanted]

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping what it computed."""
        self.stack.gradient_checkpointing = enabled

    def _read(self, features: Tensor) -> Tensor:
        forecast = self.head(self.dropout(self.norm(features.to(self.norm.weight.dtype))))
        return forecast.unflatten(-1, (self.config.horizon, self.config.channels))

    def _check(self, x: Tensor, ndim: int, shape: str) -> None:
        if x.ndim != ndim or x.shape[-1] != self.config.channels or (ndim == 3 and not x.shape[1]):
            raise ValueError(
                f"x: expected {shape} of {self.config.channels} channels and at least one point in time, got shape "
                f"{tuple(x.shape)}"
            )

    @staticmethod
    def _needs_window() -> ValueError:
        return ValueError(
            "state: window_norm needs the whole window at once; give the whole history, or build with window_norm=False"
        )


VARIANTS: dict[str, dict[str, Any]] = {
    "forecaster_tiny": dict(dim=32, depth=2),
    "forecaster_small": dict(dim=128, depth=4),
    "forecaster_mamba2_tiny": dict(dim=32, depth=2, mixer="mamba2", options=dict(state_dim=16, head_dim=16)),
}


def _same(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Our names are the only ones."""
    return dict(tensors)


FAMILY = Family("forecaster", ForecasterConfig, Forecaster, VARIANTS, _same, _same)
