"""Tiles of positions and channels: how the scan kernels read, write and scan them."""

import triton
import triton.language as tl

from statescan.kernels.triton._common import affine, affine_both, affine_both_cut, affine_cut, locate, only_if, softplus


@triton.jit
def load_tile(source, row, stride, t, d, mask):
    """A tile (positions, channels) as float32, zero outside the mask."""
    return tl.load(source + row * stride + (t[:, None] * stride + d[None, :]), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(target, row, stride, t, d, values, mask):
    place = target + row * stride + (t[:, None] * stride + d[None, :])
    tl.store(place, values.to(target.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(source, d, mask):
    """A row of channels as float32, (1, channels)."""
    return tl.load(source + d, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def last_row(tile, last):
    """A tile's row that is marked, its last one say, as a vector."""
    return tl.sum(tl.where(last, tile, 0.0), 0)


@triton.jit
def find_rows(order, sequence, walk, position, row, length, cells, t, count, mask):
    """Where a tile's positions lie: a row, how far from it each lies, and which of the mask are there at all.

    Along a walk, a position lies where `order`, (walks, length), says; -1 there is padding, which lies nowhere. Nor does
    a cell out of bounds: on a GPU nobody has looked at the order's values, and no memory beside the grid is touched.
    """
    if order is None:
        return row, t, mask
    else:
        cell = tl.load(order + walk * length + position + t, mask=t < count, other=-1)
        there = (cell >= 0) & (cell < cells)
        return sequence.to(tl.int64) * cells, cell, mask & there[:, None]


@triton.jit
def load_steps(delta, delta_bias, row, stride, t, d, there, mask, d_mask, SOFTPLUS: tl.constexpr):
    """Steps before and after the softplus; those after are 0 outside the mask, so that nothing changes there.

    What is in the mask but not there has the bias for its step.
    """
    raw = load_tile(delta, row, stride, t, d, there)
    if delta_bias is not None:
        raw += load_vector(delta_bias, d, d_mask)
    step = raw
    if SOFTPLUS:
        step = softplus(raw)
    return raw, tl.where(mask, step, 0.0)


@triton.jit
def load_cuts(resets, row, t, count):
    """(positions, 1): where the state is zeroed."""
    return (tl.load(resets + row + t, mask=t < count, other=0) != 0)[:, None]


@triton.jit
def scan_tile(a, b, h, first, CUT: tl.constexpr):
    """The states after each position of a tile, from the state h before it; also the products of a from its start."""
    start = a * h[None, :]
    if CUT:
        start = tl.where(a == 0.0, 0.0, start)
    b = tl.where(first, b + start, b)
    if CUT:
        products, states = tl.associative_scan((a, b), 0, affine_cut)
    else:
        products, states = tl.associative_scan((a, b), 0, affine)
    return products, states


@triton.jit
def scan_tile_back(a, c, s, last, CUT: tl.constexpr, BITS: tl.constexpr):
    """Gradients of the states, g_t = c_t + a_{t+1} g_{t+1}, and a_t g_t, which the position before receives.

    `s` is what the last position receives.
    """
    g = tl.where(last, c + s[None, :], c)
    back = a * g
    if CUT:
        back = tl.where(a == 0.0, 0.0, back)
    a, back, g, one = turn(a, BITS), turn(back, BITS), turn(g, BITS), tl.full(a.shape, 1.0, tl.float32)
    if CUT:
        _, back, _, g = tl.associative_scan((a, back, one, g), 0, affine_both_cut)
    else:
        _, back, _, g = tl.associative_scan((a, back, one, g), 0, affine_both)
    return turn(back, BITS), turn(g, BITS)


@triton.jit
def _exclusive_or(left, right):
    return left ^ right


@triton.jit
def turn(tile, BITS: tl.constexpr):
    """The 2 ** BITS positions of a tile in reverse; compiled, this renames registers and costs nothing.

    A scan's own `reverse` goes through exchanges between threads, and Triton 3.2 flips the last axis only.
    """
    bits = tile.to(tl.int32, bitcast=True)
    for i in tl.static_range(BITS):
        pairs = tl.reshape(bits, (1 << i, 2, tile.numel >> (i + 1)))
        bits = tl.reshape(pairs ^ tl.reduce(pairs, 1, _exclusive_or, keep_dims=True), tile.shape)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def load_weights(weights, base, n, d, channels, start, t, d_mask, CONSTANT: tl.constexpr, CHUNK: tl.constexpr):
    """B or C of one state: (1, channels) where constant, else (positions, 1) of a chunk that `pack` has laid out."""
    if CONSTANT:
        return load_vector(weights + n * channels, d, d_mask)
    else:
        return tl.load(weights + (base + n) * CHUNK + start + t)[:, None]


@triton.jit
def add_weights(
    sums, base, n, d, channels, start, t, d_mask, values, fresh, CONSTANT: tl.constexpr, CHUNK: tl.constexpr
):
    """Gather the gradient of B or C of one state as `load_weights` reads it; a constant's over the tiles."""
    if CONSTANT:
        place = sums + (base + n) * channels + d
        before = tl.load(place, mask=only_if(fresh == 0, d_mask), other=0.0)
        tl.store(place, before + tl.sum(values, 0), mask=d_mask)
    else:
        tl.store(sums + (base + n) * CHUNK + start + t, tl.sum(values, 1))


@triton.jit
def pack(
    weights, packed, offsets, order, stride_row, stride_group, length, cells, sequences, states,
    PACKED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(rows, groups, states) to (slots, groups, states, CHUNK) in float32, zero where a chunk is short.

    The scan reads B and C a state at a time: here its positions lie side by side, aligned, with no mask.
    """
    slot, group = tl.program_id(0), tl.program_id(1)
    sequence, position, row, count = locate(slot, offsets, length, sequences, PACKED, CHUNK)
    n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, CHUNK)
    mask = (t < count)[:, None] & (n < states)[None, :]
    row, r, there = find_rows(order, sequence, group, position, row, length, cells, t, count, mask)
    source = weights + row * stride_row + group * stride_group + (r[:, None] * stride_row + n[None, :])
    tile = tl.load(source, mask=there, other=0.0).to(tl.float32)
    base = (slot.to(tl.int64) * tl.num_programs(1) + group) * states * CHUNK
    tl.store(packed + base + (n[None, :] * CHUNK + t[:, None]), tile, mask=(n < states)[None, :])


@triton.jit
def unpack(
    partial, weights, offsets, order, length, cells, sequences, states, blocks, stride_block,
    PACKED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum (blocks, slots, groups, states, CHUNK) over its blocks, in order, into (rows, groups, states)."""
    slot, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    sequence, position, row, count = locate(slot, offsets, length, sequences, PACKED, CHUNK)
    n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, CHUNK)
    base = (slot.to(tl.int64) * groups + group) * states * CHUNK
    place = partial + base + (n[None, :] * CHUNK + t[:, None])
    mask = (t < count)[:, None] & (n < states)[None, :]
    total = tl.zeros((CHUNK, BLOCK), tl.float32)
    for _ in range(blocks):
        total += tl.load(place, mask=mask, other=0.0)
        place += stride_block
    row, r, there = find_rows(order, sequence, group, position, row, length, cells, t, count, mask)
    target = weights + (row * groups + group) * states + (r[:, None] * (groups * states) + n[None, :])
    tl.store(target, total.to(weights.dtype.element_ty), mask=there)
