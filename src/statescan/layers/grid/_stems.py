"""Stems and downsamplings made of convolutions and batch norms, that several light backbones share."""

from __future__ import annotations

from torch import Tensor, nn

from statescan.layers.grid._parts import ConvolutionNorm, GridConvolution, SqueezeExcite, depthwise


class ConvolutionStem(nn.Sequential):
    """Four 3 x 3 convolutions of stride 2 with batch norms: stride 16 in all. ReLU after the first three.

    Arguments:
        in_channels: of the image.
        dim: channels of the grid; an eighth, a quarter and half as many between, rounded down.
    """

    def __init__(self, in_channels: int, dim: int):
        if dim < 8:
            raise ValueError(f"dim: at least 8 for this stem, got {dim}")
        widths = [in_channels, dim // 8, dim // 4, dim // 2, dim]
        super().__init__(
            *(
                ConvolutionNorm(widths[i], widths[i + 1], 3, stride=2, activation="relu" if i < 3 else "identity")
                for i in range(4)
            )
        )


class ResidualStem(nn.Module):
    """3 x 3 of stride 2, a residual pair of 3 x 3 at half width, 3 x 3 of stride 2, 1 x 1: stride 4 in all. Han et al.
    2024, "Demystify Mamba in Vision", arXiv 2405.16605.

    Arguments:
        in_channels: of the image.
        dim: channels of the grid; half as many in the pair, four times as many before the last convolution.
    """

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        half = dim // 2
        self.reduce = ConvolutionNorm(in_channels, half, 3, stride=2, activation="relu")
        self.residual = nn.Sequential(ConvolutionNorm(half, half, 3, activation="relu"), ConvolutionNorm(half, half, 3))
        self.expand = ConvolutionNorm(half, 4 * dim, 3, stride=2, activation="relu")
        self.project = ConvolutionNorm(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in_channels) -> (batch, ceil(height / 4), ceil(width / 4), dim)."""
        x = self.reduce(x)
        return self.project(self.expand(x + self.residual(x)))


class InvertedDownsample(nn.Module):
    """1 x 1 to four times the output's channels, depthwise 3 x 3 of stride 2, 1 x 1 back: ReLU between, a batch norm at
    the end alone. Han et al. 2024, "Demystify Mamba in Vision", arXiv 2405.16605.

    Arguments:
        dim, out_dim: channels.
    """

    activated = ("expand", "convolution")

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        hidden = 4 * out_dim
        self.expand = GridConvolution(dim, hidden, 1)
        self.convolution = depthwise(hidden, 3, stride=2)
        self.activation = nn.ReLU()
        self.project = ConvolutionNorm(hidden, out_dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> (batch, ceil(height / 2), ceil(width / 2), out_dim)."""
        x = self.activation(self.expand(x))
        return self.project(self.activation(self.convolution(x)))


class SqueezeDownsample(nn.Sequential):
    """1 x 1, depthwise 3 x 3 of stride 2, squeeze and excitation, 1 x 1; batch norms at each convolution, ReLU after the
    first two.

    Arguments:
        dim, out_dim: channels.
        hidden: channels between; a quarter of them, rounded to a multiple of eight, in the squeeze.
    """

    def __init__(self, dim: int, out_dim: int, hidden: int):
        super().__init__()
        self.expand = ConvolutionNorm(dim, hidden, activation="relu")
        self.convolution = ConvolutionNorm(hidden, hidden, 3, stride=2, groups=hidden, activation="relu")
        self.squeeze = SqueezeExcite(hidden, nearest_multiple(hidden / 4, 8))
        self.project = ConvolutionNorm(hidden, out_dim)


class ConvolutionMLP(nn.Sequential):
    """Two 1 x 1 convolutions with batch norms, ReLU between: the channel mixer of light backbones.

    Arguments:
        dim: channels of input and output.
        hidden_dim: channels between.
        norm_weight: first value of the second norm's weight.
    """

    def __init__(self, dim: int, hidden_dim: int, *, norm_weight: float = 0.0):
        super().__init__()
        self.input_projection = ConvolutionNorm(dim, hidden_dim, activation="relu")
        self.output_projection = ConvolutionNorm(hidden_dim, dim, norm_weight=norm_weight)


class Residual(nn.Module):
    """x + module(x).

    Arguments:
        module: from a grid to one of the same shape.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the module keeps."""
        return x + self.module(x)


def depthwise_norm(dim: int, *, norm_weight: float = 1.0) -> ConvolutionNorm:
    """A depthwise 3 x 3 convolution with a batch norm and no activation."""
    return ConvolutionNorm(dim, dim, 3, groups=dim, norm_weight=norm_weight)


def nearest_multiple(value: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, upwards where two are as near, at least one of it."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)
