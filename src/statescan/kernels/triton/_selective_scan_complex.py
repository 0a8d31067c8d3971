"""What the kernels of the selective scan do with one state where A is complex.

A complex number is two planes, 2n and 2n + 1, of the arrays that hold one plane a state where A is real. Gradients are
those of the real and the imaginary part; what multiplied forward multiplies them by its conjugate.
"""

import triton
import triton.language as tl

from statescan.kernels.triton._common import affine_both_complex, affine_complex
from statescan.kernels.triton._tiles import add_weights, load_weights, turn


@triton.jit
def load_planes(source, n, channels, d, mask):
    place = source + 2 * n * channels + d
    return tl.load(place, mask=mask, other=0.0), tl.load(place + channels, mask=mask, other=0.0)


@triton.jit
def store_planes(target, n, channels, d, re, im, mask):
    place = target + 2 * n * channels + d
    tl.store(place, re, mask=mask)
    tl.store(place + channels, im, mask=mask)


@triton.jit
def load_weight_planes(weights, base, n, d, channels, start, t, d_mask, CONSTANT: tl.constexpr, CHUNK: tl.constexpr):
    re = load_weights(weights, base, 2 * n, d, channels, start, t, d_mask, CONSTANT, CHUNK)
    im = load_weights(weights, base, 2 * n + 1, d, channels, start, t, d_mask, CONSTANT, CHUNK)
    return re, im


@triton.jit
def add_weight_planes(
    sums, base, n, d, channels, start, t, d_mask, re, im, fresh, CONSTANT: tl.constexpr, CHUNK: tl.constexpr
):
    add_weights(sums, base, 2 * n, d, channels, start, t, d_mask, re, fresh, CONSTANT, CHUNK)
    add_weights(sums, base, 2 * n + 1, d, channels, start, t, d_mask, im, fresh, CONSTANT, CHUNK)


@triton.jit
def decay_complex(step, A_re, A_im, cut, CUT: tl.constexpr):
    """exp(step A), or 0 where the state is cut; the real part of A comes times log2(e)."""
    size, angle = tl.exp2(step * A_re[None, :]), step * A_im[None, :]
    if CUT:
        size = tl.where(cut, 0.0, size)
    return size * tl.cos(angle), size * tl.sin(angle)


@triton.jit
def scan_complex(a_re, a_im, b_re, b_im, h_re, h_im, first, CUT: tl.constexpr):
    """As the real `scan_tile`: products of a, then states."""
    start_re = a_re * h_re[None, :] - a_im * h_im[None, :]
    start_im = a_re * h_im[None, :] + a_im * h_re[None, :]
    if CUT:
        cut = (a_re == 0.0) & (a_im == 0.0)
        start_re, start_im = tl.where(cut, 0.0, start_re), tl.where(cut, 0.0, start_im)
    b_re, b_im = tl.where(first, b_re + start_re, b_re), tl.where(first, b_im + start_im, b_im)
    return tl.associative_scan((a_re, a_im, b_re, b_im), 0, affine_complex)


@triton.jit
def scan_back_complex(a_re, a_im, c_re, c_im, s_re, s_im, last, CUT: tl.constexpr, BITS: tl.constexpr):
    """As the real `scan_tile_back`, with a already conjugated: (what the position before receives, gradients)."""
    g_re, g_im = tl.where(last, c_re + s_re[None, :], c_re), tl.where(last, c_im + s_im[None, :], c_im)
    back_re, back_im = a_re * g_re - a_im * g_im, a_re * g_im + a_im * g_re
    if CUT:
        cut = (a_re == 0.0) & (a_im == 0.0)
        back_re, back_im = tl.where(cut, 0.0, back_re), tl.where(cut, 0.0, back_im)
    one, zero = tl.full(a_re.shape, 1.0, tl.float32), tl.zeros(a_re.shape, tl.float32)
    _, _, back_re, back_im, _, _, g_re, g_im = tl.associative_scan(
        (
            turn(a_re, BITS), turn(a_im, BITS), turn(back_re, BITS), turn(back_im, BITS),
            one, zero, turn(g_re, BITS), turn(g_im, BITS),
        ),
        0,
        affine_both_complex,
    )  # fmt: skip
    return turn(back_re, BITS), turn(back_im, BITS), turn(g_re, BITS), turn(g_im, BITS)
