"""The diagonal linear recurrence on a GPU: chunks of every sequence run side by side, states pass between them.

Its gradient is a scan the other way, g_t = grad_t + conj(a_{t+1}) g_{t+1}: the same kernels with the decays of the
neighbour (SHIFT), and beside it the gradient g_t conj(h_{t-1}) of a. Complex numbers are pairs of floats.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import (
    FUSED,
    INTERPRETED,
    Chunks,
    channel_block,
    first_slot,
    flags,
    locate,
    on_device,
    power_of_two,
    processors,
    rows,
)
from statescan.kernels.triton._selective_scan_complex import scan_complex
from statescan.kernels.triton._tiles import last_row, scan_tile

#: Positions in a chunk, and in a tile, which a scan takes at once.
CHUNK = 32 if INTERPRETED else 128
TILE = 16 if INTERPRETED else 8
BLOCK = 8 if INTERPRETED else 64

#: From this many sequences times blocks for each processor on, a program walks a whole sequence.
SERIAL_FROM = 8

#: Not specialised: the first two change from call to call, and `unit` must stay unknown (see `channel_block`).
RUNTIME = ("length", "sequences", "unit")


@triton.jit
def chunk_rows(slot, offsets, length, sequences, REVERSE: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr):
    """Of a chunk in the order of the scan: its first position and that one's row, and its sequence and length."""
    sequence, start, _, _ = locate(slot, offsets, length, sequences, PACKED, CHUNK)
    _, row, rows = first_slot(sequence, offsets, length, PACKED, CHUNK)
    if REVERSE:
        row += rows - 1 - start
    else:
        row += start
    return start, row, sequence, rows


