"""The selective scan on a GPU: chunks of every sequence run side by side, states pass between them.

Forward: every chunk's end state from a zero start, then the states between chunks, then the outputs. Where sequences
and channels alone fill the GPU, one program walks each sequence instead and the first two are not needed. Backward,
from the states that forward kept before every chunk: `chunk_gradients`, gradients between chunks, `input_gradients`.
No sum depends on the order in which programs run, so results repeat to the bit.

Arrays hold floats, channels innermost; a complex state is two planes, real and imaginary, beside each other. B and C,
where they vary, are laid out by `pack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from statescan.kernels.triton import _selective_scan as kernels
from statescan.kernels.triton import _tuning
from statescan.kernels.triton._common import (
    CHUNK,
    FUSED,
    INTERPRETED,
    LOG2E,
    Chunks,
    flags,
    floats,
    on_device,
    power_of_two,
    processors,
    rows,
    stride,
)
from statescan.kernels.triton._tiles import pack, unpack


class Way(NamedTuple):
    """How a direction is launched.

    Fields:
        tile: positions in a tile, a power of two. With two channels a thread, gradients of 8 fill the registers.
        other: forward walks whole sequences where it would cut them into chunks, and the other way about.
    """

    tile: int
    other: bool = False


FORWARD: tuple[Way, ...] = (Way(8), Way(16), Way(32), Way(8, other=True))
BACKWARD: tuple[Way, ...] = (Way(8), Way(16), Way(4))
if INTERPRETED:
    FORWARD, BACKWARD = (Way(16), Way(8), Way(16, other=True)), (Way(16), Way(8))

#: A program owns so many channels; one warp, two channels a thread.
BLOCK = 8 if INTERPRETED else 64

#: From this many sequences times blocks for each processor on, forward walks whole sequences.
SERIAL_FROM = 8


class Problem:
    """The arguments of both directions, as the kernels take them.

    With an order, the walks over a grid: x (batch, cells, channels of a walk); delta that of the first walk, the others
    each `stride_walk` further; B and C (batch, cells, walks, states); all else as of walks x channels channels.
    """

    def __init__(self, x, delta, A, B, C, D, z, delta_bias, resets, offsets, delta_softplus, order=None, stride_walk=0):
        self.cells = x.shape[1]
        self.chunks = Chunks(x.shape[0], x.shape[1] if order is None else order.shape[1], offsets)
        self.order = None if order is None else order.contiguous()
        self.stride_walk = stride_walk
        self.channels = A.shape[0]
        self.is_complex = A.is_complex()
        self.states = A.shape[1]
        self.planes = self.states * (2 if self.is_complex else 1)
        self.softplus = delta_softplus
        self.x, self.delta, self.z = rows(x), rows(delta), None if z is None else rows(z)
        self.D, self.delta_bias = (None if v is None else v.contiguous() for v in (D, delta_bias))
        self.resets = flags(resets)
        self.offsets = None if offsets is None else offsets.contiguous()
        groups = [1 if w.ndim == 2 else w.shape[2] for w in (B, C)]
        self.groups = math.lcm(*groups)
        self.group_channels = self.channels // self.groups
        self.group_blocks = -(-self.group_channels // BLOCK)
        self.blocks = self.groups * self.group_blocks
        #: Blocks of channels that share a row of B, and of C.
        self.blocks_B, self.blocks_C = (self.blocks // count for count in groups)
        self.A = self.planes_of(A)
        self.A[:: 2 if self.is_complex else 1] *= LOG2E
        self.B, self.C = self.packed(B), self.packed(C)
        self.constant_B, self.constant_C = B.ndim == 2, C.ndim == 2

    def planes_of(self, tensor: Tensor) -> Tensor:
        """(..., channels, states), real or complex, as a new (..., planes, channels) in float32."""
        planes = floats(tensor).flatten(-2) if self.is_complex else tensor
        return torch.empty_like(planes.mT, dtype=torch.float32, memory_format=torch.contiguous_format).copy_(planes.mT)

    def from_planes(self, planes: Tensor, dtype: torch.dtype) -> Tensor:
        """The way back of `planes_of`."""
        values = planes.mT.contiguous()
        return torch.view_as_complex(values.unflatten(-1, (-1, 2))) if self.is_complex else values.to(dtype)

    def grid_of_weights(self, groups: int) -> tuple[int, int, int, int]:
        block = power_of_two(self.planes, 1, 64)
        return self.chunks.slots, groups, -(-self.planes // block), block

    def packed(self, weights: Tensor) -> Tensor:
        """B or C: (planes, channels) where constant, else (slots, groups, planes, CHUNK)."""
        if weights.ndim == 2:
            return self.planes_of(weights)
        source = rows(floats(weights).flatten(-2) if self.is_complex else weights)
        chunks = self.chunks
        *grid, block = self.grid_of_weights(source.shape[1])
        out = torch.empty(chunks.slots, source.shape[1], self.planes, CHUNK, dtype=torch.float32, device=weights.device)
        pack[tuple(grid)](
            source, out, self.offsets, self.order, source.stride(0), source.stride(1), chunks.length, self.cells,
            chunks.sequences, self.planes, PACKED=chunks.packed, CHUNK=CHUNK, BLOCK=block, num_warps=4, **FUSED,
        )  # fmt: skip
        return out

    def new_weights(self, weights: Tensor, blocks: int) -> Tensor:
        """Room for the parts of a gradient of B or C: a part a chunk where constant, else a part a block."""
        if weights.ndim == 2:
            return self.per_chunk()
        return self.new(blocks, self.chunks.slots, weights.shape[2], self.planes, CHUNK)

    def sum_weights(self, parts: Tensor, weights: Tensor) -> Tensor:
        """The gradient of B or C from its parts."""
        if weights.ndim == 2:
            return self.from_planes(parts.sum(0), weights.dtype)
        chunks, groups = self.chunks, weights.shape[2]
        *grid, block = self.grid_of_weights(groups)
        out = self.new_like(weights)
        unpack[tuple(grid)](
            parts, floats(out), self.offsets, self.order, chunks.length, self.cells,
            chunks.sequences, self.planes, parts.shape[0], parts.stride(0),
            PACKED=chunks.packed, CHUNK=CHUNK, BLOCK=block, num_warps=4, **FUSED,
        )  # fmt: skip
        return out

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def new_like(self, tensor: Tensor) -> Tensor:
        """Room for what has a row a position: zeros where an order may leave rows out."""
        new = torch.empty_like if self.order is None else torch.zeros_like
        return new(tensor, memory_format=torch.contiguous_format)

    def boundary(self, state: Tensor | None) -> Tensor:
        """A state of every sequence, (sequences, planes, channels), or zeros."""
        if state is not None:
            return self.planes_of(state)
        return self.new(self.chunks.sequences, self.planes, self.channels).zero_()

    def per_chunk(self) -> Tensor:
        return self.new(self.chunks.slots, self.planes, self.channels)

    def pass_states(self, ends: Tensor, totals: Tensor, cuts: Tensor | None, boundary: Tensor, back: bool) -> None:
        chunks = self.chunks
        block = power_of_two(self.channels, 8, 128)
        kernels.pass_states[(chunks.sequences, -(-self.channels // block), self.states)](
            self.A, ends, totals, cuts, self.offsets, boundary, chunks.length, chunks.sequences, 1,
            self.channels, self.states, COMPLEX=self.is_complex, PACKED=chunks.packed, BACK=back,
            CHUNK=CHUNK, BLOCK=block, num_warps=4, **FUSED,
        )  # fmt: skip

    def new_cuts(self) -> Tensor | None:
        return None if self.resets is None else self.new(self.chunks.slots, dtype=torch.int32)


def scan(p: Problem, boundary: Tensor, y: Tensor, starts: Tensor | None, way: Way = FORWARD[0]) -> None:
    """Write y, the last state into `boundary`, which holds the first, and into `starts` the state before every chunk."""
    chunks = p.chunks
    fills = chunks.sequences * p.blocks >= SERIAL_FROM * processors(y.device)
    serial = chunks.each <= 1 or fills != way.other
    if not serial:
        starts = p.per_chunk() if starts is None else starts
        totals, cuts = p.new(chunks.slots, p.channels), p.new_cuts()
        kernels.chunk_ends[(chunks.slots, p.blocks)](
            p.x, p.delta, p.A, p.B, p.delta_bias, p.resets, p.offsets, p.order, starts, totals, cuts,
            stride(p.x), stride(p.delta), p.stride_walk, chunks.length, p.cells, chunks.sequences, 1,
            p.channels, p.group_channels, p.group_blocks, p.blocks_B, p.states,
            COMPLEX=p.is_complex, SOFTPLUS=p.softplus, CONSTANT_B=p.constant_B, PACKED=chunks.packed,
            CHUNK=CHUNK, TILE=way.tile, BLOCK=BLOCK, num_warps=1, **FUSED,
        )  # fmt: skip
        p.pass_states(starts, totals, cuts, boundary, back=False)
    kernels.outputs[(chunks.sequences if serial else chunks.slots, p.blocks)](
        p.x, p.delta, p.A, p.B, p.C, p.D, p.z, p.delta_bias, p.resets, p.offsets, p.order, starts,
        boundary if serial else p.per_chunk(), y,
        stride(p.x), stride(p.delta), p.stride_walk, stride(p.z), chunks.length, p.cells, chunks.sequences, 1,
        p.channels, p.group_channels, p.group_blocks, p.blocks_B, p.blocks_C, p.states,
        COMPLEX=p.is_complex, SOFTPLUS=p.softplus, CONSTANT_B=p.constant_B, CONSTANT_C=p.constant_C,
        PACKED=chunks.packed, SERIAL=serial, CHUNK=CHUNK, TILE=way.tile, BLOCK=BLOCK, num_warps=1, **FUSED,
    )  # fmt: skip


def gradients(
    p: Problem,
    grad_rows: Tensor,
    starts: Tensor,
    boundary: Tensor,
    weights: tuple[Tensor, Tensor],
    grad_x: Tensor,
    grad_delta: Tensor,
    grad_z: Tensor | None,
    way: Way = BACKWARD[0],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Write the gradients of x, delta and z, and in `boundary` that of the first state, where that of the last one is.

    Returns those of A (in planes), of the `weights` B and C, of D and of the bias.
    """
    chunks, channels = p.chunks, p.channels
    tile_starts = p.new(chunks.slots, CHUNK // way.tile, p.planes, channels)
    back, totals, cuts = p.per_chunk(), p.new(chunks.slots, channels), p.new_cuts()
    parts_B, parts_C = p.new_weights(weights[0], p.blocks_B), p.new_weights(weights[1], p.blocks_C)
    parts_A = p.per_chunk()
    parts_D = None if p.D is None else p.new(chunks.slots, channels)
    parts_bias = None if p.delta_bias is None else p.new(chunks.slots, channels)
    sizes = (
        stride(p.x), stride(p.delta), p.stride_walk, stride(p.z), stride(grad_rows), chunks.length, p.cells,
        chunks.sequences, 1, channels, p.group_channels, p.group_blocks, p.blocks_B, p.blocks_C, p.states,
    )  # fmt: skip
    options = {
        "COMPLEX": p.is_complex, "SOFTPLUS": p.softplus, "CONSTANT_B": p.constant_B,
        "CONSTANT_C": p.constant_C, "PACKED": chunks.packed,
        "CHUNK": CHUNK, "TILE": way.tile, "BLOCK": BLOCK, "num_warps": 1, **FUSED,
    }  # fmt: skip
    arguments = (p.x, p.delta, p.A, p.B, p.C, p.D, p.z, p.delta_bias, p.resets, p.offsets, p.order, grad_rows, starts)
    kernels.chunk_gradients[(chunks.slots, p.blocks)](
        *arguments, tile_starts, back, totals, cuts, grad_z, parts_C, *sizes, **options
    )
    p.pass_states(back, totals, cuts, boundary, back=True)
    kernels.input_gradients[(chunks.slots, p.blocks)](
        *arguments, tile_starts, back, grad_x, grad_delta, parts_A, parts_B, parts_D, parts_bias, *sizes,
        BITS=way.tile.bit_length() - 1, **options,
    )  # fmt: skip
    return (
        parts_A.sum(0),
        p.sum_weights(parts_B, weights[0]),
        p.sum_weights(parts_C, weights[1]),
        None if parts_D is None else parts_D.sum(0),
        None if parts_bias is None else parts_bias.sum(0),
    )


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The registered operator's body: (y, last state, states before every chunk)."""
    chunks = Chunks(x.shape[0], x.shape[1], offsets)
    room = chunks.rows // CHUNK + chunks.sequences if save_states else 0

    def run(way: Way) -> tuple[Tensor, Tensor, Tensor]:
        p = Problem(x, delta, A, B, C, D, z, delta_bias, resets, offsets, delta_softplus)
        states = torch.zeros(room, A.shape[1], A.shape[0], dtype=A.dtype, device=x.device)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        boundary = p.boundary(initial_state)
        scan(p, boundary, y, floats(states) if save_states else None, way)
        return y, p.from_planes(boundary, torch.float32), states

    with on_device(x):
        if not x.numel():
            shape = (chunks.sequences, *A.shape)
            last = (
                A.new_zeros(shape)
                if initial_state is None
                else initial_state.clone(memory_format=torch.contiguous_format)
            )
            y = torch.empty_like(x, memory_format=torch.contiguous_format)
            return y, last, torch.zeros(room, A.shape[1], A.shape[0], dtype=A.dtype, device=x.device)
        return _tuning.fastest("selective_scan", x, _kind(A, chunks, resets, save_states), FORWARD, run)


def backward(
    grad_y: Tensor | None,
    grad_last_state: Tensor | None,
    states: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> list[Tensor | None]:
    """The registered gradient's body: the gradients of x, delta, A, B, C, D, z, delta_bias and the initial state."""
    arguments = (x, delta, A, B, C, D, z, delta_bias, initial_state)
    if not x.numel():
        zeros = [None if t is None else t.new_zeros(t.shape) for t in arguments]
        if initial_state is not None and grad_last_state is not None:
            zeros[8] = grad_last_state.clone(memory_format=torch.contiguous_format)
        return zeros
    if not states.shape[0]:  # forward ran on another implementation, or was not asked to keep them
        states = forward(*arguments, resets, offsets, delta_softplus, True)[2]
    kept = states

    def run(way: Way) -> list[Tensor | None]:
        p = Problem(x, delta, A, B, C, D, z, delta_bias, resets, offsets, delta_softplus)
        grad_rows = torch.zeros_like(p.x) if grad_y is None else rows(grad_y)
        boundary = p.boundary(grad_last_state)
        grad_x, grad_delta = p.new_like(x), p.new_like(delta)
        grad_z = None if z is None else p.new_like(z)
        grad_A, grad_B, grad_C, grad_D, grad_bias = gradients(
            p, grad_rows, floats(kept), boundary, (B, C), grad_x, grad_delta, grad_z, way
        )
        return [
            grad_x,
            grad_delta,
            p.from_planes(grad_A, A.dtype),
            grad_B,
            grad_C,
            grad_D,
            grad_z,
            grad_bias,
            None if initial_state is None else p.from_planes(boundary, initial_state.dtype),
        ]

    with on_device(x):
        kind = _kind(A, Chunks(x.shape[0], x.shape[1], offsets), resets, True)
        return _tuning.fastest("selective_scan, back", x, kind, BACKWARD, run)


def _kind(A: Tensor, chunks: Chunks, resets: Tensor | None, kept: bool) -> tuple[int, ...]:
    """What a choice depends on beside x."""
    sequences = power_of_two(chunks.sequences, 1, 1 << 30)
    return A.shape[1], A.is_complex(), sequences, chunks.packed, resets is not None, kept
