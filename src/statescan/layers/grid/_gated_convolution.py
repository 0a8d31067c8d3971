"""The gated convolution: a Mamba block without its scan. Dauphin et al. 2017, arXiv 1612.08083."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statescan.layers.grid._parts import depthwise, grid_activation


class GatedConvolution(nn.Module):
    """g, i, v = W_in x; out = W_out (activation(g) concat(i, depthwise(v))). Yu and Wang 2025, "MambaOut", arXiv
    2405.07992, figure 3.

    Only the last `conv_ratio` times `dim` of the hidden values are convolved; the others pass.

    Arguments:
        dim: channels of input and output.
        expansion: hidden channels over dim.
        conv_ratio: convolved channels over dim.
        kernel: side of the depthwise kernel, odd.
        activation: of the gate, by name.
        layer_scale: first value of a weight a channel on the output; None for none. Touvron et al. 2021, arXiv
            2103.17239.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion: float = 8 / 3,
        conv_ratio: float = 1.0,
        kernel: int = 7,
        activation: str = "gelu",
        layer_scale: float | None = None,
    ):
        super().__init__()
        hidden, convolved = int(expansion * dim), int(conv_ratio * dim)
        if not 0 < convolved <= hidden:
            raise ValueError(
                f"conv_ratio: at least one channel and at most the {hidden} hidden ones, got {conv_ratio} x {dim}"
            )
        if kernel % 2 == 0:
            raise ValueError(f"kernel: odd, got {kernel}")
        self.parts = (hidden, hidden - convolved, convolved)
        self.input_projection = nn.Linear(dim, 2 * hidden)
        self.convolution = depthwise(convolved, kernel)
        self.activation = grid_activation(activation)
        self.output_projection = nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        gate, passed, convolved = self.input_projection(x).split(self.parts, dim=-1)
        value = torch.cat([passed, self.convolution(convolved)], dim=-1)
        out = self.output_projection(self.activation(gate) * value)
        return out if self.scale is None else out * self.scale
