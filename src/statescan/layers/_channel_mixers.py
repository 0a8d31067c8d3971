"""Mixers of channels, position by position: MLPs, plain and gated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMLP(nn.Module):
    """W_out (value(x) activation(gate(x))). Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202.

    One projection gives both halves, the value first.

    Arguments:
        dim: channels of input and output.
        hidden_dim: channels between, rounded up to a multiple of `multiple_of`.
        multiple_of: see above.
        bias: whether the projections have biases.
        activation: of the gate.
        dropout: of the output.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        multiple_of: int = 1,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.silu,
        dropout: float = 0.0,
    ):
        super().__init__()
        hidden = math.ceil(hidden_dim / multiple_of) * multiple_of
        self.activation = activation
        self.input_projection = nn.Linear(dim, 2 * hidden, bias=bias)
        self.output_projection = nn.Linear(hidden, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, correction: Tensor | None = None) -> Tensor:
        """(..., dim) -> (..., dim); `correction` (..., 2 hidden) is added to the projected value and gate."""
        projected = self.input_projection(x)
        if correction is not None:
            projected = projected + correction
        value, gate = projected.chunk(2, dim=-1)
        return self.dropout(self.output_projection(value * self.activation(gate)))


class MLP(nn.Module):
    """W_out activation(W_in x), with biases: GPT-2's.

    Arguments:
        dim: channels of input and output.
        hidden_dim: channels between.
        bias: whether the projections have biases.
        activation: GELU in its tanh form unless given.
        dropout: after the activation and of the output.
    """

    activated = ("input_projection",)

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.activation = activation or nn.GELU(approximate="tanh")
        self.input_projection = nn.Linear(dim, hidden_dim, bias=bias)
        self.output_projection = nn.Linear(hidden_dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        hidden = self.dropout(self.activation(self.input_projection(x)))
        return self.dropout(self.output_projection(hidden))
