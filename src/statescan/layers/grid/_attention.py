"""Attention among the cells of a grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GridAttention(nn.Module):
    """Softmax attention among all cells of a grid. Vaswani et al. 2017, arXiv 1706.03762.

    Arguments:
        dim: channels of input and output.
        heads: a divisor of dim.
        bias: whether queries, keys and values have biases; the output has one.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = False):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads: a divisor of the {dim} channels, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        projected = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(queries, keys, values)
        return self.output(y.transpose(1, 2).reshape(x.shape))
