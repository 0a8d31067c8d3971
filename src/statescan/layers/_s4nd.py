"""S4ND: one state-space kernel an axis, their product a global convolution. Nguyen et al. 2022, arXiv 2210.06583."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from statescan._names import choice
from statescan.layers._precision import widen
from statescan.layers._s4 import SequenceDropout, build_activation
from statescan.layers._ssm_kernels import KERNELS


class S4ND(nn.Module):
    """y = k * x + D x over several axes, where k(t1, …) is a product of kernels k1(t1) k2(t2) …, averaged over a rank.

    Arguments:
        dim: channels of input and output.
        axes: 2 for images, 3 for video; any number from 1.
        state_dim: N, states of each channel and axis; half are kept, with their conjugates implied.
        kernel: ``dplr`` or ``diagonal``.
        max_length: bound on the length of the kernels, one for all axes or one an axis; None for none.
        channels: outputs of each system.
        bidirectional: kernels also read from the other side of each axis, from one position ahead.
        tensor_rank: terms that the kernel is the average of.
        activation: after the convolution, unless `linear`.
        output: activation of the projection after it; ``glu`` doubles its width first.
        linear: the convolution alone: the output has channels x dim channels.
        dropout: before the projection.
        tied_dropout: one mask for all positions.
        kernel_options: keywords of the kernels: `layers.DPLRKernel`, `layers.DiagonalKernel`. On short axes step sizes
            of 0.1 to 1 are usual; `bandlimit` lets a layer change resolution without aliasing.
    """

    def __init__(
        self,
        dim: int,
        *,
        axes: int = 2,
        state_dim: int = 64,
        kernel: str = "dplr",
        max_length: int | Sequence[int | None] | None = None,
        channels: int = 1,
        bidirectional: bool = True,
        tensor_rank: int = 1,
        activation: str = "gelu",
        output: str = "identity",
        linear: bool = True,
        dropout: float = 0.0,
        tied_dropout: bool = False,
        **kernel_options: Any,
    ):
        super().__init__()
        for label, value in (("axes", axes), ("channels", channels), ("tensor_rank", tensor_rank)):
            if value < 1:
                raise ValueError(f"{label}: at least 1, got {value}")
        if activation == "glu":
            raise ValueError("activation: 'glu' halves the channels that the projection reads; use output='glu'")
        bounds = [max_length] * axes if max_length is None or isinstance(max_length, int) else list(max_length)
        if len(bounds) != axes:
            raise ValueError(f"max_length: one bound for each of {axes} axes, got {len(bounds)}")
        choice("kernel", kernel, tuple(KERNELS))
        self.dim, self.axes, self.channels, self.tensor_rank = dim, axes, channels, tensor_rank
        self.bidirectional, self.max_length, self.linear = bidirectional, tuple(bounds), linear
        self.D = nn.Parameter(torch.randn(channels, dim))
        outputs = channels * tensor_rank * (1 + bidirectional)
        self.kernels = nn.ModuleList(
            KERNELS[kernel](
                dim,
                state_dim,
                channels=outputs,
                **(kernel_options | ({"max_length": bound} if kernel == "dplr" else {})),
            )
            for bound in bounds
        )
        if not linear:
            self.activation = build_activation(activation)
            self.dropout = SequenceDropout(dropout, tied=tied_dropout)
            self.output_activation = build_activation(output, "output")
            self.output_projection = nn.Linear(channels * dim, dim * (2 if output == "glu" else 1))

    def forward(self, x: Tensor, *, rate: float | Sequence[float] = 1.0) -> Tensor:
        """x (batch, length of each axis…, dim) -> the same shape (channels x dim last if linear).

        `rate` multiplies the step sizes, on all axes or one an axis: 0.5 for twice the resolution of training.
        """
        if x.ndim != self.axes + 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x: (batch, {self.axes} axes, {self.dim} channels), got {tuple(x.shape)}")
        lengths, rates = x.shape[1:-1], self._rates(rate)
        if x.numel() == 0:
            y = x.new_zeros(*x.shape[:-1], self.channels * self.dim)
        else:
            y = self._convolve(x, lengths, rates)
        if self.linear:
            return y
        return self.output_activation(self.output_projection(self.dropout(self.activation(y))))

    def axis_kernels(self, lengths: Sequence[int], *, rate: float | Sequence[float] = 1.0) -> list[Tensor]:
        """The kernel of each axis (outputs, dim, length); the second half of the outputs reads backwards."""
        rates = self._rates(rate)
        return [kernel(length, rate=r)[0] for kernel, length, r in zip(self.kernels, lengths, rates, strict=True)]

    def _rates(self, rate: float | Sequence[float]) -> list[float]:
        rates = [float(rate)] * self.axes if isinstance(rate, int | float) else [float(r) for r in rate]
        if len(rates) != self.axes or min(rates) <= 0:
            raise ValueError(f"rate: a positive number, or one for each of {self.axes} axes, got {rate}")
        return rates

    def _convolve(self, x: Tensor, lengths: Sequence[int], rates: list[float]) -> Tensor:
        taps = [
            length if bound is None else min(length, round(bound / rate))
            for length, bound, rate in zip(lengths, self.max_length, rates, strict=True)
        ]
        sizes = [length + reach for length, reach in zip(lengths, taps, strict=True)]
        dims = tuple(range(-self.axes, 0))
        u = widen(x).movedim(-1, 1)  # (batch, dim, axes…)
        spectrum: Tensor | None = None
        for axis, kernel in enumerate(self.axis_kernels(taps, rate=rates)):
            own = self._axis_spectrum(kernel, sizes[axis], last=axis == self.axes - 1)
            own = own.reshape(*own.shape[:2], *[1] * axis, -1, *[1] * (self.axes - 1 - axis))
            spectrum = own if spectrum is None else spectrum * own
        assert spectrum is not None
        spectrum = spectrum.unflatten(0, (self.tensor_rank, self.channels)).mean(0)  # (channels, dim, frequencies…)
        transformed = torch.fft.rfftn(u, s=sizes, dim=dims)
        y = torch.fft.irfftn(transformed[:, None] * spectrum, s=sizes, dim=dims)
        y = y[(..., *(slice(length) for length in lengths))]
        y = y + u[:, None] * widen(self.D).reshape(self.channels, self.dim, *[1] * self.axes)
        return y.flatten(1, 2).movedim(1, -1).to(x.dtype)

    def _axis_spectrum(self, kernel: Tensor, size: int, *, last: bool) -> Tensor:
        """The transform of one axis' kernel; its backward half lies at negative delays, the end of the circle."""
        if self.bidirectional:
            forward, backward = kernel.chunk(2)
            ahead = size - kernel.shape[-1]
            kernel = nn.functional.pad(forward, (0, ahead)) + nn.functional.pad(backward.flip(-1), (ahead, 0))
        return (torch.fft.rfft if last else torch.fft.fft)(kernel, n=size)

    def extra_repr(self) -> str:
        """The shape in words."""
        return f"dim={self.dim}, axes={self.axes}, kernel taps up to {self.max_length}, {math.prod(self.D.shape)} skips"
