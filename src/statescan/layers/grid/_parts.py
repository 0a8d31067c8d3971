"""Modules on grids (batch, height, width, channels): convolutions, norms, and what image backbones repeat.

PyTorch's convolutions take channels first; a permuted view of a channels-last tensor is what they compute fastest in
its `channels_last` memory format, so that nothing is copied on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Activations by name.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


def grid_activation(name: str) -> nn.Module:
    """A module by name: identity, relu, gelu, silu or sigmoid."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: unknown {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class GridConvolution(nn.Conv2d):
    """`torch.nn.Conv2d` on channels-last grids: (batch, height, width, channels in) -> (…, channels out).

    Arguments are those of `torch.nn.Conv2d`; its weights have the same shapes.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        #: One cell of input to one of output.
        self.pointwise = self.kernel_size == self.stride == (1, 1) and self.padding in ((0, 0), "valid", "same")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels in) -> (batch, new height, new width, channels out)."""
        # Channels last, a convolution of single cells is a product with a matrix or of channels with numbers. PyTorch
        # would go through its convolutions, the latter one channel at a time where one thread has one image.
        if self.pointwise and self.groups == 1:
            return F.linear(x, self.weight.flatten(1), self.bias)
        if self.pointwise and self.groups == self.in_channels == self.out_channels:
            weight = self.weight.flatten().to(x.dtype)
            return x * weight if self.bias is None else torch.addcmul(self.bias.to(x.dtype), x, weight)
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def depthwise(channels: int, kernel: int, *, stride: int = 1, bias: bool = True, dilation: int = 1) -> GridConvolution:
    """A convolution of each channel by itself, padded so that stride 1 keeps the grid's size."""
    return GridConvolution(
        channels,
        channels,
        kernel,
        stride=stride,
        padding=(kernel // 2) * dilation,
        dilation=dilation,
        groups=channels,
        bias=bias,
    )


class GridBatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the last axis of a channels-last grid."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvolutionNorm(nn.Module):
    """Convolution without bias, batch norm, activation: what light backbones are made of.

    Arguments:
        in_channels, out_channels: channels.
        kernel: side of the kernel; padded by half of it.
        stride: of the convolution.
        groups: groups of channels; `in_channels` for a depthwise one.
        activation: by name, after the norm.
        norm_weight: first value of the norm's weight; zero makes a residual branch start as nothing.
        bias: whether the convolution has one all the same.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: str = "identity",
        norm_weight: float = 1.0,
        bias: bool = False,
    ):
        super().__init__()
        self.convolution = GridConvolution(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )
        self.norm = GridBatchNorm(out_channels)
        nn.init.constant_(self.norm.weight, norm_weight)
        self.activation = grid_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in_channels) -> (batch, new height, new width, out_channels)."""
        return self.activation(self.norm(self.convolution(x)))

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """The same function in evaluation, the norm's scale and shift within the convolution."""
        old, norm = self.convolution, self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        new = GridConvolution(
            old.in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
            padding=old.padding,  # type: ignore[arg-type]
            groups=old.groups,
            device=old.weight.device,
            dtype=old.weight.dtype,
        )
        new.weight.copy_(old.weight * scale[:, None, None, None])
        assert new.bias is not None
        mean = norm.running_mean if old.bias is None else norm.running_mean - old.bias
        new.bias.copy_(norm.bias - mean * scale)
        return nn.Sequential(new, self.activation)


class NormLinear(nn.Module):
    """Batch norm of vectors, then a linear layer: the classifier of light backbones.

    Arguments:
        in_features, out_features: sizes.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_features) -> (batch, out_features)."""
        return self.linear(self.norm(x))

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The same function in evaluation, the norm's scale and shift within the linear layer."""
        norm, old = self.norm, self.linear
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        new = nn.Linear(old.in_features, old.out_features, device=old.weight.device, dtype=old.weight.dtype)
        new.weight.copy_(old.weight * scale)
        new.bias.copy_(old.bias + old.weight @ (norm.bias - norm.running_mean * scale))
        return new


def fold_norms(module: nn.Module) -> nn.Module:
    """Replace every module inside one that has a folded form by it, in place; for inference alone."""
    for name, child in module.named_children():
        if isinstance(child, (ConvolutionNorm, NormLinear)):
            setattr(module, name, child.folded())
        else:
            fold_norms(child)
    return module


class SqueezeExcite(nn.Module):
    """x times sigmoid(W2 activation(W1 mean over the grid of x)). Hu et al. 2018, arXiv 1709.01507.

    Arguments:
        channels: of input and output.
        hidden: channels between.
        bias: whether the two projections have biases.
        activation: between them, by name.
    """

    activated = ("reduce",)

    def __init__(self, channels: int, hidden: int, *, bias: bool = True, activation: str = "relu"):
        super().__init__()
        self.reduce = nn.Linear(channels, hidden, bias=bias)
        self.activation = grid_activation(activation)
        self.expand = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        gate = self.expand(self.activation(self.reduce(x.mean((1, 2), keepdim=True))))
        return x * torch.sigmoid(gate)


class DropPath(nn.Module):
    """In training, drops a whole branch for a sample with probability `rate`, and scales the rest up. Huang et al. 2016.

    Arguments:
        rate: the probability, in [0, 1).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path: a rate in [0, 1), got {rate}")
        self.rate = float(rate)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) to the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * keep / (1.0 - self.rate)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from zero at the first block to `rate` at the last: a list a stage."""
    total = sum(depths)
    flat = [rate * index / max(total - 1, 1) for index in range(total)]
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [flat[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


class GridBlock(nn.Module):
    """x += drop_path(mixer(norm(x))), then, with a channel mixer, x += drop_path(channel_mixer(channel_norm(x))).

    Arguments:
        mixer: a module on grids.
        norm: its norm.
        channel_mixer: a module from (..., channels) to (..., channels), or None.
        channel_norm: its norm.
        drop_path: probability that a sample skips a branch in training.
        before, between: modules whose output is added before the mixer and before the channel mixer (depthwise
            convolutions that tell a block where it is).
    """

    def __init__(
        self,
        mixer: nn.Module,
        norm: nn.Module,
        channel_mixer: nn.Module | None = None,
        channel_norm: nn.Module | None = None,
        *,
        drop_path: float = 0.0,
        before: nn.Module | None = None,
        between: nn.Module | None = None,
    ):
        super().__init__()
        self.before = before
        self.norm = norm
        self.mixer = mixer
        self.between = between
        self.channel_norm = channel_norm
        self.channel_mixer = channel_mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """(batch, height, width, channels) to the same shape; options go to the mixer."""
        if self.before is not None:
            x = x + self.before(x)
        x = x + self.drop_path(self.mixer(self.norm(x), **options))
        if self.between is not None:
            x = x + self.between(x)
        if self.channel_mixer is not None:
            assert self.channel_norm is not None
            x = x + self.drop_path(self.channel_mixer(self.channel_norm(x)))
        return x


def resize_grid(grid: Tensor, height: int, width: int, *, mode: str = "bicubic", antialias: bool = False) -> Tensor:
    """Interpolate (batch, height, width, channels) to another size, corners not aligned; as it is where it fits."""
    if grid.shape[1:3] == (height, width):
        return grid
    resized = F.interpolate(
        grid.permute(0, 3, 1, 2), (height, width), mode=mode, align_corners=False, antialias=antialias
    )
    return resized.permute(0, 2, 3, 1)
