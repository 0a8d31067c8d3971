"""The kernels of structured state-space duality. `ssd` launches them and says what their arrays hold.

Within a chunk, with c the running sum of the logarithms of decays: position j reaches position i >= j by exp(c_i - c_j),
unless the state was cut in between, and the state before the chunk reaches i by exp(c_i). Differences of c are taken
before exp, never quotients after it; a decay that float32 cannot tell from 0 counts as a cut, lest c grow and lose digits.
"""

import triton
import triton.language as tl

from statescan.kernels.triton._common import INTERPRETED, first_slot, locate

#: Not specialised, for their values change from call to call.
RUNTIME = ("length", "sequences")

INTERPRETED_ = tl.constexpr(INTERPRETED)

#: The logarithm of the smallest float32 of full precision.
SMALLEST = tl.constexpr(-87.3)


@triton.jit
def matmul(left, right, total, PRECISION: tl.constexpr):
    """total + left right."""
    if INTERPRETED_:  # which would multiply the bits of bfloat16
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def load_tile(source, row, stride, t, p, count, columns):
    """A tile (positions, columns) in its own type, zero outside."""
    place = source + row * stride + (t[:, None] * stride + p[None, :])
    return tl.load(place, mask=(t < count)[:, None] & (p < columns)[None, :], other=0.0)


@triton.jit
def load_square(products, slot, group, groups, t, CHUNK: tl.constexpr):
    base = products + (slot * groups + group) * CHUNK * CHUNK
    return tl.load(base + (t[:, None] * CHUNK + t[None, :]))


@triton.jit
def load_line(source, slot, head, heads, t, CHUNK: tl.constexpr):
    """What `sums` kept of every position of a chunk."""
    return tl.load(source + (slot * heads + head) * CHUNK + t)


@triton.jit
def reach(c, cuts, t):
    """(i, j): how much of what enters at j is left at i."""
    linked = (t[:, None] >= t[None, :]) & (cuts[:, None] == cuts[None, :])
    return tl.exp(tl.where(linked, c[:, None] - c[None, :], float("-inf")))


@triton.jit
def reach_from_start(c, cuts):
    return tl.exp(tl.where(cuts == 0, c, float("-inf")))


@triton.jit
def reach_end(source, cut_counts, slot, head, heads, c, cuts, CHUNK: tl.constexpr):
    """How much of what enters at j is left at the end of the chunk."""
    place = (slot * heads + head) * CHUNK + CHUNK - 1
    same = cuts == tl.load(cut_counts + place)
    return tl.exp(tl.where(same, tl.load(source + place) - c, float("-inf")))


