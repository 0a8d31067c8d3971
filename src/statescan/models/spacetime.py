"""SpaceTime: forecasting with companion systems that feed themselves. Zhang et al. 2023, ICLR.

"Effectively Modeling Time Series with Simple Discrete State Spaces", figure 2: an encoder of companion systems (fixed
differencing filters before the first), a decoder that goes on alone over the horizon, and a linear head. Peculiar: no
norms; the first block's residual starts after the filters; the input is repeated over the channels, not projected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.layers import ClosedLoopCompanionSSM, CompanionSSM, DifferencingFilters
from statescan.models._model import Model
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class SpaceTimeConfig:
    """A SpaceTime forecaster.

    Arguments:
        input_dim: series that are observed together.
        output_dim: series that are forecast; with `centred`, as many as are observed.
        dim: channels.
        depth: encoder blocks.
        state_dim: d of all systems, the order of the autoregressions.
        kernels: systems of each encoder block, divisors of dim; empty: dim / `heads` in the first, dim in the others.
        heads: channels that share a system in the first block.
        decoder_kernels: systems of the decoder; 0: one a channel.
        norm_order: see `layers.CompanionSSM`.
        shift: the encoder's systems are fixed shifts; `decoder_shift`: the decoder's is.
        embedding: ``repeat`` or ``linear``.
        filters: fixed filters a group before the first block, 0 for none; `filter_head_dim` channels share one.
        difference_order, windows, window_seed: of these; see `layers.DifferencingFilters`.
        dropout: before every linear layer.
        skip, mlp_skip, ssm_skip: residual around a block, around its linear layer, and the systems' direct path.
        centred: subtract the mean over the known past from inputs, add it to forecasts, as published training does.
    """

    input_dim: int = 1
    output_dim: int = 1
    dim: int = 128
    depth: int = 1
    state_dim: int = 64
    kernels: tuple[int, ...] = ()
    heads: int = 8
    decoder_kernels: int = 0
    norm_order: int = 1
    shift: bool = False
    decoder_shift: bool = False
    embedding: str = "repeat"
    filters: int = 8
    filter_head_dim: int = 1
    difference_order: int = 4
    windows: tuple[int, int] = (4, 64)
    window_seed: int = 0
    dropout: float = 0.2
    skip: bool = True
    mlp_skip: bool = True
    ssm_skip: bool = True
    centred: bool = True

    def __post_init__(self) -> None:
        for name in ("input_dim", "output_dim", "dim", "depth", "state_dim", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        object.__setattr__(self, "kernels", tuple(self.kernels))
        object.__setattr__(self, "windows", tuple(self.windows))
        if self.kernels and len(self.kernels) != self.depth:
            raise ValueError(f"kernels: one number for each of {self.depth} blocks, got {self.kernels}")
        if self.embedding not in ("repeat", "linear"):
            raise ValueError(f"embedding: unknown {self.embedding!r}; known: repeat, linear")
        if self.embedding == "repeat" and self.dim % self.input_dim:
            raise ValueError(f"input_dim: {self.input_dim} does not divide {self.dim} channels; embedding='linear' may")
        if self.centred and self.output_dim != self.input_dim:
            raise ValueError(
                f"centred: forecasts of {self.output_dim} series cannot have the means of {self.input_dim} added; "
                "set centred=False"
            )

    @property
    def block_kernels(self) -> tuple[int, ...]:
        """Systems of each encoder block."""
        return self.kernels or (self.dim // self.heads, *[self.dim] * (self.depth - 1))


class SpaceTimeOutput(NamedTuple):
    """What a SpaceTime network says.

    Arguments:
        forecast: beyond the known past, closed loop: (batch, horizon, output_dim).
        one_step: within it, for each position the next value, open loop: (batch, length, output_dim).
        next_inputs: for each position the decoder's next input, as predicted: (batch, length, dim).
        inputs: the decoder's inputs: (batch, length, dim).
    """

    forecast: Tensor
    one_step: Tensor
    next_inputs: Tensor
    inputs: Tensor


class SpaceTimeBlock(nn.Module):
    """Filters, a companion system, GELU and a linear layer; residuals around the last and around all but the filters.

    Arguments:
        config: of the network.
        kernels: systems.
        first: whether the fixed filters stand before it.
    """

    def __init__(self, config: SpaceTimeConfig, kernels: int, *, first: bool):
        super().__init__()
        self.filters = None
        if first and config.filters:
            self.filters = DifferencingFilters(
                config.dim,
                kernels=config.filters,
                head_dim=config.filter_head_dim,
                difference_order=config.difference_order,
                windows=config.windows,
                seed=config.window_seed,
            )
        self.ssm = CompanionSSM(
            config.dim,
            state_dim=config.state_dim,
            kernels=kernels,
            norm_order=config.norm_order,
            skip=config.ssm_skip,
            shift=config.shift,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(config.dim, config.dim)
        self.skip, self.mlp_skip = config.skip, config.mlp_skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) to the same."""
        if self.filters is not None:
            x, _ = self.filters(x)
        y, _ = self.ssm(x)
        mixed = self.projection(self.dropout(nn.functional.gelu(y)))
        if self.mlp_skip:
            mixed = mixed + y
        return mixed + x if self.skip else mixed


