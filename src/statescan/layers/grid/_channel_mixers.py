"""Modules on grids that mix channels: gates from the mean of the grid, and MLPs with a convolution inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statescan.layers.grid._parts import ConvolutionNorm, DropPath, GridConvolution, SqueezeExcite, depthwise


class ChannelGate(nn.Module):
    """v times sigmoid(W2 GELU(W1 mean over the grid of LayerNorm(v))). ``BiAttn`` in the code of LocalMamba (Huang et
    al. 2024, arXiv 2403.09338), after Chen et al. 2022.

    Arguments:
        channels: of input and output.
        reduction: channels over those between.
    """

    activated = ("reduce",)

    def __init__(self, channels: int, *, reduction: int = 8):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, channels // reduction)
        self.activation = nn.GELU()
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.expand(self.activation(self.reduce(mean))))


class DepthwiseMLP(nn.Module):
    """h = W_in x; h += depthwise(h); W_out GELU(h). The channel mixer of MSVMamba (Shi et al. 2024, arXiv 2405.14174).

    Arguments:
        dim: channels of input and output.
        hidden_dim: channels between.
        kernel: side of the depthwise convolution.
        dropout: after W_in and of the output.
    """

    def __init__(self, dim: int, hidden_dim: int, *, kernel: int = 3, dropout: float = 0.0):
        super().__init__()
        self.input_projection = GridConvolution(dim, hidden_dim, 1)
        self.convolution = depthwise(hidden_dim, kernel)
        self.activation = nn.GELU()
        self.output_projection = GridConvolution(hidden_dim, dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        hidden = self.dropout(self.input_projection(x))
        hidden = hidden + self.convolution(hidden)
        return self.dropout(self.output_projection(self.activation(hidden)))


class InvertedResidual(nn.Module):
    """x += drop_path(project(excite(depthwise(widen(x))))), each with a batch norm. Sandler et al. 2018,
    arXiv 1801.04381, with the gate of Hu et al. 2018.

    Arguments:
        dim: channels of input and output.
        ratio: channels between, over dim.
        squeeze: channels of the gate's bottleneck, over those between; 0 for no gate.
        kernel: side of the depthwise convolution.
        drop_path: probability that a sample skips the branch in training.
    """

    def __init__(
        self, dim: int, *, ratio: float = 4.0, squeeze: float = 0.125, kernel: int = 3, drop_path: float = 0.0
    ):
        super().__init__()
        hidden = int(dim * ratio)
        self.widen = ConvolutionNorm(dim, hidden, activation="relu")
        self.depthwise = ConvolutionNorm(hidden, hidden, kernel, groups=hidden, activation="relu")
        self.excite = SqueezeExcite(hidden, max(1, int(hidden * squeeze))) if squeeze else nn.Identity()
        self.project = ConvolutionNorm(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        return x + self.drop_path(self.project(self.excite(self.depthwise(self.widen(x)))))