@triton.jit(do_not_specialize=RUNTIME)
def sums(
    delta, A, resets, offsets, steps, cums, cut_counts, decays, stride_delta, length, sequences, heads,
    PACKED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of every chunk and head: steps, running sums of log decays and counts of cuts, and the decay over the chunk."""
    slot = tl.program_id(0).to(tl.int64)
    _sequence, _position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    h_mask = h < heads
    t = tl.arange(0, CHUNK)
    step = load_tile(delta, row, stride_delta, t, h, count, heads)
    growth = step * tl.load(A + h, mask=h_mask, other=0.0)[None, :]
    cut = growth < SMALLEST
    if resets is not None:
        cut = cut | (tl.load(resets + row + t, mask=t < count, other=0) != 0)[:, None]
    c = tl.cumsum(tl.where(cut, 0.0, growth), 0)
    cuts = tl.cumsum(cut.to(tl.int32), 0)
    place = (slot * heads + h[None, :]) * CHUNK + t[:, None]
    mask = h_mask[None, :] & (t >= 0)[:, None]
    tl.store(steps + place, step, mask=mask)
    tl.store(cums + place, c, mask=mask)
    tl.store(cut_counts + place, cuts, mask=mask)
    last = (t == CHUNK - 1)[:, None]
    decay = tl.exp(tl.where(cuts == 0, c, float("-inf")))
    tl.store(decays + slot * heads + h, tl.sum(tl.where(last, decay, 0.0), 0), mask=h_mask)


@triton.jit(do_not_specialize=RUNTIME)
def products(
    B, C, offsets, out, stride_B, stride_C, stride_B_group, stride_C_group, length, sequences, states,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """C_i B_j of every pair of positions of a chunk."""
    slot, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _sequence, _position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    B += group * stride_B_group
    C += group * stride_C_group
    t = tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK, CHUNK), tl.float32)
    for start in range(0, states, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        b = load_tile(B, row, stride_B, t, n, count, states)
        c = load_tile(C, row, stride_C, t, n, count, states)
        total = matmul(c, tl.trans(b), total, PRECISION)
    base = out + (slot * tl.num_programs(1) + group) * CHUNK * CHUNK
    tl.store(base + (t[:, None] * CHUNK + t[None, :]), total)


@triton.jit(do_not_specialize=RUNTIME)
def chunk_states(
    x, B, steps, cums, cut_counts, offsets, out,
    stride_x, stride_x_head, stride_B, stride_B_group, length, sequences, heads, heads_in_group, columns, states,
    BACK: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The state after every chunk if it began with zero: inputs times B, as far as they reach the end.

    BACK: the gradient of the state before it if none came from behind, from the outputs' gradients and C.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _sequence, _position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    t, p = tl.arange(0, CHUNK), tl.arange(0, BLOCK_P)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = load_line(cums, slot, head, heads, t, CHUNK)
    cuts = load_line(cut_counts, slot, head, heads, t, CHUNK)
    if BACK:
        scale = reach_from_start(c, cuts)
    else:
        scale = reach_end(cums, cut_counts, slot, head, heads, c, cuts, CHUNK)
        scale *= load_line(steps, slot, head, heads, t, CHUNK)
    u = load_tile(x + head * stride_x_head, row, stride_x, t, p, count, columns)
    b = load_tile(B + head // heads_in_group * stride_B_group, row, stride_B, t, n, count, states)
    b = (b.to(tl.float32) * scale[:, None]).to(b.dtype)
    state = matmul(tl.trans(u), b, tl.zeros((BLOCK_P, BLOCK_N), tl.float32), PRECISION)
    base = out + (slot * heads + head) * columns * states
    mask = (p < columns)[:, None] & (n < states)[None, :]
    tl.store(base + (p[:, None] * states + n[None, :]), state, mask=mask)


@triton.jit(do_not_specialize=("length",))
def pass_states(
    ends, decays, offsets, boundary, length, heads, size,
    PACKED: tl.constexpr, BACK: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Carry states from chunk to chunk: the ends of chunks become what each chunk begins with.

    `boundary` holds the state before the first chunk and gets that after the last. Gradients go back the same way.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    slot_0, _row, rows = first_slot(sequence, offsets, length, PACKED, CHUNK)
    chunks = (rows + CHUNK - 1) // CHUNK
    i = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    edge = boundary + (sequence.to(tl.int64) * heads + head) * size + i
    state = tl.load(edge, mask=mask, other=0.0)
    for k in range(chunks):
        place = (slot_0.to(tl.int64) + (chunks - 1 - k if BACK else k)) * heads + head
        decay = tl.load(decays + place)
        end = tl.load(ends + place * size + i, mask=mask, other=0.0)
        tl.store(ends + place * size + i, state, mask=mask)
        state = end + tl.where(decay == 0.0, 0.0, decay * state)
    tl.store(edge, state, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    x, C, D, steps, cums, cut_counts, starts, squares, offsets, y,
    stride_x, stride_x_head, stride_C, stride_C_group, length, sequences, heads, heads_in_group, columns, states,
    D_COLUMNS: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y of a chunk: what its own inputs give, and what the state before it gives."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _sequence, _position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    group = head // heads_in_group
    C += group * stride_C_group
    t = tl.arange(0, CHUNK)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = load_line(cums, slot, head, heads, t, CHUNK)
    cuts = load_line(cut_counts, slot, head, heads, t, CHUNK)
    starts += (slot * heads + head) * columns * states
    total = tl.zeros((CHUNK, BLOCK_P), tl.float32)
    for start in range(0, states, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        w = load_tile(C, row, stride_C, t, n, count, states)
        mask = (p < tl.where(count > 0, columns, 0))[None, :] & (n < states)[:, None]
        state = tl.load(starts + (p[None, :] * states + n[:, None]), mask=mask, other=0.0)
        total = matmul(w, state.to(w.dtype), total, PRECISION)
    total = tl.where((cuts == 0)[:, None], total * reach_from_start(c, cuts)[:, None], 0.0)
    groups = heads // heads_in_group
    weights = load_square(squares, slot, group, groups, t, CHUNK) * reach(c, cuts, t)
    weights *= load_line(steps, slot, head, heads, t, CHUNK)[None, :]
    u = load_tile(x + head * stride_x_head, row, stride_x, t, p, count, columns)
    total = matmul(weights.to(u.dtype), u, total, PRECISION)
    if D is not None:
        if D_COLUMNS:
            total += u.to(tl.float32) * tl.load(D + head * columns + p, mask=p < columns, other=0.0)[None, :]
        else:
            total += u.to(tl.float32) * tl.load(D + head)
    place = y + (row * heads + head) * columns + (t[:, None] * (heads * columns) + p[None, :])
    tl.store(place, total.to(y.dtype.element_ty), mask=(t < count)[:, None] & (p < columns)[None, :])


@triton.jit(do_not_specialize=RUNTIME)
def input_gradients(
    x, B, C, A, D, grad_y, steps, cums, cut_counts, decays, starts, backs, squares, offsets,
    grad_x, grad_delta, grad_A, grad_D,
    stride_x, stride_x_head, stride_y, stride_y_head, stride_B, stride_B_group, stride_C, stride_C_group,
    length, sequences, heads, heads_in_group, columns, states,
    D_COLUMNS: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of a chunk and head, the gradients of x and delta, and parts of those of A and D.

    `starts` holds the state before every chunk, `backs` the gradient of the state after it.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _sequence, _position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    group = head // heads_in_group
    B += group * stride_B_group
    C += group * stride_C_group
    t, p = tl.arange(0, CHUNK), tl.arange(0, BLOCK_P)
    c = load_line(cums, slot, head, heads, t, CHUNK)
    cuts = load_line(cut_counts, slot, head, heads, t, CHUNK)
    step = load_line(steps, slot, head, heads, t, CHUNK)
    g = load_tile(grad_y + head * stride_y_head, row, stride_y, t, p, count, columns)
    from_state = tl.zeros((CHUNK, BLOCK_P), tl.float32)
    to_state = tl.zeros((CHUNK, BLOCK_P), tl.float32)
    through = tl.zeros((BLOCK_P,), tl.float32)
    base = (slot * heads + head) * columns * states
    for start in range(0, states, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = (p < tl.where(count > 0, columns, 0))[None, :] & (n < states)[:, None]
        place = base + (p[None, :] * states + n[:, None])
        state = tl.load(starts + place, mask=mask, other=0.0)
        back = tl.load(backs + place, mask=mask, other=0.0)
        through += tl.sum(state * back, 0)
        b = load_tile(B, row, stride_B, t, n, count, states)
        to_state = matmul(b, back.to(b.dtype), to_state, PRECISION)
        b = load_tile(C, row, stride_C, t, n, count, states)
        from_state = matmul(b, state.to(b.dtype), from_state, PRECISION)
    from_start = reach_from_start(c, cuts)
    at_end = reach_end(cums, cut_counts, slot, head, heads, c, cuts, CHUNK)
    grad_u = tl.where((at_end != 0.0)[:, None], to_state * at_end[:, None], 0.0)
    u = load_tile(x + head * stride_x_head, row, stride_x, t, p, count, columns)
    entered = tl.sum(u.to(tl.float32) * grad_u, 1) * step
    left = tl.sum(g.to(tl.float32) * from_state, 1) * from_start
    left = tl.where(from_start != 0.0, left, 0.0)
    weights = load_square(squares, slot, group, heads // heads_in_group, t, CHUNK) * reach(c, cuts, t)
    grad_u = matmul(tl.trans(weights.to(u.dtype)), g, grad_u, PRECISION)
    pairs = matmul(g, tl.trans(u), tl.zeros((CHUNK, CHUNK), tl.float32), PRECISION) * weights * step[None, :]
    pairs = tl.where(t[:, None] > t[None, :], pairs, 0.0)
    # A decay at k acts on what enters before k and leaves at k or after it.
    grad_growth = tl.cumsum(tl.sum(pairs, 1) - tl.sum(pairs, 0) + left, 0, reverse=True)
    grad_growth += tl.cumsum(entered, 0) - entered
    decay = tl.load(decays + slot * heads + head)
    grad_growth += tl.where(decay == 0.0, 0.0, decay * tl.sum(through, 0))
    before = tl.load(cut_counts + (slot * heads + head) * CHUNK + t - 1, mask=t > 0, other=0)
    grad_growth = tl.where((cuts == before) & (t < count), grad_growth, 0.0)
    tl.store(grad_A + slot * heads + head, tl.sum(grad_growth * step, 0))
    grad_step = grad_growth * tl.load(A + head) + tl.sum(u.to(tl.float32) * grad_u, 1)
    tl.store(grad_delta + (row + t) * heads + head, grad_step, mask=t < count)
    grad_u *= step[:, None]
    if D is not None:
        g = g.to(tl.float32)
        if D_COLUMNS:
            grad_u += g * tl.load(D + head * columns + p, mask=p < columns, other=0.0)[None, :]
        else:
            grad_u += g * tl.load(D + head)
        tl.store(grad_D + (slot * heads + head) * columns + p, tl.sum(g * u.to(tl.float32), 0), mask=p < columns)
    place = grad_x + (row * heads + head) * columns + (t[:, None] * (heads * columns) + p[None, :])
    tl.store(place, grad_u.to(grad_x.dtype.element_ty), mask=(t < count)[:, None] & (p < columns)[None, :])


@triton.jit(do_not_specialize=RUNTIME)
def weight_gradients(
    x, B, C, grad_y, steps, cums, cut_counts, starts, backs, offsets, grad_B, grad_C,
    stride_x, stride_x_head, stride_y, stride_y_head, stride_B, stride_B_group, stride_C, stride_C_group, stride_part,
    length, sequences, heads, heads_in_group, heads_in_part, columns, states,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of a chunk, a group and some of its heads, the parts of the gradients of B and C."""
    slot = tl.program_id(0).to(tl.int64)
    _sequence, _position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, CHUNK)
    groups = heads // heads_in_group
    group, part = tl.program_id(1) % groups, tl.program_id(1) // groups
    t, p = tl.arange(0, CHUNK), tl.arange(0, BLOCK_P)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    of_B = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    of_C = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    pairs = tl.zeros((CHUNK, CHUNK), tl.float32)
    mask = (p < tl.where(count > 0, columns, 0))[:, None] & (n < states)[None, :]
    first = group * heads_in_group + part * heads_in_part
    for head in range(first, tl.minimum(first + heads_in_part, (group + 1) * heads_in_group)):
        c = load_line(cums, slot, head, heads, t, CHUNK)
        cuts = load_line(cut_counts, slot, head, heads, t, CHUNK)
        step = load_line(steps, slot, head, heads, t, CHUNK)
        g = load_tile(grad_y + head * stride_y_head, row, stride_y, t, p, count, columns)
        u = load_tile(x + head * stride_x_head, row, stride_x, t, p, count, columns)
        pairs += (
            matmul(g, tl.trans(u), tl.zeros((CHUNK, CHUNK), tl.float32), PRECISION) * reach(c, cuts, t) * step[None, :]
        )
        place = (slot * heads + head) * columns * states + (p[:, None] * states + n[None, :])
        scale = reach_from_start(c, cuts)
        g = tl.where((scale != 0.0)[:, None], g.to(tl.float32) * scale[:, None], 0.0).to(u.dtype)
        state = tl.load(starts + place, mask=mask, other=0.0).to(u.dtype)
        of_C = matmul(g, state, of_C, PRECISION)
        scale = reach_end(cums, cut_counts, slot, head, heads, c, cuts, CHUNK) * step
        u = tl.where((scale != 0.0)[:, None], u.to(tl.float32) * scale[:, None], 0.0).to(u.dtype)
        state = tl.load(backs + place, mask=mask, other=0.0).to(u.dtype)
        of_B = matmul(u, state, of_B, PRECISION)
    b = load_tile(B + group * stride_B_group, row, stride_B, t, n, count, states)
    of_C = matmul(pairs.to(b.dtype), b, of_C, PRECISION)
    b = load_tile(C + group * stride_C_group, row, stride_C, t, n, count, states)
    of_B = matmul(tl.trans(pairs.to(b.dtype)), b, of_B, PRECISION)
    place = (
        part.to(tl.int64) * stride_part
        + (row * groups + group) * states
        + (t[:, None] * (groups * states) + n[None, :])
    )
    mask = (t < count)[:, None] & (n < states)[None, :]
    tl.store(grad_B + place, of_B, mask=mask)
    tl.store(grad_C + place, of_C, mask=mask)
