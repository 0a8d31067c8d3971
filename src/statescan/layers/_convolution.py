"""The short causal convolution in front of a scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from statescan import ops


class CausalConv1d(nn.Module):
    """Depthwise causal convolution over time, with its own state: the last width - 1 inputs.

    Arguments:
        channels: each has its own taps.
        width: taps; 1 makes it a scale.
        bias: whether there is one.
        activation: ``silu`` or None.
    """

    def __init__(self, channels: int, width: int, *, bias: bool = True, activation: str | None = None):
        super().__init__()
        if width < 1:
            raise ValueError(f"width: at least 1 tap, got {width}")
        self.channels, self.width, self.activation = channels, width, activation
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def extra_repr(self) -> str:
        return f"{self.channels}, width={self.width}, bias={self.bias is not None}, activation={self.activation!r}"

    def initial_state(self, batch_size: int, *, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
        """Zeros (batch, width - 1, channels)."""
        return self.weight.new_zeros(batch_size, self.width - 1, self.channels, dtype=dtype, device=device)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (batch, length, channels), state (batch, width - 1, channels) -> output and next state of those shapes."""
        return ops.causal_conv1d(  # type: ignore[return-value]
            x,
            self.weight,
            self.bias,
            activation=self.activation,
            initial_state=state,
            resets=resets,
            offsets=offsets,
            return_last_state=True,
        )

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, channels) and the state -> output (batch, channels) and the next state."""
        return ops.causal_conv1d_step(state, x, self.weight, self.bias, activation=self.activation)
