"""The scan of Mamba-2 along every path of a token tree at once. Wu et al. 2025, "STree", arXiv 2505.14969.

Along the path from the root to a node, decays multiply; with their logarithms accumulated along paths the whole tree is
one quadratic form, as one chunk of `ssd` with the tree's mask in place of the causal one. The state before the tree
enters every node; no state is copied.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_tree_scan
from statescan.ops import _checks as checks
from statescan.ops._dispatch import (
    Implementation,
    Operator,
    cpu_accepts,
    register,
    triton_accepts,
    triton_implementation,
)
from statescan.ops._registration import define
from statescan.ops._ssd import _INFINITY, _steps
from statescan.ops._trees import check_parents, tree_mask

_NAME = "tree_scan"


def tree_scan(
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
    delta_limit: tuple[float, float] = (0.0, _INFINITY),
    initial_state: Tensor | None = None,
) -> Tensor:
    """`ssd` along every path of a tree: ``S_i = exp(d_i A) S_parent(i) + d_i x_i B_i^T``, ``y_i = S_i C_i + D x_i``.

    Arguments:
        x: (batch, nodes, heads, head_dim); float32, bfloat16, float16 or float64.
        delta: (batch, nodes, heads).
        A: (heads,), negative.
        B, C: (batch, nodes, groups, state_dim); head h belongs to group h // (heads / groups).
        D: (heads,) or (heads, head_dim).
        z: gate, shaped as x.
        parents: (nodes,) or (batch, nodes) int64; a node's parent comes before it, and -1 stands for the initial state.
        delta_bias, delta_softplus, delta_limit: as in `ssd`.
        initial_state: (batch, heads, head_dim, state_dim), the state before the roots.

    Returns:
        y, shaped and typed as x. Differentiable in every floating input. Work grows with the square of the nodes:
        it is meant for tens of them.
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
        delta_limit=delta_limit,
        initial_state=initial_state,
    )
    y: Tensor = OPERATOR(*args)
    return y if gate is None else y * F.silu(gate.to(y.dtype))


