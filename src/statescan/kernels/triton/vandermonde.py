"""Vandermonde products on a GPU: powers are made where they are used, and never stored.

A position's phase is a number of turns, and only its fraction counts. Within a block of positions it is the product of a
small whole number and a multiple of 2^-16, which float32 has exactly, and a remainder; where a block starts it is reduced
in float64, once a state and block. So long kernels are as exact as short ones.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, INTERPRETED, on_device, power_of_two

#: Positions in a block; no more than 256, so that a position times a multiple of 2^-16 is exact.
BLOCK = 64 if INTERPRETED else 256
#: Rows that share the powers of a state.
MOST_ROWS = 16
TURN = tl.constexpr(2 * math.pi)


@triton.jit
def powers(turns, decays, state, start, o):
    """Real and imaginary parts of exp((start + o) exponent) for the small whole numbers o."""
    turn = tl.load(turns + state)
    whole = tl.floor(turn.to(tl.float32) * 65536.0) / 65536.0
    rest = (turn - whole.to(tl.float64)).to(tl.float32)
    first = turn * start
    first = (first - tl.floor(first)).to(tl.float32)
    phase = o * whole
    phase = (phase - tl.floor(phase)) + (first + o * rest)
    angle = (phase - tl.floor(phase)) * TURN
    size = tl.exp((o + start) * tl.load(decays + state))
    return size * tl.cos(angle), size * tl.sin(angle)


@triton.jit(do_not_specialize=("length",))
def vandermonde_products(
    weights, turns, decays, out, rows, heads, states, length, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A block of positions of one head: the sum over states for some rows."""
    head = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    r = tl.program_id(2).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    r_mask = r < rows
    i = tl.arange(0, BLOCK)
    o = i.to(tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for n in range(states):
        state = head * states + n
        re, im = powers(turns, decays, state, start, o)
        w = weights + 2 * (r * heads * states + state)
        w_re = 2.0 * tl.load(w, mask=r_mask, other=0.0)
        w_im = 2.0 * tl.load(w + 1, mask=r_mask, other=0.0)
        total += w_re[:, None] * re[None, :] - w_im[:, None] * im[None, :]
    place = out + ((r * heads + head) * length)[:, None] + (start + i)[None, :]
    tl.store(place, total, mask=r_mask[:, None] & (start + i < length)[None, :])


@triton.jit(do_not_specialize=("length",))
def vandermonde_gradients(
    grad, weights, turns, decays, grad_weights, grad_exponents, rows, heads, states, length,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One state of one head: with E its powers, the sums of g E for every row, and of l g E over all rows."""
    head, n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    state = head * states + n
    i = tl.arange(0, BLOCK)
    o = i.to(tl.float32)
    e_re = 0.0
    e_im = 0.0
    for first in range(0, rows, ROWS):
        r = (first + tl.arange(0, ROWS)).to(tl.int64)
        r_mask = r < rows
        sum_re = tl.zeros((ROWS, BLOCK), tl.float32)
        sum_im = tl.zeros((ROWS, BLOCK), tl.float32)
        moment_re = tl.zeros((ROWS, BLOCK), tl.float32)
        moment_im = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, length, BLOCK):
            re, im = powers(turns, decays, state, start, o)
            place = grad + ((r * heads + head) * length)[:, None] + (start + i)[None, :]
            g = tl.load(place, mask=r_mask[:, None] & (start + i < length)[None, :], other=0.0)
            g_re, g_im = g * re[None, :], g * im[None, :]
            l = (o + start)[None, :]
            sum_re += g_re
            sum_im += g_im
            moment_re += l * g_re
            moment_im += l * g_im
        w = 2 * (r * heads * states + state)
        tl.store(grad_weights + w, 2.0 * tl.sum(sum_re, 1), mask=r_mask)
        tl.store(grad_weights + w + 1, -2.0 * tl.sum(sum_im, 1), mask=r_mask)
        w_re = tl.load(weights + w, mask=r_mask, other=0.0)
        w_im = tl.load(weights + w + 1, mask=r_mask, other=0.0)
        s_re, s_im = tl.sum(moment_re, 1), tl.sum(moment_im, 1)
        e_re += tl.sum(w_re * s_re - w_im * s_im, 0)
        e_im += tl.sum(w_re * s_im + w_im * s_re, 0)
    tl.store(grad_exponents + 2 * state, 2.0 * e_re)
    tl.store(grad_exponents + 2 * state + 1, -2.0 * e_im)


def pairs(tensor: Tensor) -> Tensor:
    """Complex numbers in memory as their values are, as pairs of floats."""
    return torch.view_as_real(tensor.resolve_conj().resolve_neg().contiguous())


def _turns(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Turns a position, from 0 to 1 in float64, and the logarithm of the decay."""
    turns = exponents.imag.double() / (2 * math.pi)
    return (turns - turns.floor()).contiguous(), exponents.real.contiguous()


def forward(weights: Tensor, exponents: Tensor, length: int) -> Tensor:
    """The registered operator's body."""
    rows, heads, states = weights.shape
    out = torch.empty(rows, heads, length, dtype=torch.float32, device=weights.device)
    if not out.numel():
        return out
    turns, decays = _turns(exponents)
    share = power_of_two(rows, 1, MOST_ROWS)
    with on_device(weights):
        vandermonde_products[(heads, -(-length // BLOCK), -(-rows // share))](
            pairs(weights), turns, decays, out, rows, heads, states, length,
            ROWS=share, BLOCK=BLOCK, num_warps=4, **FUSED,
        )  # fmt: skip
    return out


def backward(grad: Tensor, weights: Tensor, exponents: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The registered gradient's body."""
    rows, heads, states = weights.shape
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    grad_exponents = torch.empty(exponents.shape, dtype=exponents.dtype, device=weights.device)
    if not exponents.numel():
        return grad_weights, grad_exponents
    turns, decays = _turns(exponents)
    with on_device(weights):
        vandermonde_gradients[(heads, states)](
            grad.contiguous(), pairs(weights), turns, decays,
            torch.view_as_real(grad_weights), torch.view_as_real(grad_exponents), rows, heads, states, length,
            ROWS=power_of_two(rows, 1, 4), BLOCK=BLOCK, num_warps=4, **FUSED,
        )  # fmt: skip
    return grad_weights, grad_exponents
