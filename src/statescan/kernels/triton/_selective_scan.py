"""The kernels of the selective scan. `selective_scan` launches them and says what their arrays hold.

A program owns a block of channels over a chunk of positions (or a whole sequence). It takes the tiles of its positions
one after another, and in a tile the states one after another: each is scanned over the tile's positions in registers.

Where there is an `order`, sequences are walks over a grid: groups of channels are walks, and a position lies where the
order of its walk says. A walk's steps lie `stride_walk` after those of the walk before.
"""

import triton
import triton.language as tl

from statescan.kernels.triton._common import channel_block, first_slot, locate, only_if, sigmoid
from statescan.kernels.triton._selective_scan_complex import (
    add_weight_planes,
    decay_complex,
    load_planes,
    load_weight_planes,
    scan_back_complex,
    scan_complex,
    store_planes,
)
from statescan.kernels.triton._tiles import (
    add_weights,
    find_rows,
    last_row,
    load_cuts,
    load_steps,
    load_tile,
    load_vector,
    load_weights,
    scan_tile,
    scan_tile_back,
    store_tile,
)

LN2 = tl.constexpr(0.6931471805599453)

#: Not specialised: the first three change from call to call, and `unit` must stay unknown (see `channel_block`).
RUNTIME = ("length", "cells", "sequences", "unit")


@triton.jit
def decay(step, A, cut, CUT: tl.constexpr):
    """exp(step A), or 0 where the state is cut; A comes times log2(e)."""
    a = tl.exp2(step * A[None, :])
    if CUT:
        a = tl.where(cut, 0.0, a)
    return a


@triton.jit
def of_walk(x, delta, walk, channels, stride_walk):
    """x and delta for channels that count through all walks, though all read the same x."""
    first = walk.to(tl.int64) * channels
    return x - first, delta + walk.to(tl.int64) * stride_walk - first