class SpaceTime(Model):
    """Encoder blocks, a decoder that closes its own loop, a head."""

    family = "spacetime"
    undecayed = (".ssm.a", ".ssm.D", "decoder.a", "decoder.D")

    def __init__(self, config: SpaceTimeConfig):
        super().__init__(config)
        self.embedding = nn.Linear(config.input_dim, config.dim) if config.embedding == "linear" else None
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(config, kernels, first=index == 0) for index, kernels in enumerate(config.block_kernels)
        )
        self.decoder = ClosedLoopCompanionSSM(
            config.dim,
            state_dim=config.state_dim,
            kernels=config.decoder_kernels or None,
            norm_order=config.norm_order,
            shift=config.decoder_shift,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, config.output_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Series (batch, length, input_dim), centred already, to the decoder's inputs (batch, length, dim)."""
        if self.embedding is not None:
            x = self.embedding(x)
        else:
            x = x.repeat(1, 1, self.config.dim // self.config.input_dim)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor, horizon: int = 1) -> SpaceTimeOutput:
        """x (batch, length, input_dim), the known past -> forecasts closed and open loop; see `SpaceTimeOutput`."""
        x, mean = self._centre(x)
        inputs = self.encode(x)
        ahead, _ = self.decoder.forecast(inputs, horizon)
        within, _ = self.decoder(inputs)
        return SpaceTimeOutput(
            self._read(ahead) + mean, self._read(within) + mean, self.decoder.predict_inputs(inputs), inputs
        )

    def forecast(self, x: Tensor, horizon: int) -> Tensor:
        """The next `horizon` values after x (batch, length, input_dim): (batch, horizon, output_dim).

        Nothing is fed back through the network: the decoder's loop gives all of them at once.
        """
        x, mean = self._centre(x)
        ahead, _ = self.decoder.forecast(self.encode(x), horizon)
        return self._read(ahead) + mean

    def loss(self, x: Tensor, future: Tensor, *, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
        """What SpaceTime is trained on: roots of mean squares over time, averaged over batch and channels.

        Arguments:
            x: the known past, (batch, length, input_dim), longer than `state_dim`.
            future: what came then, (batch, horizon, output_dim).
            weights: of the forecast, of the open-loop prediction within the past, and of the predicted inputs; the
                latter two count from where a whole state has been seen.
        """
        start = self.config.state_dim
        if x.shape[1] <= start:
            raise ValueError(f"x: a past longer than state_dim = {start} steps is needed, got {x.shape[1]}")
        if future.ndim != 3 or future.shape[2] != self.config.output_dim:
            raise ValueError(f"future: expected (batch, horizon, {self.config.output_dim}), got {tuple(future.shape)}")
        if self.config.output_dim != self.config.input_dim:
            raise ValueError("loss: the open-loop term needs as many series forecast as observed")
        found = self(x, future.shape[1])
        true = torch.cat([x, future], dim=1)[:, start : x.shape[1] + 1]
        pairs = (
            (found.forecast, future),
            (found.one_step[:, start - 1 :], true),
            (found.next_inputs[:, start - 1 : -1], found.inputs[:, start:]),
        )
        total = found.forecast.new_zeros(())
        for weight, (guess, truth) in zip(weights, pairs, strict=True):
            # A root's slope is infinite at zero, which a perfect fit reaches.
            total = total + weight * ((guess - truth).square().mean(1) + 1e-12).sqrt().mean()
        return total

    def _centre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[2] != self.config.input_dim or not x.shape[1] or not x.is_floating_point():
            raise ValueError(
                f"x: expected floats (batch, length >= 1, {self.config.input_dim}), got {x.dtype} {tuple(x.shape)}"
            )
        mean = x.mean(dim=1, keepdim=True) if self.config.centred else x.new_zeros(())
        return x - mean, mean

    def _read(self, y: Tensor) -> Tensor:
        return self.head(self.dropout(nn.functional.gelu(y)))


#: Parts of names, published to ours.
_NAMES = (
    ("embedding.layers.", "embedding."),
    ("encoder.blocks.", "blocks."),
    ("decoder.blocks.ssm.", "decoder."),
    ("output.layers.2.", "head."),
)
_INNER_NAMES = (
    (".pre.diff_kernel", ".filters.difference_kernel"),
    (".pre.ma_r_kernel", ".filters.average_kernel"),
    (".mlp.layers.2.", ".projection."),
    ("ssm.skip", "ssm.D"),
    ("decoder.skip", "decoder.D"),
)


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Published names to ours."""
    ours = {}
    for name, tensor in tensors.items():
        for theirs, mine in _NAMES:
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        for theirs, mine in _INNER_NAMES:
            name = name.replace(theirs, mine)
        ours[name] = tensor
    return ours


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    published = {}
    for name, tensor in tensors.items():
        for theirs, mine in reversed(_INNER_NAMES):
            name = name.replace(mine, theirs)
        for theirs, mine in _NAMES:
            if name.startswith(mine):
                name = theirs + name.removeprefix(mine)
                break
        published[name] = tensor
    return published


VARIANTS: dict[str, dict[str, Any]] = {
    "spacetime_tiny": dict(dim=16, state_dim=8, heads=2, windows=(4, 16), dropout=0.0),
    "spacetime_1_block": dict(),
    "spacetime_2_blocks": dict(depth=2),
}

FAMILY = Family("spacetime", SpaceTimeConfig, SpaceTime, VARIANTS, from_published, to_published)
