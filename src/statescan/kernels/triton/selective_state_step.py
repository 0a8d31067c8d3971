"""One step of the selective scan on a GPU. The state is read and written once; all else is small beside it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import (
    FUSED,
    INTERPRETED,
    floats,
    on_device,
    power_of_two,
    processors,
    sigmoid,
    softplus,
    stride,
)


@triton.jit
def load_states(source, place, mask, COMPLEX: tl.constexpr):
    """Numbers as (real, imaginary); the latter 0 where they are real."""
    if COMPLEX:
        re = tl.load(source + 2 * place, mask=mask, other=0.0)
        im = tl.load(source + 2 * place + 1, mask=mask, other=0.0)
    else:
        re = tl.load(source + place, mask=mask, other=0.0).to(tl.float32)
        im = tl.zeros(re.shape, tl.float32)
    return re, im


@triton.jit
def step_kernel(
    state, x, delta, A, B, C, D, z, delta_bias, y, new_state,
    stride_state, stride_x, stride_delta, stride_z, stride_B, stride_B_group, stride_C, stride_C_group,
    channels, channels_B, channels_C, states,
    COMPLEX: tl.constexpr, SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_mask = d < channels
    u = tl.load(x + row * stride_x + d, mask=d_mask, other=0.0).to(tl.float32)
    step = tl.load(delta + row * stride_delta + d, mask=d_mask, other=0.0).to(tl.float32)
    if delta_bias is not None:
        step += tl.load(delta_bias + d, mask=d_mask, other=0.0).to(tl.float32)
    if SOFTPLUS:
        step = softplus(step)
    total = tl.zeros((BLOCK_D,), tl.float32)
    if D is not None:
        total = u * tl.load(D + d, mask=d_mask, other=0.0).to(tl.float32)
    u *= step
    for start in range(0, states, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N))[None, :]
        mask = d_mask[:, None] & (n < states)
        place = d[:, None] * states + n
        h_re, h_im = load_states(state, row * stride_state + place, mask, COMPLEX)
        A_re, A_im = load_states(A, place, mask, COMPLEX)
        place_B = row * stride_B + (d // channels_B)[:, None] * stride_B_group + n
        B_re, B_im = load_states(B, place_B, mask, COMPLEX)
        place_C = row * stride_C + (d // channels_C)[:, None] * stride_C_group + n
        C_re, C_im = load_states(C, place_C, mask, COMPLEX)
        place += row * channels * states
        a = tl.exp(step[:, None] * A_re)
        if COMPLEX:
            angle = step[:, None] * A_im
            a_re, a_im = a * tl.cos(angle), a * tl.sin(angle)
            new_re = a_re * h_re - a_im * h_im + u[:, None] * B_re
            new_im = a_re * h_im + a_im * h_re + u[:, None] * B_im
            total += 2.0 * tl.sum(new_re * C_re - new_im * C_im, 1)
            tl.store(new_state + 2 * place, new_re, mask=mask)
            tl.store(new_state + 2 * place + 1, new_im, mask=mask)
        else:
            h_re = a * h_re + u[:, None] * B_re
            total += tl.sum(h_re * C_re, 1)
            tl.store(new_state + place, h_re.to(new_state.dtype.element_ty), mask=mask)
    if z is not None:
        gate = tl.load(z + row * stride_z + d, mask=d_mask, other=0.0).to(tl.float32)
        total *= gate * sigmoid(gate)
    tl.store(y + row * channels + d, total.to(y.dtype.element_ty), mask=d_mask)


def forward(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """The registered operator's body: (y, new state). `in_place`: the new state takes the place of the contiguous old one,
    whose elements are each read, then written, by one program."""
    batch, channels, states = state.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    new_state = state if in_place else torch.empty_like(state, memory_format=torch.contiguous_format)
    if not x.numel():
        return y, new_state

    x, delta, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, delta, B, C))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    state = state if state[0].is_contiguous() else state.contiguous()
    D, delta_bias = (None if v is None else v.contiguous() for v in (D, delta_bias))
    block_n = power_of_two(states, 1, 128)
    block_d = 4 if INTERPRETED else power_of_two(channels, 16, max(16, 2048 // block_n))
    while block_d > 16 and batch * channels < 2 * block_d * processors(x.device):  # or processors are left idle
        block_d //= 2
    with on_device(x):
        step_kernel[(batch, -(-channels // block_d))](
            floats(state), x, delta, floats(A.contiguous()), floats(B), floats(C), D, z, delta_bias, y,
            floats(new_state), stride(state), stride(x), stride(delta), stride(z), stride(B), stride(B, 1),
            stride(C), stride(C, 1), channels, channels // B.shape[1], channels // C.shape[1], states,
            COMPLEX=A.is_complex(), SOFTPLUS=delta_softplus, BLOCK_D=block_d, BLOCK_N=block_n, num_warps=4, **FUSED,
        )  # fmt: skip
    return y, new_state
