"""One step of structured state-space duality on a GPU. The state is read and written once; all else is small beside it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, on_device, power_of_two, sigmoid, softplus, stride


@triton.jit
def step_kernel(
    state, x, delta, A, B, C, D, z, delta_bias, y, new_state,
    stride_state, stride_x, stride_x_head, stride_z, stride_z_head, stride_delta, stride_B, stride_B_group,
    stride_C, stride_C_group, heads_in_group, columns, states, low, high,
    D_COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    p_mask = p < columns
    u = tl.load(x + row * stride_x + head * stride_x_head + p, mask=p_mask, other=0.0).to(tl.float32)
    step = tl.load(delta + row * stride_delta + head).to(tl.float32)
    if delta_bias is not None:
        step += tl.load(delta_bias + head)
    if SOFTPLUS:
        step = tl.minimum(tl.maximum(softplus(step), low), high)
    decay = tl.exp(step * tl.load(A + head))
    B += row * stride_B + head // heads_in_group * stride_B_group
    C += row * stride_C + head // heads_in_group * stride_C_group
    state += row * stride_state + head * columns * states
    new_state += (row * heads + head) * columns * states
    total = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, states, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        n_mask = n < states
        mask = p_mask[:, None] & n_mask[None, :]
        place = p[:, None] * states + n[None, :]
        b = tl.load(B + n, mask=n_mask, other=0.0).to(tl.float32)
        c = tl.load(C + n, mask=n_mask, other=0.0).to(tl.float32)
        after = decay * tl.load(state + place, mask=mask, other=0.0).to(tl.float32) + (step * u)[:, None] * b[None, :]
        tl.store(new_state + place, after.to(new_state.dtype.element_ty), mask=mask)
        total += tl.sum(after * c[None, :], 1)
    if D is not None:
        if D_COLUMNS:
            total += u * tl.load(D + head * columns + p, mask=p_mask, other=0.0)
        else:
            total += u * tl.load(D + head)
    if z is not None:
        gate = tl.load(z + row * stride_z + head * stride_z_head + p, mask=p_mask, other=0.0).to(tl.float32)
        total *= gate * sigmoid(gate)
    tl.store(y + (row * heads + head) * columns + p, total.to(y.dtype.element_ty), mask=p_mask)


def forward(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None = None,
    limit: tuple[float, float] | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """The registered operator's body: (y, new state).

    With a `limit` delta is not the step yet: bias, softplus and these limits make it one. `in_place`: the new state takes
    the place of the contiguous old one, whose elements are each read, then written, by one program.
    """
    batch, heads, columns, states = state.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    new_state = state if in_place else torch.empty_like(state, memory_format=torch.contiguous_format)
    if not state.numel():
        return y, new_state
    x, delta, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, delta, B, C))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    state = state if state[0].is_contiguous() else state.contiguous()
    block_n = power_of_two(states, 1, 128)
    block_p = power_of_two(columns, 1, max(1, 2048 // block_n))
    with on_device(x):
        step_kernel[(batch, heads, -(-columns // block_p))](
            state, x, delta, A.contiguous(), B, C, None if D is None else D.contiguous(), z, delta_bias, y, new_state,
            stride(state), stride(x), stride(x, 1), stride(z), stride(z, 1), stride(delta), stride(B), stride(B, 1),
            stride(C), stride(C, 1), heads // B.shape[1], columns, states,
            *(limit or (0.0, 0.0)), D_COLUMNS=D is not None and D.ndim == 2, SOFTPLUS=limit is not None,
            BLOCK_P=block_p, BLOCK_N=block_n, num_warps=4, **FUSED,
        )  # fmt: skip
    return y, new_state
