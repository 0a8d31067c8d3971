"""Cauchy products on a GPU: the quotients of a pole and its conjugate are made where they are used, and never stored.

Both share one reciprocal: v / (z - w) + conj(v) / (z - conj(w)) = 2 (Re v s - Im v Im w q), with
q = 1 / ((z - w) (z - conj(w))) and s = (z - Re w) q.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, INTERPRETED, on_device, power_of_two
from statescan.kernels.triton.vandermonde import pairs

#: Nodes in a block.
BLOCK = 64 if INTERPRETED else 256
#: Rows that share the quotients of a pole.
MOST_ROWS = 8


@triton.jit
def quotients(w, state, z_re, z_im):
    """Of a pole: s and q at some nodes (real and imaginary parts), and the pole's imaginary part."""
    w_im = tl.load(w + 2 * state + 1)
    a = z_re - tl.load(w + 2 * state)
    p_re = a * a - (z_im - w_im) * (z_im + w_im)
    p_im = 2.0 * a * z_im
    inverse = 1.0 / (p_re * p_re + p_im * p_im)
    q_re, q_im = p_re * inverse, -p_im * inverse
    return a * q_re - z_im * q_im, a * q_im + z_im * q_re, q_re, q_im, w_im


@triton.jit
def load_nodes(z, start, nodes, BLOCK: tl.constexpr):
    """Some nodes, and which of them exist; past the end stands the first, which is no pole."""
    j = start + tl.arange(0, BLOCK)
    mask = j < nodes
    place = z + 2 * tl.where(mask, j, 0)
    return tl.load(place), tl.load(place + 1), j, mask


@triton.jit(do_not_specialize=("nodes",))
def cauchy_products(v, z, w, out, rows, heads, states, nodes, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A block of nodes of one head: the sum over poles for some rows."""
    head = tl.program_id(0).to(tl.int64)
    z_re, z_im, j, mask = load_nodes(z, tl.program_id(1) * BLOCK, nodes, BLOCK)
    r = tl.program_id(2).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    r_mask = r < rows
    re = tl.zeros((ROWS, BLOCK), tl.float32)
    im = tl.zeros((ROWS, BLOCK), tl.float32)
    for n in range(states):
        state = head * states + n
        s_re, s_im, q_re, q_im, w_im = quotients(w, state, z_re, z_im)
        place = v + 2 * (r * heads * states + state)
        x = 2.0 * tl.load(place, mask=r_mask, other=0.0)
        y = -2.0 * w_im * tl.load(place + 1, mask=r_mask, other=0.0)
        re += x[:, None] * s_re[None, :] + y[:, None] * q_re[None, :]
        im += x[:, None] * s_im[None, :] + y[:, None] * q_im[None, :]
    place = out + 2 * (((r * heads + head) * nodes)[:, None] + j[None, :])
    both = r_mask[:, None] & mask[None, :]
    tl.store(place, re, mask=both)
    tl.store(place + 1, im, mask=both)


@triton.jit(do_not_specialize=("nodes",))
def cauchy_gradients(
    grad, v, z, w, grad_v, grad_w, rows, heads, states, nodes, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One pole of one head: its own gradient, and those of its numerators."""
    head, n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    state = head * states + n
    w_im = tl.load(w + 2 * state + 1)
    of_re = 0.0
    of_im = 0.0
    for first in range(0, rows, ROWS):
        r = (first + tl.arange(0, ROWS)).to(tl.int64)
        r_mask = r < rows
        place = 2 * (r * heads * states + state)
        v_im = tl.load(v + place + 1, mask=r_mask, other=0.0)
        x = 2.0 * tl.load(v + place, mask=r_mask, other=0.0)
        y = -2.0 * w_im * v_im
        of_x = tl.zeros((ROWS, BLOCK), tl.float32)
        of_y = tl.zeros((ROWS, BLOCK), tl.float32)
        with_s = tl.zeros((BLOCK,), tl.float32)
        with_q = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, nodes, BLOCK):
            z_re, z_im, j, mask = load_nodes(z, start, nodes, BLOCK)
            s_re, s_im, q_re, q_im, _ = quotients(w, state, z_re, z_im)
            from_grad = grad + 2 * (((r * heads + head) * nodes)[:, None] + j[None, :])
            both = r_mask[:, None] & mask[None, :]
            g_re = tl.load(from_grad, mask=both, other=0.0)
            g_im = tl.load(from_grad + 1, mask=both, other=0.0)
            of_x += g_re * s_re[None, :] + g_im * s_im[None, :]
            of_y += g_re * q_re[None, :] + g_im * q_im[None, :]
            # F, the gradient of q times q: conj(g) (x s + y q), over rows
            gx_re, gx_im = tl.sum(x[:, None] * g_re, 0), -tl.sum(x[:, None] * g_im, 0)
            gy_re, gy_im = tl.sum(y[:, None] * g_re, 0), -tl.sum(y[:, None] * g_im, 0)
            f_re = gx_re * s_re - gx_im * s_im + gy_re * q_re - gy_im * q_im
            f_im = gx_re * s_im + gx_im * s_re + gy_re * q_im + gy_im * q_re
            with_s += f_re * s_re - f_im * s_im
            with_q += f_re * q_re - f_im * q_im
        d_x, d_y = tl.sum(of_x, 1), tl.sum(of_y, 1)
        tl.store(grad_v + place, 2.0 * d_x, mask=r_mask)
        tl.store(grad_v + place + 1, -2.0 * w_im * d_y, mask=r_mask)
        of_re += 2.0 * tl.sum(with_s, 0) - tl.sum(x * d_y, 0)
        of_im -= 2.0 * w_im * tl.sum(with_q, 0) + 2.0 * tl.sum(v_im * d_y, 0)
    tl.store(grad_w + 2 * state, of_re)
    tl.store(grad_w + 2 * state + 1, of_im)


def forward(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The registered operator's body."""
    (rows, heads, states), nodes = v.shape, z.shape[0]
    out = torch.empty(rows, heads, nodes, dtype=v.dtype, device=v.device)
    if not out.numel():
        return out
    share = power_of_two(rows, 1, MOST_ROWS)
    with on_device(v):
        cauchy_products[(heads, -(-nodes // BLOCK), -(-rows // share))](
            pairs(v), pairs(z), pairs(w), torch.view_as_real(out), rows, heads, states, nodes,
            ROWS=share, BLOCK=BLOCK, num_warps=4, **FUSED,
        )  # fmt: skip
    return out


def backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The registered gradient's body."""
    (rows, heads, states), nodes = v.shape, z.shape[0]
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    grad_w = torch.empty(w.shape, dtype=w.dtype, device=v.device)
    if not w.numel():
        return grad_v, grad_w
    with on_device(v):
        cauchy_gradients[(heads, states)](
            pairs(grad), pairs(v), pairs(z), pairs(w), torch.view_as_real(grad_v), torch.view_as_real(grad_w),
            rows, heads, states, nodes, ROWS=power_of_two(rows, 1, MOST_ROWS), BLOCK=BLOCK, num_warps=4, **FUSED,
        )  # fmt: skip
    return grad_v, grad_w
