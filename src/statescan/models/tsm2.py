"""TSM2: forecasts of several variates, mixed over time and over variates. Behrouz et al. 2024, "MambaMixer", arXiv
2403.19888, section 3.4.

The authors released no code; where the paper is silent this follows the replication
https://github.com/n8thantran/mambamixer-replication, whose weights load: normalisation of each window, patches, a norm
before each mixer and a residual about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.layers import DualMixer, Mamba
from statescan.models._model import Model
from statescan.models._names import CAUSAL, Names
from statescan.models._registry import Family


@dataclass(frozen=True)
class TSM2Config:
    """TSM2.

    Arguments:
        channels: variates; any number can be given to the model, all are treated alike.
        history: points in time that are read.
        horizon: points in time that are forecast at once.
        patch_size, stride: of the patches that a history is cut into.
        dim: width.
        depth: layers, each a token mixer and a channel mixer.
        state_dim, conv_kernel, expand: of the scans; see `layers.Mamba`.
        mixing: weights of earlier outputs: ``free``, beginning as a plain stack, or ``softmax``, beginning equal.
        mix_channels: False makes variates independent, for comparison.
        dropout: in training.
    """

    channels: int = 7
    history: int = 512
    horizon: int = 96
    patch_size: int = 16
    stride: int = 8
    dim: int = 128
    depth: int = 4
    state_dim: int = 16
    conv_kernel: int = 4
    expand: float = 2
    mixing: Literal["free", "softmax"] = "free"
    mix_channels: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("channels", "history", "horizon", "patch_size", "stride", "dim", "depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        if self.patch_size > self.history:
            raise ValueError(f"patch_size: at most the length of a history, {self.history}, got {self.patch_size}")
        if self.mixing not in ("free", "softmax"):
            raise ValueError(f"mixing: free or softmax, got {self.mixing!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a fraction from 0 to below 1, got {self.dropout}")

    @property
    def patches(self) -> int:
        """How many a history has."""
        return (self.history - self.patch_size) // self.stride + 1


def _scan(config: TSM2Config) -> Mamba:
    return Mamba(config.dim, state_dim=config.state_dim, conv_kernel=config.conv_kernel, expand=config.expand)


class TimeMixer(nn.Module):
    """x += dropout(mamba(norm(x))) along the patches of each variate.

    Arguments:
        config: a `TSM2Config`.
    """

    def __init__(self, config: TSM2Config):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.mixer = _scan(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, variates, patches, dim) to the same shape."""
        y, _ = self.mixer(self.norm(x).flatten(0, 1))
        return x + self.dropout(y).view_as(x)