@triton.jit
def load_pairs(place, mask, COMPLEX: tl.constexpr):
    """(real, imaginary), the halves of a word; real numbers come twice."""
    if COMPLEX:
        words = tl.load(place, mask=mask, other=0)
        re = words.to(tl.int32).to(tl.float32, bitcast=True)
        im = (words >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        re = tl.load(place, mask=mask, other=0.0)
        im = re
    return re, im


@triton.jit
def store_pairs(place, re, im, mask, COMPLEX: tl.constexpr):
    if COMPLEX:
        high = im.to(tl.int32, bitcast=True).to(tl.int64) << 32
        tl.store(place, high | (re.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF), mask=mask)
    else:
        tl.store(place, re, mask=mask)


@triton.jit
def tile_places(source, row, stride, t, d):
    """Where the numbers of a tile lie; t counts rows, backwards where it is negative."""
    return source + row * stride + (t[:, None] * stride + d[None, :])


@triton.jit
def load_decays(
    a, resets, row, stride, position, left, t, d, d_mask,
    COMPLEX: tl.constexpr, REVERSE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The decays of a tile: 0 where the state is cut, 1 past the end of the sequence."""
    inside = t < left
    way = t
    if REVERSE:
        way = -t
    if SHIFT:  # of the neighbour just passed, conjugated; the first position has none
        inside = inside & (position + t > 0)
        row += 1 if REVERSE else -1
    mask = inside[:, None] & d_mask[None, :]
    re, im = load_pairs(tile_places(a, row, stride, way, d), mask, COMPLEX)
    re = tl.where(mask, re, 1.0)
    if SHIFT:
        im = -im
    if resets is not None:
        cut = (tl.load(resets + row + way, mask=inside, other=0) != 0)[:, None]
        re, im = tl.where(cut, 0.0, re), tl.where(cut, 0.0, im)
    return re, im


@triton.jit
def scan_pairs(a_re, a_im, b_re, b_im, h_re, h_im, first, COMPLEX: tl.constexpr, CUT: tl.constexpr):
    """Products of decays so far, and states."""
    if COMPLEX:
        p_re, p_im, h_re, h_im = scan_complex(a_re, a_im, b_re, b_im, h_re, h_im, first, CUT)
    else:
        p_re, h_re = scan_tile(a_re, b_re, h_re, first, CUT)
        p_im, h_im = p_re, h_re
    return p_re, p_im, h_re, h_im


@triton.jit
def advance(a_re, a_im, h_re, h_im, b_re, b_im, COMPLEX: tl.constexpr):
    """a h + b, and b alone where a is 0."""
    if COMPLEX:
        cut = (a_re == 0.0) & (a_im == 0.0)
        re = b_re + tl.where(cut, 0.0, a_re * h_re - a_im * h_im)
        im = b_im + tl.where(cut, 0.0, a_re * h_im + a_im * h_re)
    else:
        re = b_re + tl.where(a_re == 0.0, 0.0, a_re * h_re)
        im = re
    return re, im


@triton.jit(do_not_specialize=RUNTIME)
def chunk_ends(
    a, b, resets, offsets, ends, products, stride_a, stride_b, length, sequences, unit, channels,
    COMPLEX: tl.constexpr, REVERSE: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state after every chunk if it began with zero, and the product of its decays."""
    position, row, _, rows = chunk_rows(tl.program_id(0), offsets, length, sequences, REVERSE, PACKED, CHUNK)
    d, d_mask = channel_block(tl.program_id(1), channels, unit, tl.num_programs(1), BLOCK)
    t = tl.arange(0, TILE)
    way = -t if REVERSE else t
    first, last = (t == 0)[:, None], (t == TILE - 1)[:, None]
    zero = tl.zeros((BLOCK,), tl.float32)
    h_re, h_im = zero, zero
    q_re, q_im = zero + 1.0, zero
    count = tl.minimum(rows - position, CHUNK)
    for start in range(0, count, TILE):
        place = row - start if REVERSE else row + start
        left = count - start
        mask = (t < left)[:, None] & d_mask[None, :]
        a_re, a_im = load_decays(
            a, resets, place, stride_a, position + start, left, t, d, d_mask, COMPLEX, REVERSE, SHIFT
        )
        b_re, b_im = load_pairs(tile_places(b, place, stride_b, way, d), mask, COMPLEX)
        p_re, p_im, h_re, h_im = scan_pairs(a_re, a_im, b_re, b_im, h_re, h_im, first, COMPLEX, resets is not None)
        h_re, h_im = last_row(h_re, last), last_row(h_im, last)
        p_re, p_im = last_row(p_re, last), last_row(p_im, last)
        q_re, q_im = advance(p_re, p_im, q_re, q_im, zero, zero, COMPLEX)
    base = tl.program_id(0).to(tl.int64) * channels
    store_pairs(ends + base + d, h_re, h_im, d_mask, COMPLEX)
    store_pairs(products + base + d, q_re, q_im, d_mask, COMPLEX)


@triton.jit(do_not_specialize=("length",))
def pass_states(
    ends, products, offsets, boundary, length, channels,
    COMPLEX: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Ends of chunks become what each chunk begins with; `boundary` goes from before the first to after the last."""
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d_mask = d < channels
    slot, _row, rows = first_slot(tl.program_id(0), offsets, length, PACKED, CHUNK)
    edge = boundary + tl.program_id(0).to(tl.int64) * channels
    h_re, h_im = load_pairs(edge + d, d_mask, COMPLEX)
    for i in range((rows + CHUNK - 1) // CHUNK):
        base = (slot + i).to(tl.int64) * channels
        end_re, end_im = load_pairs(ends + base + d, d_mask, COMPLEX)
        a_re, a_im = load_pairs(products + base + d, d_mask, COMPLEX)
        store_pairs(ends + base + d, h_re, h_im, d_mask, COMPLEX)
        h_re, h_im = advance(a_re, a_im, h_re, h_im, end_re, end_im, COMPLEX)
    store_pairs(edge + d, h_re, h_im, d_mask, COMPLEX)


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    a, b, resets, offsets, starts, h, before, state, grad_a,
    stride_a, stride_b, length, sequences, unit, channels,
    COMPLEX: tl.constexpr, REVERSE: tl.constexpr, SHIFT: tl.constexpr, CONSTANT: tl.constexpr,
    PACKED: tl.constexpr, SERIAL: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The states of a chunk from the one it starts with; where SERIAL of a sequence, whose last state replaces that.

    For a gradient, `before` holds the states of the forward scan and `state` what those began with.
    """
    if SERIAL:
        sequence, position = tl.program_id(0), 0
        _slot, row, rows = first_slot(sequence, offsets, length, PACKED, CHUNK)
        count = rows
        if REVERSE:
            row += rows - 1
    else:
        position, row, sequence, rows = chunk_rows(tl.program_id(0), offsets, length, sequences, REVERSE, PACKED, CHUNK)
        count = tl.minimum(rows - position, CHUNK)
    d, d_mask = channel_block(tl.program_id(1), channels, unit, tl.num_programs(1), BLOCK)
    t = tl.arange(0, TILE)
    way = -t if REVERSE else t
    first, last = (t == 0)[:, None], (t == TILE - 1)[:, None]
    base = tl.program_id(0).to(tl.int64) * channels
    h_re, h_im = load_pairs(starts + base + d, d_mask, COMPLEX)
    sum_re, sum_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, TILE):
        place = row - start if REVERSE else row + start
        left = count - start
        mask = (t < left)[:, None] & d_mask[None, :]
        a_re, a_im = load_decays(
            a, resets, place, stride_a, position + start, left, t, d, d_mask, COMPLEX, REVERSE, SHIFT
        )
        b_re, b_im = load_pairs(tile_places(b, place, stride_b, way, d), mask, COMPLEX)
        _, _, h_re, h_im = scan_pairs(a_re, a_im, b_re, b_im, h_re, h_im, first, COMPLEX, resets is not None)
        store_pairs(tile_places(h, place, channels, way, d), h_re, h_im, mask, COMPLEX)
        if grad_a is not None:
            onward = t < tl.minimum(left, rows - 1 - position - start)  # all but the first of the forward scan
            if resets is not None:
                onward = onward & (tl.load(resets + place + way, mask=t < left, other=0) == 0)
            past = place - 1 if REVERSE else place + 1
            x_re, x_im = load_pairs(tile_places(before, past, channels, way, d), mask & onward[:, None], COMPLEX)
            if state is not None:
                from_state = t == rows - 1 - position - start
                if resets is not None:
                    from_state = from_state & (tl.load(resets + place + way, mask=t < left, other=0) == 0)
                s_re, s_im = load_pairs(
                    tile_places(state, sequence.to(tl.int64), channels, t * 0, d), mask & from_state[:, None], COMPLEX
                )
                x_re, x_im = x_re + s_re, x_im + s_im
            if COMPLEX:
                x_re, x_im = h_re * x_re + h_im * x_im, h_im * x_re - h_re * x_im
            else:
                x_re *= h_re
            if CONSTANT:
                sum_re += tl.sum(x_re, 0)
                sum_im += tl.sum(x_im, 0)
            else:
                store_pairs(tile_places(grad_a, place, channels, way, d), x_re, x_im, mask, COMPLEX)
        h_re, h_im = last_row(h_re, last), last_row(h_im, last)
    if SERIAL:
        store_pairs(starts + base + d, h_re, h_im, d_mask, COMPLEX)
    if CONSTANT:
        store_pairs(grad_a + base + d, sum_re, sum_im, d_mask, COMPLEX)


def words(tensor: Tensor) -> Tensor:
    """Complex numbers as the 64-bit words that hold them, for a thread to read side by side; real ones as they are."""
    return tensor.resolve_conj().view(torch.int64) if tensor.is_complex() else tensor


class _Scan:
    """The arguments that both directions share, as the kernels take them."""

    def __init__(self, a: Tensor, b: Tensor, resets: Tensor | None, offsets: Tensor | None):
        self.chunks = Chunks(b.shape[0], b.shape[1], offsets, CHUNK)
        self.channels = b.shape[2]
        self.is_complex = b.is_complex()
        self.constant = a.ndim == 1
        self.a = words(rows(a)) if a.ndim == 3 else words(a.contiguous())
        self.stride_a = 0 if self.constant else self.a.stride(0)
        self.resets, self.offsets = flags(resets), None if offsets is None else offsets.contiguous()
        self.blocks = -(-self.channels // BLOCK)

    def run(self, b: Tensor, boundary: Tensor, h: Tensor, reverse: bool, before=None, state=None, grad_a=None):
        """Scan into h from the boundary states, which become the last ones; gives the gradient's parts of a constant."""
        chunks, b_rows = self.chunks, words(rows(b))
        serial = chunks.each <= 1 or chunks.sequences * self.blocks >= SERIAL_FROM * processors(b.device)
        sizes = (self.stride_a, b_rows.stride(0), chunks.length, chunks.sequences, 1, self.channels)
        order = {"COMPLEX": self.is_complex, "PACKED": chunks.packed}
        direction = {"REVERSE": reverse, "SHIFT": before is not None, **order}
        options = {
            "CHUNK": CHUNK,
            "TILE": TILE,
            "BLOCK": BLOCK,
            "num_warps": 1,
            **FUSED,
        }
        inputs = (self.a, b_rows, self.resets, self.offsets)
        edge = words(boundary)
        programs = chunks.sequences if serial else chunks.slots
        parts = torch.empty(programs, self.channels, dtype=b.dtype, device=b.device) if before is not None else None
        of_a = (words(parts) if self.constant else words(grad_a)) if parts is not None else None
        starts = edge
        if not serial:
            starts = torch.empty(programs, self.channels, dtype=edge.dtype, device=b.device)
            products = torch.empty_like(starts)
            chunk_ends[(programs, self.blocks)](*inputs, starts, products, *sizes, **direction, **options)
            block = power_of_two(self.channels, 8, 128)
            pass_states[(chunks.sequences, -(-self.channels // block))](
                starts, products, self.offsets, edge, chunks.length, self.channels,
                **order, CHUNK=CHUNK, BLOCK=block, num_warps=4, **FUSED,
            )  # fmt: skip
        outputs[(programs, self.blocks)](
            *inputs, starts, words(h), None if before is None else words(before),
            None if state is None else words(state), of_a, *sizes,
            CONSTANT=self.constant and before is not None, SERIAL=serial, **direction, **options,
        )  # fmt: skip
        return parts


def forward(
    a: Tensor, b: Tensor, initial_state: Tensor | None, resets: Tensor | None, offsets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The registered operator's body: (h, last state)."""
    count = b.shape[0] if offsets is None else offsets.shape[0] - 1
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    last = torch.zeros(count, b.shape[2], dtype=b.dtype, device=b.device)
    if initial_state is not None:
        last.copy_(initial_state)
    if b.numel():
        with on_device(b):
            _Scan(a, b, resets, offsets).run(b, last, h, reverse)
    return h, last


def backward(
    grad_h: Tensor | None,
    grad_last: Tensor | None,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> list[Tensor | None]:
    """The registered gradient's body: the gradients of a, b and the initial state."""
    count = b.shape[0] if offsets is None else offsets.shape[0] - 1
    boundary = torch.zeros(count, b.shape[2], dtype=b.dtype, device=b.device)
    if grad_last is not None:
        boundary.copy_(grad_last)
    if not b.numel():
        return [a.new_zeros(a.shape), b.new_zeros(b.shape), None if initial_state is None else boundary]
    with on_device(b):
        h, _ = forward(a, b, initial_state, resets, offsets, reverse)
        state = None if initial_state is None else initial_state.contiguous()
        grad_a, grad_b = (None if a.ndim == 1 else torch.empty_like(h)), torch.empty_like(h)
        scan = _Scan(a, b, resets, offsets)
        given = torch.zeros_like(h) if grad_h is None else grad_h
        parts = scan.run(given, boundary, grad_b, not reverse, before=h, state=state, grad_a=grad_a)
        grad_state = None
        if state is not None:
            grad_state = _through_first(boundary, a, resets, offsets, reverse)
        return [parts.sum(0) if grad_a is None else grad_a, grad_b, grad_state]


def _through_first(grad: Tensor, a: Tensor, resets: Tensor | None, offsets: Tensor | None, reverse: bool) -> Tensor:
    """The gradient of what every sequence began with, from that of its first state (or where empty, of its last)."""
    batch = torch.zeros((), dtype=torch.int64, device=grad.device)
    if offsets is None:
        batch = torch.arange(grad.shape[0], device=grad.device)
        place = torch.full_like(batch, -1 if reverse else 0)
    else:
        place = (offsets[1:] - 1 if reverse else offsets[:-1]).clamp(0, a.shape[1] - 1 if a.ndim == 3 else None)
    through = (a if a.ndim == 1 else a[batch, place]).conj() * grad
    if resets is not None:
        through = through.masked_fill(resets[batch, place, None], 0.0)
    return through if offsets is None else torch.where((offsets.diff() == 0)[:, None], grad, through)
