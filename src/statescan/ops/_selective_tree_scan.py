"""The selective scan of Mamba along every path of a token tree: a node continues from its parent's state.

The paper of `tree_scan` treats Mamba-2. Here every channel has its own decays, so that a quadratic form a channel would
cost more than the recurrence: the tree is walked level by level, or, in the compiled kernel, node by node.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_tree_scan
from statescan.ops import _checks as checks
from statescan.ops._dispatch import Implementation, Operator, cpu_accepts, register
from statescan.ops._registration import define
from statescan.ops._trees import check_parents, tree_depths

_NAME = "selective_tree_scan"


def selective_tree_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    parents: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor:
    """`selective_scan` along every path of a tree: ``h_i = exp(d_i A) h_parent(i) + d_i B_i x_i``.

    Arguments:
        x: (batch, nodes, channels); float32, bfloat16, float16 or float64.
        delta: (batch, nodes, channels).
        A: (channels, states), real and negative.
        B, C: (batch, nodes, states).
        D: (channels,).
        z: gate, shaped as x.
        parents: (nodes,) or (batch, nodes) int64; a node's parent comes before it, and -1 stands for the initial state.
        delta_bias: (channels,).
        delta_softplus: whether the step is the softplus of delta + delta_bias.
        initial_state: (batch, channels, states), the state before the roots.

    Returns:
        y, shaped and typed as x. Differentiable in every floating input.
    """
    args, gate = _prepare(
        x,
        delta,
        A,
        B,
        C,
        D,
        z,
        parents=parents,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
    )
    y: Tensor = OPERATOR(*args)
    return y if gate is None else y * F.silu(gate.to(y.dtype))


def selective_tree_scan_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    parents: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor:
    """`selective_tree_scan` a level at a time in plain PyTorch."""
    args, gate = _prepare(
        x,
        delta,
        A,
        B,
        C,
        D,
        parents=parents,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
    )
    y = _levels(*args)[0]
    return y if z is None else (y.to(args[1].dtype) * F.silu(z.to(args[1].dtype))).to(x.dtype)


def _prepare(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    parents: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[tuple[Any, ...], Tensor | None]:
    checks.floating(_NAME, "x", x, ndim=3)
    batch, nodes, channels = x.shape
    checks.floating(_NAME, "delta", delta, shape=x.shape)
    checks.floating(_NAME, "A", A, ndim=2)
    checks.fits(_NAME, "A", A, (channels, None))
    checks.floating(_NAME, "B", B, shape=(batch, nodes, A.shape[1]))
    checks.floating(_NAME, "C", C, shape=(batch, nodes, A.shape[1]))
    checks.floating(_NAME, "D", D, shape=(channels,))
    checks.floating(_NAME, "z", z, shape=x.shape)
    checks.floating(_NAME, "delta_bias", delta_bias, shape=(channels,))
    checks.floating(_NAME, "initial_state", initial_state, shape=(batch, channels, A.shape[1]))
    check_parents(_NAME, parents, nodes)
    if parents.ndim == 2 and parents.shape[0] != batch:
        raise ValueError(f"{_NAME}: parents has {parents.shape[0]} trees for a batch of {batch}")
    checks.same_device(
        _NAME, x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = delta.to(wide) if delta_bias is None else delta.to(wide) + delta_bias.to(wide)
    args = (
        x,
        F.softplus(step) if delta_softplus else step,
        A.to(wide),
        B.to(x.dtype),
        C.to(x.dtype),
        None if D is None else D.to(wide),
        None if initial_state is None else initial_state.to(wide),
        parents,
    )
    return args, z


def _bind(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return _prepare(*args, **kwargs)[0]


OPERATOR = register(Operator(_NAME, _bind))
define(
    OPERATOR,
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? initial_state, Tensor parents",
    inputs=7,
    outputs=1,
    fake=lambda x, *args: (torch.empty_like(x, memory_format=torch.contiguous_format),),
    check=lambda *args: checks.no_nan(_NAME, "A", args[2]),
)


def _levels(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, parents: Tensor
) -> tuple[Tensor]:
    """All nodes of a depth at a time; a tree of a batch may be finished before another."""
    wide = step.dtype
    batch, nodes, channels = x.shape
    u, b, c = (t.to(wide) for t in (x, B, C))
    if state is None:
        state = u.new_zeros(batch, channels, A.shape[1])
    decay = torch.exp(step[..., None] * A)  # (batch, nodes, channels, states)
    drive = (step * u)[..., None] * b[:, :, None]
    above = parents.expand(batch, nodes)
    states = torch.cat([state[:, None], torch.zeros_like(drive)], dim=1)
    depths = tree_depths(above)
    for depth in range(1, int(depths.max()) + 1 if depths.numel() else 1):
        rows, level = (depths == depth).nonzero(as_tuple=True)
        now = decay[rows, level] * states[rows, above[rows, level] + 1] + drive[rows, level]
        states = states.index_put((rows, level + 1), now)
    y = (states[:, 1:] * c[:, :, None]).sum(-1)
    if D is not None:
        y = y + D * u
    return (y.to(x.dtype).contiguous(),)


def _gradient(grad_y: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_levels, args, 7, (grad_y,))


OPERATOR.implementations += [
    Implementation("cpu", lambda *args: cpu_accepts(*args[:7]), cpu_tree_scan.selective_forward, _gradient),
    Implementation("reference", lambda *args: None, _levels, _gradient),
]
