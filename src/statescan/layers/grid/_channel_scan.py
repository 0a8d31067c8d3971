"""A selective scan along the channels of a grid. Behrouz et al. 2024, "MambaMixer", arXiv 2403.19888, section 3.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen


class ChannelDirection(nn.Module):
    """One scan along channels: the channel is the position in the sequence, the cells are its features.

    x = silu(causal convolution along channels); B, C and a part of delta are linear in x pooled to pool x pool cells, the
    rest of delta in x itself. Parameters do not depend on the grid's size.

    Arguments:
        state_dim: N.
        conv_kernel: taps of the convolution, the same for all cells.
        pool: side of the pooled grid.
    """

    def __init__(self, *, state_dim: int = 16, conv_kernel: int = 3, pool: int = 7):
        super().__init__()
        self.state_dim, self.pool = state_dim, pool
        self.convolution = nn.Conv1d(1, 1, conv_kernel)
        self.selection_projection = nn.Linear(pool**2, 2 * state_dim + 1, bias=False)
        self.delta_weight = nn.Parameter(torch.zeros(1))
        self.delta_bias = nn.Parameter(delta_bias(1, minimum=1e-3, maximum=0.1, floor=1e-4))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1).float()))
        self.D = nn.Parameter(torch.ones(1))

    def forward(self, grid: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same shape."""
        batch, channels, height, width = grid.shape
        cells = height * width
        taps = self.convolution.kernel_size[0]
        lines = grid.flatten(2).transpose(1, 2).reshape(batch * cells, 1, channels)
        x = F.silu(self.convolution(F.pad(lines, (taps - 1, 0))))
        x = x.view(batch, cells, channels).transpose(1, 2)  # (batch, channels, cells)
        pooled = F.adaptive_avg_pool2d(x.reshape(batch, channels, height, width), self.pool).flatten(2)
        B, C, dt = self.selection_projection(pooled).split([self.state_dim, self.state_dim, 1], -1)
        y = ops.selective_scan(
            x,
            dt + self.delta_weight * x,
            -torch.exp(widen(self.A_log)).expand(cells, -1),
            B,
            C,
            widen(self.D).expand(cells),
            delta_bias=widen(self.delta_bias).expand(cells),
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        return y.reshape(batch, channels, height, width)


class ChannelScan(nn.Module):
    """W_out (forwards(W_in x) + backwards(W_in x)): mixes the channels of a grid by scans over them both ways.

    The paper gives the linear maps and says that the scan's features are the cells; how its parameters serve grids of any
    size is left open there and is ours, in `ChannelDirection`.

    Arguments:
        dim: channels of input and output.
        hidden_dim: channels that are scanned.
        state_dim, conv_kernel, pool: those of `ChannelDirection`.
    """

    def __init__(self, dim: int, hidden_dim: int, *, state_dim: int = 16, conv_kernel: int = 3, pool: int = 7):
        super().__init__()
        self.input_projection = nn.Linear(dim, hidden_dim, bias=False)
        self.forwards = ChannelDirection(state_dim=state_dim, conv_kernel=conv_kernel, pool=pool)
        self.backwards = ChannelDirection(state_dim=state_dim, conv_kernel=conv_kernel, pool=pool)
        self.output_projection = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        hidden = self.input_projection(x).permute(0, 3, 1, 2)
        y = self.forwards(hidden) + self.backwards(hidden.flip(1)).flip(1)
        return self.output_projection(y.permute(0, 2, 3, 1))
