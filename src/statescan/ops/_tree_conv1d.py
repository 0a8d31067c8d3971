"""The short causal convolution along every path of a token tree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import _checks as checks
from statescan.ops._trees import check_parents, tree_path_indices

_NAME = "tree_causal_conv1d"


def tree_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    parents: Tensor,
    activation: str | None = None,
    initial_state: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d` along every path of a tree: a node's window is its last ancestors and itself, then the state.

    Arguments:
        x: (batch, nodes, channels).
        weight: (channels, width).
        bias: (channels,).
        parents: (nodes,) or (batch, nodes) int64; a node's parent comes before it, and -1 stands for the state.
        activation: ``silu`` or None.
        initial_state: (batch, width - 1, channels), the inputs before the roots; None: zeros.

    Returns:
        y, shaped and typed as x; sums are in float32 or wider. Differentiable in every floating input.
    """
    checks.floating(_NAME, "x", x, ndim=3)
    batch, nodes, channels = x.shape
    checks.floating(_NAME, "weight", weight, ndim=2)
    checks.fits(_NAME, "weight", weight, (channels, None))
    width = weight.shape[1]
    checks.floating(_NAME, "bias", bias, shape=(channels,))
    checks.floating(_NAME, "initial_state", initial_state, shape=(batch, width - 1, channels))
    check_parents(_NAME, parents, nodes)
    if parents.ndim == 2 and parents.shape[0] != batch:
        raise ValueError(f"{_NAME}: parents has {parents.shape[0]} trees for a batch of {batch}")
    if activation not in (None, "silu"):
        raise ValueError(f"{_NAME}: activation must be 'silu' or None, not {activation!r}")
    wide = torch.promote_types(x.dtype, torch.float32)
    before = x.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state.to(x.dtype)
    taps = torch.cat([before, x], dim=1)
    index = tree_path_indices(parents, width) + (width - 1)  # (…, nodes, width); the state's end lies before node 0
    flat = index.reshape(-1, nodes * width)
    rows = torch.arange(batch, device=x.device)[:, None]
    windows = taps[:, flat[0]] if parents.ndim == 1 else taps[rows, flat]
    y = (windows.view(batch, nodes, width, channels).to(wide) * weight.to(wide).t()).sum(2)
    if bias is not None:
        y = y + bias.to(wide)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)