@triton.jit(do_not_specialize=RUNTIME)
def chunk_ends(
    x, delta, A, B, delta_bias, resets, offsets, order, ends, totals, cuts,
    stride_x, stride_delta, stride_walk, length, cells, sequences, unit, channels, group_channels, group_blocks,
    blocks_B, states,
    COMPLEX: tl.constexpr, SOFTPLUS: tl.constexpr, CONSTANT_B: tl.constexpr, PACKED: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state at the end of every chunk if it began with zero, the sum of its steps, whether a reset falls in it."""
    PLANES: tl.constexpr = 2 if COMPLEX else 1
    planes = states * PLANES
    slot, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    d, d_mask = channel_block(block, group_channels, unit, group_blocks, BLOCK)
    group = block // group_blocks
    if order is not None:
        x, delta = of_walk(x, delta, group, group_channels, stride_walk)
    base_B = (slot * (tl.num_programs(1) // blocks_B) + block // blocks_B) * planes
    t = tl.arange(0, TILE)
    first, last = (t == 0)[:, None], (t == TILE - 1)[:, None]
    CUT: tl.constexpr = resets is not None
    cut = first
    any_cut = 0
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tl.maximum(count, 1), TILE):
        mask = (t < count - start)[:, None] & d_mask[None, :]
        base, r, there = find_rows(
            order, sequence, group, position + start, row + start, length, cells, t, count - start, mask
        )
        _, step = load_steps(delta, delta_bias, base, stride_delta, r, d, there, mask, d_mask, SOFTPLUS)
        du = step * load_tile(x, base, stride_x, r, d, there)
        total += tl.sum(step, 0)
        if CUT:
            cut = load_cuts(resets, row + start, t, count - start)
            any_cut = tl.maximum(any_cut, tl.max(tl.max(cut.to(tl.int32), 1), 0))
        for n in range(states):
            if COMPLEX:
                A_re, A_im = load_planes(A, n, channels, d, d_mask)
                B_re, B_im = load_weight_planes(B, base_B, n, d, channels, start, t, d_mask, CONSTANT_B, CHUNK)
                target = ends + slot * planes * channels
                h_re, h_im = load_planes(target, n, channels, d, only_if(start > 0, d_mask))
                a_re, a_im = decay_complex(step, A_re, A_im, cut, CUT)
                _, _, h_re, h_im = scan_complex(a_re, a_im, du * B_re, du * B_im, h_re, h_im, first, CUT)
                store_planes(target, n, channels, d, last_row(h_re, last), last_row(h_im, last), d_mask)
            else:
                place = ends + (slot * states + n) * channels + d
                A_n = tl.load(A + n * channels + d, mask=d_mask, other=0.0)
                B_n = load_weights(B, base_B, n, d, channels, start, t, d_mask, CONSTANT_B, CHUNK)
                h = tl.load(place, mask=only_if(start > 0, d_mask), other=0.0)
                _, h = scan_tile(decay(step, A_n, cut, CUT), du * B_n, h, first, CUT)
                tl.store(place, last_row(h, last), mask=d_mask)
        tl.debug_barrier()  # the next tile reads what this one stored
    tl.store(totals + slot * channels + d, total, mask=d_mask)
    if CUT:
        tl.store(cuts + slot, any_cut, mask=block == 0)


@triton.jit(do_not_specialize=RUNTIME)
def pass_states(
    A, ends, totals, cuts, offsets, boundary, length, sequences, unit, channels, states,
    COMPLEX: tl.constexpr, PACKED: tl.constexpr, BACK: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Carry states from chunk to chunk: the ends of chunks become what each chunk begins with.

    `boundary` holds the state before the first chunk and gets that after the last. Gradients go back the same way.
    """
    sequence, n = tl.program_id(0), tl.program_id(2)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d_mask = d < channels
    slot_0, _row, rows = first_slot(sequence, offsets, length, PACKED, CHUNK)
    chunks = (rows + CHUNK - 1) // CHUNK
    if COMPLEX:
        A_re, A_im = load_planes(A, n, channels, d, d_mask)
        edge = boundary + sequence.to(tl.int64) * states * 2 * channels
        h_re, h_im = load_planes(edge, n, channels, d, d_mask)
    else:
        A_n = tl.load(A + n * channels + d, mask=d_mask, other=0.0)
        edge = boundary + (sequence.to(tl.int64) * states + n) * channels + d
        h = tl.load(edge, mask=d_mask, other=0.0)
    for i in range(chunks):
        slot = slot_0.to(tl.int64) + (chunks - 1 - i if BACK else i)
        total = tl.load(totals + slot * channels + d, mask=d_mask, other=0.0)
        kept = 1.0
        if cuts is not None:
            kept = 1.0 - tl.load(cuts + slot)
        if COMPLEX:
            place = ends + slot * states * 2 * channels
            end_re, end_im = load_planes(place, n, channels, d, d_mask)
            store_planes(place, n, channels, d, h_re, h_im, d_mask)
            size, angle = tl.exp2(total * A_re), total * A_im
            if BACK:
                angle = -angle
            a_re, a_im = size * tl.cos(angle), size * tl.sin(angle)
            carried = tl.where(kept != 0.0, a_re * h_re - a_im * h_im, 0.0)
            h_im = tl.where(kept != 0.0, a_re * h_im + a_im * h_re, 0.0) + end_im
            h_re = carried + end_re
        else:
            place = ends + (slot * states + n) * channels + d
            end = tl.load(place, mask=d_mask, other=0.0)
            tl.store(place, h, mask=d_mask)
            h = tl.where(kept != 0.0, tl.exp2(total * A_n) * h, 0.0) + end
    if COMPLEX:
        store_planes(edge, n, channels, d, h_re, h_im, d_mask)
    else:
        tl.store(edge, h, mask=d_mask)


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    x, delta, A, B, C, D, z, delta_bias, resets, offsets, order, starts, carry, y,
    stride_x, stride_delta, stride_walk, stride_z, length, cells, sequences, unit, channels, group_channels,
    group_blocks, blocks_B, blocks_C, states,
    COMPLEX: tl.constexpr, SOFTPLUS: tl.constexpr, CONSTANT_B: tl.constexpr, CONSTANT_C: tl.constexpr, PACKED: tl.constexpr,
    SERIAL: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The outputs of a chunk from the state it starts with, `carry` holding the state between tiles.

    Where SERIAL a program walks a whole sequence: `carry` then begins and ends with that sequence's boundary state,
    and `starts`, if wanted, is written rather than read.
    """
    PLANES: tl.constexpr = 2 if COMPLEX else 1
    planes = states * PLANES
    block = tl.program_id(1)
    if SERIAL:
        sequence, position = tl.program_id(0), 0
        slot_0, row, count = first_slot(tl.program_id(0), offsets, length, PACKED, CHUNK)
    else:
        slot_0 = tl.program_id(0)
        sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    d, d_mask = channel_block(block, group_channels, unit, group_blocks, BLOCK)
    group = block // group_blocks
    if order is not None:
        x, delta = of_walk(x, delta, group, group_channels, stride_walk)
    carry += tl.program_id(0).to(tl.int64) * planes * channels
    t = tl.arange(0, TILE)
    first, last = (t == 0)[:, None], (t == TILE - 1)[:, None]
    CUT: tl.constexpr = resets is not None
    cut = first
    for start in range(0, count, TILE):
        slot = (slot_0 + start // CHUNK).to(tl.int64)
        base_B = (slot * (tl.num_programs(1) // blocks_B) + block // blocks_B) * planes
        base_C = (slot * (tl.num_programs(1) // blocks_C) + block // blocks_C) * planes
        within = start % CHUNK
        mask = (t < count - start)[:, None] & d_mask[None, :]
        base, r, there = find_rows(
            order, sequence, group, position + start, row + start, length, cells, t, count - start, mask
        )
        _, step = load_steps(delta, delta_bias, base, stride_delta, r, d, there, mask, d_mask, SOFTPLUS)
        u = load_tile(x, base, stride_x, r, d, there)
        total = tl.zeros((TILE, BLOCK), tl.float32)
        if D is not None:
            total = u * load_vector(D, d, d_mask)
        u *= step
        if CUT:
            cut = load_cuts(resets, row + start, t, count - start)
        for n in range(states):
            if COMPLEX:
                A_re, A_im = load_planes(A, n, channels, d, d_mask)
                B_re, B_im = load_weight_planes(B, base_B, n, d, channels, within, t, d_mask, CONSTANT_B, CHUNK)
                C_re, C_im = load_weight_planes(C, base_C, n, d, channels, within, t, d_mask, CONSTANT_C, CHUNK)
                if SERIAL:
                    h_re, h_im = load_planes(carry, n, channels, d, d_mask)
                    if starts is not None:
                        target = starts + slot * planes * channels
                        store_planes(target, n, channels, d, h_re, h_im, only_if(within == 0, d_mask))
                else:
                    source = starts + slot * planes * channels
                    h_re, h_im = load_planes(source, n, channels, d, only_if(start == 0, d_mask))
                    carried_re, carried_im = load_planes(carry, n, channels, d, only_if(start > 0, d_mask))
                    h_re += carried_re
                    h_im += carried_im
                a_re, a_im = decay_complex(step, A_re, A_im, cut, CUT)
                _, _, h_re, h_im = scan_complex(a_re, a_im, u * B_re, u * B_im, h_re, h_im, first, CUT)
                total += 2.0 * (h_re * C_re - h_im * C_im)
                store_planes(carry, n, channels, d, last_row(h_re, last), last_row(h_im, last), d_mask)
            else:
                A_n = tl.load(A + n * channels + d, mask=d_mask, other=0.0)
                B_n = load_weights(B, base_B, n, d, channels, within, t, d_mask, CONSTANT_B, CHUNK)
                C_n = load_weights(C, base_C, n, d, channels, within, t, d_mask, CONSTANT_C, CHUNK)
                place = carry + n * channels + d
                if SERIAL:
                    h = tl.load(place, mask=d_mask, other=0.0)
                    if starts is not None:
                        tl.store(starts + (slot * states + n) * channels + d, h, mask=only_if(within == 0, d_mask))
                else:
                    h = tl.load(
                        starts + (slot * states + n) * channels + d, mask=only_if(start == 0, d_mask), other=0.0
                    )
                    h = tl.load(place, mask=only_if(start > 0, d_mask), other=h)
                _, h = scan_tile(decay(step, A_n, cut, CUT), u * B_n, h, first, CUT)
                total += h * C_n
                tl.store(place, last_row(h, last), mask=d_mask)
        if z is not None:
            gate = load_tile(z, base, stride_z, r, d, there)
            total *= gate * sigmoid(gate)
        store_tile(y, base, channels, r, d, total, there)
        tl.debug_barrier()  # the next tile reads what this one stored


@triton.jit(do_not_specialize=RUNTIME)
def chunk_gradients(
    x, delta, A, B, C, D, z, delta_bias, resets, offsets, order, grad_y, starts, tile_starts, back, totals, cuts,
    grad_z, grad_C,
    stride_x, stride_delta, stride_walk, stride_z, stride_y, length, cells, sequences, unit, channels, group_channels,
    group_blocks, blocks_B, blocks_C, states,
    COMPLEX: tl.constexpr, SOFTPLUS: tl.constexpr, CONSTANT_B: tl.constexpr, CONSTANT_C: tl.constexpr, PACKED: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First half of the gradient, forward in time: those of C and z, the states before each tile, and the gradient
    of the state before every chunk if none came from behind it."""
    PLANES: tl.constexpr = 2 if COMPLEX else 1
    planes = states * PLANES
    slot, block, slots = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    d, d_mask = channel_block(block, group_channels, unit, group_blocks, BLOCK)
    group = block // group_blocks
    if order is not None:
        x, delta = of_walk(x, delta, group, group_channels, stride_walk)
    groups_C = tl.num_programs(1) // blocks_C
    base_B = (slot * (tl.num_programs(1) // blocks_B) + block // blocks_B) * planes
    base_C = (slot * groups_C + block // blocks_C) * planes
    base_sum = slot * planes
    if not CONSTANT_C:
        base_sum = ((block % blocks_C).to(tl.int64) * slots * groups_C) * planes + base_C
    tile_starts += slot * (CHUNK // TILE) * planes * channels
    used = only_if(count > 0, d_mask)  # an empty slot's arrays were never written
    t = tl.arange(0, TILE)
    first, last = (t == 0)[:, None], (t == TILE - 1)[:, None]
    CUT: tl.constexpr = resets is not None
    cut = first
    any_cut = 0
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tl.maximum(count, 1), TILE):
        mask = (t < count - start)[:, None] & d_mask[None, :]
        base, r, there = find_rows(
            order, sequence, group, position + start, row + start, length, cells, t, count - start, mask
        )
        _, step = load_steps(delta, delta_bias, base, stride_delta, r, d, there, mask, d_mask, SOFTPLUS)
        u = load_tile(x, base, stride_x, r, d, there)
        g = load_tile(grad_y, base, stride_y, r, d, there)
        y = tl.zeros((TILE, BLOCK), tl.float32)
        if z is not None:
            gate = load_tile(z, base, stride_z, r, d, there)
            g *= gate * sigmoid(gate)
            if D is not None:
                y = u * load_vector(D, d, d_mask)
        u *= step
        if CUT:
            cut = load_cuts(resets, row + start, t, count - start)
        for n in range(states):
            if COMPLEX:
                A_re, A_im = load_planes(A, n, channels, d, d_mask)
                B_re, B_im = load_weight_planes(B, base_B, n, d, channels, start, t, d_mask, CONSTANT_B, CHUNK)
                C_re, C_im = load_weight_planes(C, base_C, n, d, channels, start, t, d_mask, CONSTANT_C, CHUNK)
                h_re, h_im = load_planes(starts + slot * planes * channels, n, channels, d, only_if(start == 0, used))
                source = tile_starts + start // TILE * planes * channels
                carried_re, carried_im = load_planes(source, n, channels, d, only_if(start > 0, d_mask))
                h_re += carried_re
                h_im += carried_im
                a_re, a_im = decay_complex(step, A_re, A_im, cut, CUT)
                p_re, p_im, h_re, h_im = scan_complex(a_re, a_im, u * B_re, u * B_im, h_re, h_im, first, CUT)
                if start + TILE < CHUNK:
                    target = source + planes * channels
                    store_planes(target, n, channels, d, last_row(h_re, last), last_row(h_im, last), d_mask)
                # conj(products) times the gradient 2 g conj(C) of the states
                s_re = tl.sum(2.0 * g * (p_re * C_re - p_im * C_im), 0)
                s_im = -tl.sum(2.0 * g * (p_re * C_im + p_im * C_re), 0)
                size, angle = tl.exp2(total * A_re), total * A_im
                if CUT:
                    size = tl.where(any_cut != 0, 0.0, size)
                q_re, q_im = size * tl.cos(angle), -size * tl.sin(angle)
                target = back + slot * planes * channels
                before_re, before_im = load_planes(target, n, channels, d, only_if(start > 0, d_mask))
                before_re += q_re * s_re - q_im * s_im
                before_im += q_re * s_im + q_im * s_re
                store_planes(target, n, channels, d, before_re, before_im, d_mask)
                add_weight_planes(
                    grad_C, base_sum, n, d, channels, start, t, d_mask, 2.0 * g * h_re, -2.0 * g * h_im, start == 0,
                    CONSTANT_C, CHUNK,
                )  # fmt: skip
                if z is not None:
                    y += 2.0 * (h_re * C_re - h_im * C_im)
            else:
                A_n = tl.load(A + n * channels + d, mask=d_mask, other=0.0)
                B_n = load_weights(B, base_B, n, d, channels, start, t, d_mask, CONSTANT_B, CHUNK)
                C_n = load_weights(C, base_C, n, d, channels, start, t, d_mask, CONSTANT_C, CHUNK)
                place = tile_starts + (start // TILE * states + n) * channels + d
                h = tl.load(starts + (slot * states + n) * channels + d, mask=only_if(start == 0, used), other=0.0)
                h = tl.load(place, mask=only_if(start > 0, d_mask), other=h)
                products, h = scan_tile(decay(step, A_n, cut, CUT), u * B_n, h, first, CUT)
                received = tl.sum(products * (g * C_n), 0) * tl.exp2(total * A_n)
                if CUT:
                    received = tl.where(any_cut != 0, 0.0, received)
                if start + TILE < CHUNK:
                    tl.store(place + states * channels, last_row(h, last), mask=d_mask)
                place = back + (slot * states + n) * channels + d
                received += tl.load(place, mask=only_if(start > 0, d_mask), other=0.0)
                tl.store(place, received, mask=d_mask)
                add_weights(grad_C, base_sum, n, d, channels, start, t, d_mask, g * h, start == 0, CONSTANT_C, CHUNK)
                if z is not None:
                    y += h * C_n
        total += tl.sum(step, 0)
        if CUT:
            any_cut = tl.maximum(any_cut, tl.max(tl.max(cut.to(tl.int32), 1), 0))
        if z is not None:
            gate = load_tile(z, base, stride_z, r, d, there)
            slope = sigmoid(gate)
            slope *= 1.0 + gate * (1.0 - slope)
            y *= slope * load_tile(grad_y, base, stride_y, r, d, there)
            store_tile(grad_z, base, channels, r, d, y, there)
        tl.debug_barrier()  # the next tile reads what this one stored
    tl.store(totals + slot * channels + d, total, mask=d_mask)
    if CUT:
        tl.store(cuts + slot, any_cut, mask=block == 0)


@triton.jit(do_not_specialize=RUNTIME)
def input_gradients(
    x, delta, A, B, C, D, z, delta_bias, resets, offsets, order, grad_y, starts, tile_starts, back,
    grad_x, grad_delta, grad_A, grad_B, grad_D, grad_bias,
    stride_x, stride_delta, stride_walk, stride_z, stride_y, length, cells, sequences, unit, channels, group_channels,
    group_blocks, blocks_B, blocks_C, states,
    COMPLEX: tl.constexpr, SOFTPLUS: tl.constexpr, CONSTANT_B: tl.constexpr, CONSTANT_C: tl.constexpr, PACKED: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Second half of the gradient, back in time from what each chunk receives from behind, which `back` holds."""
    PLANES: tl.constexpr = 2 if COMPLEX else 1
    planes = states * PLANES
    slot, block, slots = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    d, d_mask = channel_block(block, group_channels, unit, group_blocks, BLOCK)
    group = block // group_blocks
    if order is not None:
        x, delta = of_walk(x, delta, group, group_channels, stride_walk)
    groups_B = tl.num_programs(1) // blocks_B
    base_B = (slot * groups_B + block // blocks_B) * planes
    base_C = (slot * (tl.num_programs(1) // blocks_C) + block // blocks_C) * planes
    base_sum = slot * planes
    if not CONSTANT_B:
        base_sum = ((block % blocks_B).to(tl.int64) * slots * groups_B) * planes + base_B
    tile_starts += slot * (CHUNK // TILE) * planes * channels
    used = only_if(count > 0, d_mask)  # an empty slot's arrays were never written
    t = tl.arange(0, TILE)
    first, last = (t == 0)[:, None], (t == TILE - 1)[:, None]
    CUT: tl.constexpr = resets is not None
    cut = first
    sum_D = tl.zeros((BLOCK,), tl.float32)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    tiles = (tl.maximum(count, 1) + TILE - 1) // TILE
    for i in range(tiles):
        start = (tiles - 1 - i) * TILE
        mask = (t < count - start)[:, None] & d_mask[None, :]
        base, r, there = find_rows(
            order, sequence, group, position + start, row + start, length, cells, t, count - start, mask
        )
        _, step = load_steps(delta, delta_bias, base, stride_delta, r, d, there, mask, d_mask, SOFTPLUS)
        du = step * load_tile(x, base, stride_x, r, d, there)
        g = load_tile(grad_y, base, stride_y, r, d, there)
        if z is not None:
            gate = load_tile(z, base, stride_z, r, d, there)
            g *= gate * sigmoid(gate)
        through_A = tl.zeros((TILE, BLOCK), tl.float32)
        through_B = tl.zeros((TILE, BLOCK), tl.float32)
        if CUT:
            cut = load_cuts(resets, row + start, t, count - start)
        for n in range(states):
            if COMPLEX:
                A_re, A_im = load_planes(A, n, channels, d, d_mask)
                B_re, B_im = load_weight_planes(B, base_B, n, d, channels, start, t, d_mask, CONSTANT_B, CHUNK)
                C_re, C_im = load_weight_planes(C, base_C, n, d, channels, start, t, d_mask, CONSTANT_C, CHUNK)
                h_re, h_im = load_planes(starts + slot * planes * channels, n, channels, d, only_if(start == 0, used))
                source = tile_starts + start // TILE * planes * channels
                carried_re, carried_im = load_planes(source, n, channels, d, only_if(start > 0, d_mask))
                h_re += carried_re
                h_im += carried_im
                a_re, a_im = decay_complex(step, A_re, A_im, cut, CUT)
                _, _, h_re, h_im = scan_complex(a_re, a_im, du * B_re, du * B_im, h_re, h_im, first, CUT)
                place = back + slot * planes * channels
                s_re, s_im = load_planes(place, n, channels, d, used)
                s_re, s_im, g_re, g_im = scan_back_complex(
                    a_re, -a_im, 2.0 * g * C_re, -2.0 * g * C_im, s_re, s_im, last, CUT, BITS
                )
                store_planes(place, n, channels, d, last_row(s_re, first), last_row(s_im, first), d_mask)
                add_weight_planes(
                    grad_B, base_sum, n, d, channels, start, t, d_mask, g_re * du, g_im * du, i == 0, CONSTANT_B, CHUNK
                )
                through_B += g_re * B_re + g_im * B_im
                h_re -= du * B_re
                h_im -= du * B_im
                # g conj(a h of the position before)
                a_re = g_re * h_re + g_im * h_im
                a_im = g_im * h_re - g_re * h_im
                through_A += a_re * A_re[None, :] * LN2 + a_im * A_im[None, :]
                place = grad_A + slot * planes * channels
                before_re, before_im = load_planes(place, n, channels, d, only_if(i > 0, d_mask))
                before_re += tl.sum(a_re * step, 0)
                before_im += tl.sum(a_im * step, 0)
                store_planes(place, n, channels, d, before_re, before_im, d_mask)
            else:
                A_n = tl.load(A + n * channels + d, mask=d_mask, other=0.0)
                B_n = load_weights(B, base_B, n, d, channels, start, t, d_mask, CONSTANT_B, CHUNK)
                C_n = load_weights(C, base_C, n, d, channels, start, t, d_mask, CONSTANT_C, CHUNK)
                h = tl.load(starts + (slot * states + n) * channels + d, mask=only_if(start == 0, used), other=0.0)
                place = tile_starts + (start // TILE * states + n) * channels + d
                h = tl.load(place, mask=only_if(start > 0, d_mask), other=h)
                a = decay(step, A_n, cut, CUT)
                _, h = scan_tile(a, du * B_n, h, first, CUT)
                place = back + (slot * states + n) * channels + d
                s = tl.load(place, mask=used, other=0.0)
                s, grad_h = scan_tile_back(a, g * C_n, s, last, CUT, BITS)
                tl.store(place, last_row(s, first), mask=d_mask)
                add_weights(grad_B, base_sum, n, d, channels, start, t, d_mask, grad_h * du, i == 0, CONSTANT_B, CHUNK)
                through_B += grad_h * B_n
                grad_h *= h - du * B_n  # a h of the position before, without dividing
                through_A += grad_h * A_n[None, :] * LN2
                place = grad_A + (slot * states + n) * channels + d
                before = tl.load(place, mask=only_if(i > 0, d_mask), other=0.0)
                tl.store(place, before + tl.sum(grad_h * step, 0), mask=d_mask)
        raw, _ = load_steps(delta, delta_bias, base, stride_delta, r, d, there, mask, d_mask, False)
        u = load_tile(x, base, stride_x, r, d, there)  # again, to leave the registers to the loop above
        slope = through_A + u * through_B
        if SOFTPLUS:
            slope *= sigmoid(raw)
        slope = tl.where(mask, slope, 0.0)
        sum_bias += tl.sum(slope, 0)
        store_tile(grad_delta, base, channels, r, d, slope, there)
        through_B *= step
        if D is not None:
            through_B += g * load_vector(D, d, d_mask)
            sum_D += tl.sum(g * u, 0)
        store_tile(grad_x, base, channels, r, d, through_B, there)
        tl.debug_barrier()  # the next tile reads what this one stored
    if D is not None:
        tl.store(grad_D + slot * channels + d, sum_D, mask=d_mask)
    if delta_bias is not None:
        tl.store(grad_bias + slot * channels + d, sum_bias, mask=d_mask)