def tree_scan_reference(
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
    delta_limit: tuple[float, float] = (0.0, _INFINITY),
    initial_state: Tensor | None = None,
    return_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`tree_scan` as its recurrence, a node at a time; `return_states` gives (batch, nodes, heads, P, N) as well."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = _steps(delta.to(wide), delta_bias, delta_softplus, delta_limit)
    u = x.to(wide)
    batch, nodes, heads, head_dim = x.shape
    per_group = heads // B.shape[2]
    before = u.new_zeros(batch, heads, head_dim, B.shape[3]) if initial_state is None else initial_state.to(wide)
    rows = torch.arange(batch, device=x.device)
    above = parents.expand(batch, nodes)
    states: list[Tensor] = [before]
    outputs = []
    for node in range(nodes):
        S = torch.stack(states, dim=1)[rows, above[:, node] + 1]
        b, c = (w[:, node].to(wide).repeat_interleave(per_group, dim=1)[:, :, None] for w in (B, C))
        decay = torch.exp(step[:, node] * A.to(wide))[..., None, None]
        S = decay * S + (step[:, node, :, None] * u[:, node])[..., None] * b
        states.append(S)
        outputs.append((S * c).sum(-1))
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D).to(wide) * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    return (y.to(x.dtype), torch.stack(states[1:], dim=1)) if return_states else y.to(x.dtype)


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
    delta_limit: tuple[float, float] = (0.0, _INFINITY),
    initial_state: Tensor | None = None,
) -> tuple[tuple[Any, ...], Tensor | None]:
    """Check the public arguments; give those of the registered operator, and the gate, which is applied after it."""
    checks.floating(_NAME, "x", x, ndim=4)
    batch, nodes, heads, head_dim = x.shape
    checks.floating(_NAME, "delta", delta, shape=(batch, nodes, heads))
    checks.floating(_NAME, "A", A, shape=(heads,))
    checks.floating(_NAME, "B", B, ndim=4)
    checks.fits(_NAME, "B", B, (batch, nodes, None, None))
    groups, state_dim = B.shape[2:]
    checks.floating(_NAME, "C", C, shape=(batch, nodes, groups, state_dim))
    if heads and (groups == 0 or heads % groups):
        raise ValueError(f"{_NAME}: B has {groups} groups, which do not divide {heads} heads")
    checks.floating(_NAME, "D", D)
    if D is not None and D.shape not in ((heads,), (heads, head_dim)):
        raise ValueError(f"{_NAME}: D has shape {tuple(D.shape)}; accepted: ({heads},) or ({heads}, {head_dim})")
    checks.floating(_NAME, "z", z, shape=x.shape)
    checks.floating(_NAME, "delta_bias", delta_bias, shape=(heads,))
    checks.floating(_NAME, "initial_state", initial_state, shape=(batch, heads, head_dim, state_dim))
    check_parents(_NAME, parents, nodes)
    if parents.ndim == 2 and parents.shape[0] != batch:
        raise ValueError(f"{_NAME}: parents has {parents.shape[0]} trees for a batch of {batch}")
    if not delta_limit[0] <= delta_limit[1]:
        raise ValueError(f"{_NAME}: delta_limit must be (low, high) with low <= high, not {delta_limit}")
    checks.same_device(
        _NAME, x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = _steps(delta.to(wide), delta_bias, delta_softplus, (float(delta_limit[0]), float(delta_limit[1])))
    args = (
        x,
        step,
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


def _matrices(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, parents: Tensor
) -> tuple[Tensor]:
    """``Y = ((C B^T) o L o exp(a_i - a_j)) (D X) + diag(exp a) C h0^T`` a head."""
    wide = step.dtype
    groups = B.shape[2]
    per_group = x.shape[2] // max(groups, 1)
    mask = tree_mask(parents if parents.ndim == 2 else parents[None])[:, None]  # (batch or 1, 1, nodes, nodes)
    u = x.to(wide)
    a = (step * A).transpose(1, 2) @ mask[:, 0].to(wide).transpose(1, 2)  # (batch, heads, nodes)
    # Off the path the difference may be large and positive: masked before the exponential, not after.
    decay = torch.exp((a[..., :, None] - a[..., None, :]).masked_fill(~mask, -_INFINITY))
    b, c = (w.to(wide).transpose(1, 2) for w in (B, C))  # (batch, groups, nodes, state_dim)
    weights = decay.unflatten(1, (groups, per_group)) * (c @ b.transpose(-1, -2))[:, :, None]
    driven = (step[..., None] * u).transpose(1, 2).unflatten(1, (groups, per_group))
    y = weights @ driven  # (batch, groups, per_group, nodes, head_dim)
    if state is not None:
        held = state.unflatten(1, (groups, per_group))
        y = y + torch.exp(a).unflatten(1, (groups, per_group))[..., None] * (c[:, :, None] @ held.transpose(-1, -2))
    y = y.flatten(1, 2).transpose(1, 2)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D) * u
    return (y.to(x.dtype).contiguous(),)


def _gradient(grad_y: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_matrices, args, 7, (grad_y,))


def _triton_accepts(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *args: Any) -> str | None:
    if not 1 <= x.shape[1] <= 128 or not B.shape[3] or not x.shape[3]:
        return f"no kernel for {x.shape[1]} nodes, a head_dim of {x.shape[3]}, a state_dim of {B.shape[3]}; up to 128 nodes"
    return triton_accepts(x)


def _cpu_accepts(*args: Any) -> str | None:
    if args[0].shape[1] > cpu_tree_scan.MOST_NODES:
        return f"{args[0].shape[1]} nodes; up to {cpu_tree_scan.MOST_NODES}"
    return cpu_accepts(*args[:7])


_triton = triton_implementation("tree_scan", _triton_accepts)


def _triton_forward(*args: Any) -> tuple[Tensor]:
    return _triton.forward(*args[:-1], tree_mask(args[-1]))


OPERATOR.implementations += [
    Implementation("cpu", _cpu_accepts, cpu_tree_scan.forward, _gradient),
    Implementation("triton", _triton_accepts, _triton_forward, _gradient),
    Implementation("reference", lambda *args: None, _matrices, _gradient),
]