class VariateMixer(nn.Module):
    """x += dropout(forwards(norm(x)) + backwards(norm(x))) along the variates at each patch.

    Arguments:
        config: a `TSM2Config`.
    """

    def __init__(self, config: TSM2Config):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.forwards, self.backwards = _scan(config), _scan(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, variates, patches, dim) to the same shape."""
        across = self.norm(x).transpose(1, 2)
        sequence = across.flatten(0, 1)
        y = self.forwards(sequence)[0] + self.backwards(sequence.flip(1))[0].flip(1)
        return x + self.dropout(y.view(across.shape).transpose(1, 2))


class TSM2(Model):
    """History -> what follows: x (batch, history, channels) -> (batch, horizon, channels).

    Arguments:
        config: a `TSM2Config`.
    """

    family = "tsm2"
    undecayed = ("A_log", "delta_bias", ".D", "position", "averages")

    def __init__(self, config: TSM2Config):
        super().__init__(config)
        self.embedding = nn.Linear(config.patch_size, config.dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, config.patches, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = DualMixer(
            [TimeMixer(config) for _ in range(config.depth)],
            [VariateMixer(config) if config.mix_channels else None for _ in range(config.depth)],
            softmax=config.mixing == "softmax",
        )
        self.norm = nn.LayerNorm(config.dim)
        self.time_norm = nn.LayerNorm(config.patches)
        self.head = nn.Linear(config.patches * config.dim, config.horizon)

    def forward(self, x: Tensor) -> Tensor:
        """What follows a history.

        Arguments:
            x: (batch, history, channels), of the config's length.

        Raises:
            ValueError: another length.
        """
        length = self.config.history
        if x.ndim != 3 or x.shape[1] != length or not x.shape[2]:
            raise ValueError(
                f"x: (batch, {length} points in time, channels), got {tuple(x.shape)}; another length needs a model "
                "with history=…"
            )
        mean, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        patches = ((x - mean) / scale).transpose(1, 2).unfold(2, self.config.patch_size, self.config.stride)
        y = self.layers(self.dropout(self.embedding(patches) + self.position))
        y = self.time_norm(self.norm(y).transpose(2, 3)).transpose(2, 3)
        forecast = self.head(self.dropout(y.flatten(2)))  # (batch, channels, horizon)
        return forecast.transpose(1, 2) * scale + mean

    def forecast(self, x: Tensor, horizon: int | None = None) -> Tensor:
        """What follows, as far as is wanted: (batch, at least history, channels) -> (batch, horizon, channels).

        The last `history` points are read; beyond the config's horizon the forecast goes on from its own values.
        """
        wanted = self.config.horizon if horizon is None else horizon
        if wanted < 1:
            raise ValueError(f"horizon: expected at least 1, got {wanted}")
        window = x[:, -self.config.history :]
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < wanted:
            parts.append(self.forward(window))
            window = torch.cat([window, parts[-1]], 1)[:, -self.config.history :]
        return torch.cat(parts, 1)[:, :wanted]


def _mamba(published: str, ours: str) -> list[Any]:
    return [
        (f"{published}.A_log", f"{ours}.A_log"),
        (f"{published}.D", f"{ours}.D"),
        (f"{published}.in_proj.weight", f"{ours}.input_projection.weight"),
        (f"{published}.conv1d.weight", f"{ours}.convolution.weight", CAUSAL),
        (f"{published}.conv1d.bias", f"{ours}.convolution.bias"),
        (f"{published}.x_proj.weight", f"{ours}.selection_projection.weight"),
        (f"{published}.dt_proj.weight", f"{ours}.delta_projection.weight"),
        (f"{published}.dt_proj.bias", f"{ours}.delta_bias"),
        (f"{published}.out_proj.weight", f"{ours}.output_projection.weight"),
    ]


_NAMES = Names(
    [
        ("pos_embed", "position"),
        ("patch_embedding.*", "embedding.*"),
        *_mamba("token_mixers.{}", "layers.token_mixers.{}.mixer"),
        *_mamba("channel_mixers_fwd.{}", "layers.channel_mixers.{}.forwards"),
        *_mamba("channel_mixers_bwd.{}", "layers.channel_mixers.{}.backwards"),
        ("token_norms.{}.*", "layers.token_mixers.{}.norm.*"),
        ("channel_norms.{}.*", "layers.channel_mixers.{}.norm.*"),
        ("alpha.{}", "layers.token_averages.{}.tokens"),
        ("beta.{}", "layers.token_averages.{}.channels"),
        ("theta.{}", "layers.channel_averages.{}.tokens"),
        ("gamma.{}", "layers.channel_averages.{}.channels"),
        ("norm_2d.norm1.*", "norm.*"),
        ("norm_2d.norm2.*", "time_norm.*"),
        ("head.*", "head.*"),
    ]
)

VARIANTS: dict[str, dict[str, Any]] = {
    "tsm2_tiny": dict(history=96, horizon=24, dim=16, depth=2),
    "tsm2_small": dict(dim=16, depth=2),
    "tsm2_base": dict(),
}

FAMILY = Family("tsm2", TSM2Config, TSM2, VARIANTS, _NAMES.from_published, _NAMES.to_published)
