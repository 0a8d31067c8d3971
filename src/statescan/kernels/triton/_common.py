"""What the Triton kernels share: flattened rows, chunks of sequences, elementary functions."""

from __future__ import annotations

import contextlib
import functools
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Sequences are cut into chunks of this many positions, which run side by side; states are kept between them.
CHUNK = 64

#: exp(v) = exp2(v LOG2E)
LOG2E = 1.4426950408889634

#: Triton's interpreter runs an element at a time, so it gets the narrowest blocks.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


#: Launch options of all kernels: Triton 3.10 would otherwise keep multiplications and additions apart.
FUSED = {"enable_fp_fusion": True}


def on_device(tensor: Tensor):
    """A context in which kernels are launched on the tensor's GPU, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    """The number of streaming multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def floats(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of floats along a new last axis; real ones as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def rows(tensor: Tensor) -> Tensor:
    """(batch, length, ...) as (rows, ...), a view where strides allow; the last axis is contiguous."""
    flat = tensor.flatten(0, 1)
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def stride(tensor: Tensor | None, axis: int = 0) -> int:
    """A stride, or 0 of what is absent."""
    return 0 if tensor is None else tensor.stride(axis)


def flags(resets: Tensor | None) -> Tensor | None:
    """Reset flags as contiguous bytes, one a row."""
    return None if resets is None else resets.contiguous().view(torch.uint8).flatten()


def power_of_two(size: int, least: int, most: int) -> int:
    """The smallest power of two that holds `size`, within bounds."""
    return max(least, min(most, triton.next_power_of_2(size)))


class Chunks:
    """How the rows of a batch, or of packed sequences, are cut into chunks.

    A slot is a chunk's index. In a batch, sequence s has the slots from s * ceil(length / CHUNK) on. Packed
    sequences have lengths only the device knows: sequence s, whose first row is r, has the slots from
    r // CHUNK + s on, which leaves room for any lengths, and some slots empty.
    """

    def __init__(self, batch: int, length: int, offsets: Tensor | None, size: int = CHUNK):
        self.rows, self.length, self.offsets = batch * length, length, offsets
        self.packed = offsets is not None
        self.sequences = batch if offsets is None else offsets.shape[0] - 1
        each = -(-length // size)
        self.slots = self.rows // size + self.sequences if self.packed else batch * each
        #: Mean number of chunks in a sequence.
        self.each = -(-self.slots // self.sequences) if self.sequences else 0


@triton.jit
def first_slot(sequence, offsets, length, PACKED: tl.constexpr, SIZE: tl.constexpr):
    """The index of a sequence's first chunk, its first row and its length."""
    if PACKED:
        row = tl.load(offsets + sequence)
        end = tl.load(offsets + sequence + 1)
        return (row // SIZE).to(tl.int32) + sequence, row, (end - row).to(tl.int32)
    else:
        return sequence * ((length + SIZE - 1) // SIZE), sequence.to(tl.int64) * length, length


@triton.jit
def locate(slot, offsets, length, sequences, PACKED: tl.constexpr, SIZE: tl.constexpr):
    """Of a chunk: its sequence, its first position in that, its first row, and how many rows it has.

    Where its slot is empty the last is zero or less.
    """
    if PACKED:
        low = 0
        high = sequences
        while high - low > 1:  # the last sequence whose first slot is not after this one
            middle = (low + high) // 2
            behind = (tl.load(offsets + middle) // SIZE).to(tl.int32) + middle > slot
            low = tl.where(behind, low, middle)
            high = tl.where(behind, middle, high)
        sequence = low
    else:
        sequence = slot // ((length + SIZE - 1) // SIZE)
    slot_0, row, rows = first_slot(sequence, offsets, length, PACKED, SIZE)
    start = (slot - slot_0) * SIZE
    return sequence, start, row + start, tl.minimum(rows - start, SIZE)


@triton.jit
def channel_block(block, group_channels, unit, group_blocks, BLOCK: tl.constexpr):
    """The channels of a block, none of which leaves its group, and which of them exist.

    `unit` is 1, though the compiler must not know it: seeing runs of two channels at most, it gives a thread two
    channels and all positions of a tile, so that a scan over positions stays in registers.
    """
    i = tl.arange(0, BLOCK)
    i = (i // 2) * unit * 2 + i % 2
    within = (block % group_blocks) * BLOCK + i
    return (block // group_blocks) * group_channels + within, within < group_channels


@triton.jit
def only_if(condition, mask):
    """The mask where a scalar condition holds, else nothing. (Their plain conjunction confuses the interpreter.)"""
    return mask & (tl.zeros(mask.shape, tl.int32) < tl.where(condition, 1, 0))


@triton.jit
def softplus(v):
    """log(1 + exp(v)) to full precision: with e = exp(-|v|), log(1 + e) = 2 artanh(e / (2 + e)), by its series."""
    e = tl.exp(-tl.abs(v))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(v, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def affine(a_left, b_left, a_right, b_right):
    """The map h -> a h + b of two neighbours: the left one, then the right one."""
    return a_left * a_right, a_right * b_left + b_right


@triton.jit
def affine_cut(a_left, b_left, a_right, b_right):
    """`affine`, where a = 0 forgets what came before even if that is not finite."""
    return a_left * a_right, tl.where(a_right == 0.0, b_right, a_right * b_left + b_right)


@triton.jit
def affine_both(a_left, b_left, p_left, q_left, a_right, b_right, p_right, q_right):
    """`affine`, and beside it the map p h + q of all but the last element, which is what that element receives."""
    a, b = affine(a_left, b_left, a_right, b_right)
    p, q = affine(a_left, b_left, p_right, q_right)
    return a, b, p, q


@triton.jit
def affine_both_cut(a_left, b_left, p_left, q_left, a_right, b_right, p_right, q_right):
    """`affine_both`, where zeros forget what came before even if that is not finite."""
    a, b = affine_cut(a_left, b_left, a_right, b_right)
    p, q = affine_cut(a_left, b_left, p_right, q_right)
    return a, b, p, q


@triton.jit
def affine_complex(al_re, al_im, bl_re, bl_im, ar_re, ar_im, br_re, br_im):
    """`affine_cut` of complex numbers."""
    b_re = ar_re * bl_re - ar_im * bl_im + br_re
    b_im = ar_re * bl_im + ar_im * bl_re + br_im
    cut = (ar_re == 0.0) & (ar_im == 0.0)
    b_re, b_im = tl.where(cut, br_re, b_re), tl.where(cut, br_im, b_im)
    return ar_re * al_re - ar_im * al_im, ar_re * al_im + ar_im * al_re, b_re, b_im


@triton.jit
def affine_both_complex(
    al_re, al_im, bl_re, bl_im, pl_re, pl_im, ql_re, ql_im, ar_re, ar_im, br_re, br_im, pr_re, pr_im, qr_re, qr_im
):
    """`affine_both_cut` of complex numbers."""
    a_re, a_im, b_re, b_im = affine_complex(al_re, al_im, bl_re, bl_im, ar_re, ar_im, br_re, br_im)
    p_re, p_im, q_re, q_im = affine_complex(al_re, al_im, bl_re, bl_im, pr_re, pr_im, qr_re, qr_im)
    return a_re, a_im, b_re, b_im, p_re, p_im, q_re, q_im
