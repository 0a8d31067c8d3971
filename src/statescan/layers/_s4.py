"""S4 and S4D: long convolutions whose kernels are state-space models. Gu, Goel and Re 2022, arXiv 2111.00396."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan._names import choice
from statescan.layers._precision import widen
from statescan.layers._segments import walk_segments
from statescan.layers._ssm_kernels import KERNELS
from statescan.layers._state import State

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "glu": nn.GLU,
}


def build_activation(name: str, label: str = "activation") -> nn.Module:
    """An activation by name; ``glu`` halves the last axis."""
    return _ACTIVATIONS[choice(label, name, tuple(_ACTIVATIONS))]()


class SequenceDropout(nn.Module):
    """Dropout that, if `tied`, drops a channel at all positions or at none.

    Arguments:
        p: the probability.
        tied: one mask for all positions between the first axis and the last.
    """

    def __init__(self, p: float = 0.5, *, tied: bool = True):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout: at least 0 and below 1, got {p}")
        self.p, self.tied = p, tied

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions…, channels) to the same shape."""
        if not self.training or self.p == 0:
            return x
        if not self.tied:
            return F.dropout(x, self.p)
        mask = x.new_ones(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
        return x * F.dropout(mask, self.p)


class S4(nn.Module):
    """y = W act(k * x + D x): a convolution with a state-space kernel, then a gated projection that mixes channels.

    The convolution trains; the same parameters step as a recurrence and pass a state from chunk to chunk.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each channel; half are kept, with their conjugates implied.
        kernel: ``dplr`` (S4) or ``diagonal`` (S4D, DSS).
        channels: outputs of each system before the projection.
        swap_channels: the projection reads (dim, channels) instead of (channels, dim).
        bidirectional: a second kernel reads the future, from one position ahead; then there are no states and no steps.
        max_length: bound on the length of the kernel where no state is given; None for a kernel as long as the input.
        activation: between convolution and projection; ``glu`` doubles the convolution's outputs first.
        middle_activation: after it, before the projection.
        output: activation of the projection (``glu`` doubles its width first), or None for no projection.
        dropout: after the convolution, and again before the projection.
        tied_dropout: one mask for all positions.
        kernel_dropout: of the kernel itself.
        kernel_options: keywords of the kernel: `layers.DPLRKernel`, `layers.DiagonalKernel`.
    """

    skips_state = True

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        kernel: str = "dplr",
        channels: int = 1,
        swap_channels: bool = False,
        bidirectional: bool = False,
        max_length: int | None = None,
        activation: str = "gelu",
        middle_activation: str = "identity",
        output: str | None = "glu",
        dropout: float = 0.0,
        tied_dropout: bool = False,
        kernel_dropout: float = 0.0,
        **kernel_options: Any,
    ):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: at least 1, got {channels}")
        choice("kernel", kernel, tuple(KERNELS))
        wide = channels * (2 if activation == "glu" else 1)
        self.dim, self.channels, self.wide = dim, channels, wide
        self.bidirectional, self.max_length, self.swap_channels = bidirectional, max_length, swap_channels
        if kernel == "dplr":
            kernel_options["max_length"] = max_length
        self.D = nn.Parameter(torch.randn(wide, dim))
        self.kernel = KERNELS[kernel](dim, state_dim, channels=wide * (1 + bidirectional), **kernel_options)
        self.kernel_dropout = nn.Dropout(kernel_dropout)
        self.inner_dropout = SequenceDropout(dropout, tied=tied_dropout)
        self.activation = build_activation(activation)
        self.middle_activation = build_activation(middle_activation, "middle_activation")
        self.dropout = SequenceDropout(dropout, tied=tied_dropout)
        self.output_projection: nn.Module | None = None
        if output is not None:
            self.output_activation = build_activation(output, "output")
            self.output_projection = nn.Linear(channels * dim, dim * (2 if output == "glu" else 1))

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``ssm`` (batch, dim, N/2, 2), real and imaginary parts, in float32 (float64 in double precision).

        A bidirectional layer has none: the state is empty. `dtype` is ignored: recurrences are kept wide.
        """
        if self.bidirectional or self.kernel.discretization == "dss":
            return State()
        return _as_state(self.kernel.initial_state(batch_size, device))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        Arguments:
            x: the input.
            state: what a call on the positions before gave; the kernel is then as long as the chunk, whatever
                `max_length` says.
            resets, offsets: where sequences begin, as in `ops`; the stretches between are convolved one after the other.
            rate: step sizes are multiplied by it: 2 for an input sampled half as often as in training.
            return_state: False saves computing the state (it is empty then); training needs none.
        """
        if resets is not None or offsets is not None:
            if self.bidirectional:
                raise ValueError(
                    "resets, offsets: a bidirectional layer reads the future; pass the sequences as rows of a batch, padded "
                    "at the end"
                )
            return walk_segments(
                lambda part, before: self(part, before, rate=rate),
                x,
                state or None,
                resets=resets,
                offsets=offsets,
                last=lambda part, before: self(part, before, rate=rate, return_state=return_state),
            )
        carried = state["ssm"] if state else None
        if carried is not None and self.bidirectional:
            raise ValueError("state: a bidirectional layer reads the future and cannot continue from a state")
        length = x.shape[1]
        y = self._activate(self._convolve(x, carried, rate))
        if not return_state or self.bidirectional or self.kernel.discretization == "dss":
            return y, State()
        before = self.kernel.initial_state(x.shape[0]) if carried is None else _as_complex(carried)
        if length:
            before = self.kernel.advance(x.transpose(1, 2), before, rate=rate)
        return y, _as_state(before)

    def step(self, x: Tensor, state: State, *, rate: float = 1.0) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        if self.bidirectional:
            raise ValueError("step: a bidirectional layer reads the future; call it on whole sequences")
        self.kernel._refuse_recurrence()
        y, after = self.kernel.step(x, _as_complex(state["ssm"]), rate=rate)
        y = y + widen(x)[:, None] * widen(self.D)
        return self._activate(self._flatten(y.to(x.dtype))), _as_state(after)

    def convolution_kernel(self, length: int, *, rate: float = 1.0) -> Tensor:
        """The kernel (outputs, dim, length); the second half of the outputs reads the future if bidirectional."""
        return self.kernel(length, rate=rate)[0]

    def _convolve(self, x: Tensor, state: Tensor | None, rate: float) -> Tensor:
        """(batch, length, dim) -> (batch, length, outputs x dim)."""
        length = x.shape[1]
        if length == 0:
            return x.new_zeros(x.shape[0], 0, self.wide * self.dim)
        taps = length
        if self.max_length is not None and state is None:
            taps = min(length, round(self.max_length / rate))
        kernel, added = self.kernel(taps, rate=rate, state=None if state is None else _as_complex(state))
        kernel = self.kernel_dropout(kernel)
        causal, future = kernel.chunk(2) if self.bidirectional else (kernel, None)
        y = ops.fft_conv(
            x.repeat(1, 1, self.wide),
            causal.flatten(0, 1),
            widen(self.D).flatten(),
            anticausal_kernel=None if future is None else future.flatten(0, 1),
        ).unflatten(-1, (self.wide, self.dim))
        if added is not None:
            y = y + added.permute(0, 3, 1, 2).to(y.dtype)
        return self._flatten(y)

    def _flatten(self, y: Tensor) -> Tensor:
        """(…, outputs, dim) -> (…, outputs x dim)."""
        return (y.transpose(-1, -2) if self.swap_channels else y).flatten(-2)

    def _activate(self, y: Tensor) -> Tensor:
        """Everything after the convolution, position by position."""
        y = self.middle_activation(self.activation(self.inner_dropout(y)))
        if self.output_projection is None:
            return self.dropout(y)
        return self.output_activation(self.output_projection(self.dropout(y)))


class S4D(S4):
    """`S4` with a diagonal state matrix. Gu et al. 2022, arXiv 2206.11893; Gupta et al. 2022, arXiv 2203.14343 (DSS).

    Arguments: those of `S4`, with the kernel of `layers.DiagonalKernel` and the initialisation S4D-Lin.
    """

    def __init__(self, dim: int, **options: Any):
        super().__init__(dim, **{"kernel": "diagonal", "initialisation": "diag-lin"} | options)


def _as_state(value: Tensor) -> State:
    return State({"ssm": torch.view_as_real(value.resolve_conj())})


def _as_complex(pair: Tensor) -> Tensor:
    return torch.view_as_complex(widen(pair).contiguous())
