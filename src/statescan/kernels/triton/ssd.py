"""Structured state-space duality on a GPU, in chunks: products of matrices inside them, a recurrence between them.

Forward: running sums of log decays; the products C B^T of every chunk, which its heads share; every chunk's state from
a zero start; the states between chunks; the outputs. Backward computes all but the outputs again, then the same two
steps back in time for the gradients of states, then those of the inputs. Sums and states are float32; products of
matrices take their operands in the type of x, and accumulate in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from statescan.kernels.triton import _ssd as kernels
from statescan.kernels.triton import _tuning
from statescan.kernels.triton._common import (
    FUSED,
    INTERPRETED,
    Chunks,
    flags,
    on_device,
    power_of_two,
    processors,
    rows,
)

#: The widest head that a program holds.
WIDEST = 128


#: Triton 3.2 dies of an assertion when it compiles the products of `weight_gradients` for eight warps.
WARPS_BACK = 4 if triton.__version__.startswith("3.2.") else 8


class Way(NamedTuple):
    """How a direction is launched: what part of the chunk asked for it takes, warps (0: as the sizes say), stages."""

    part: int
    warps: int
    stages: int


FORWARD = (Way(1, 0, 2), Way(2, 0, 2), Way(1, 4, 2), Way(1, 0, 3))
BACKWARD = (Way(1, WARPS_BACK, 1), Way(2, 4, 1), Way(1, 4, 1))


def _chunk(x: Tensor, wanted: int, most: int, way: Way) -> int:
    """The chunk's length: a power of two, at most `most`, or 64 where x takes twice the room."""
    chunk = power_of_two(min(wanted, x.shape[1]), 16, min(most, 64) if x.dtype == torch.float32 else most)
    return max(16, chunk // way.part)


class _Problem:
    """The arguments of both directions, as the kernels take them, and the arrays that both compute."""

    def __init__(self, x, delta, A, B, C, D, resets, offsets, chunk: int, way: Way):
        self.heads, self.columns = x.shape[2:]
        self.groups, self.states = B.shape[2:]
        self.chunk = chunk
        self.chunks = Chunks(x.shape[0], x.shape[1], offsets, self.chunk)
        self.x, self.delta, self.B, self.C = (rows(t) for t in (x, delta, B, C))
        self.A, self.D = A.contiguous(), None if D is None else D.contiguous()
        self.resets, self.offsets = flags(resets), None if offsets is None else offsets.contiguous()
        self.in_group = self.heads // self.groups
        self.span = (self.chunks.length, self.chunks.sequences)
        self.sizes = (*self.span, self.heads, self.in_group, self.columns, self.states)
        self.block_p = power_of_two(self.columns, 16, WIDEST)
        self.block_n = power_of_two(self.states, 16, 32 if x.dtype == torch.float32 else 64)
        #: In full, three products in TF32 stand for one in float32.
        fast = x.dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32
        self.order = {"PACKED": self.chunks.packed, "CHUNK": self.chunk}
        self.precise = {**self.order, "PRECISION": "tf32" if fast else "ieee" if INTERPRETED else "tf32x3"}
        self.tile = {"BLOCK_P": self.block_p, "BLOCK_N": self.block_n}
        warps = way.warps or (8 if max(chunk, self.block_p) > 64 else 4)
        self.options = {"num_warps": warps, "num_stages": way.stages, **FUSED}

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def boundary(self, state: Tensor | None) -> Tensor:
        """A state of every sequence, or zeros."""
        out = self.new(self.chunks.sequences, self.heads, self.columns, self.states)
        return out.zero_() if state is None else out.copy_(state)

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of every chunk and head: steps, sums of log decays, counts of cuts, and the whole chunk's decay."""
        steps = self.new(self.chunks.slots, self.heads, self.chunk)
        cums, cuts = torch.empty_like(steps), torch.empty_like(steps, dtype=torch.int32)
        decays = self.new(self.chunks.slots, self.heads)
        block = power_of_two(self.heads, 1, 16)
        kernels.sums[(self.chunks.slots, -(-self.heads // block))](
            self.delta, self.A, self.resets, self.offsets, steps, cums, cuts, decays, self.delta.stride(0),
            *self.span, self.heads, **self.order, BLOCK=block, num_warps=4, **FUSED,
        )  # fmt: skip
        return steps, cums, cuts, decays

    def squares(self) -> Tensor:
        """C B^T of every chunk and group."""
        out = self.new(self.chunks.slots, self.groups, self.chunk, self.chunk)
        kernels.products[(self.chunks.slots, self.groups)](
            self.B, self.C, self.offsets, out, self.B.stride(0), self.C.stride(0), self.B.stride(1), self.C.stride(1),
            *self.span, self.states, **self.precise, BLOCK_N=self.block_n, **self.options,
        )  # fmt: skip
        return out

    def states_between(self, x: Tensor, B: Tensor, sums: tuple, boundary: Tensor, back: bool) -> Tensor:
        """The state before every chunk, or the gradient of that after it; `boundary` goes through all chunks."""
        steps, cums, cuts, decays = sums
        out = self.new(self.chunks.slots, self.heads, self.columns, self.states)
        kernels.chunk_states[(self.chunks.slots, self.heads, -(-self.states // self.block_n))](
            x, B, steps, cums, cuts, self.offsets, out, x.stride(0), x.stride(1), B.stride(0), B.stride(1),
            *self.sizes, BACK=back, **self.precise, **self.tile, **self.options,
        )  # fmt: skip
        size = self.columns * self.states
        block = power_of_two(size, 16, 1024)
        kernels.pass_states[(self.chunks.sequences, self.heads, -(-size // block))](
            out, decays, self.offsets, boundary, self.chunks.length, self.heads, size,
            BACK=back, **self.order, BLOCK=block, num_warps=4, **FUSED,
        )  # fmt: skip
        return out


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The registered operator's body: (y, last state)."""
    if not x.numel():
        count = x.shape[0] if offsets is None else offsets.shape[0] - 1
        last = torch.zeros(count, *x.shape[2:], B.shape[3], dtype=torch.float32, device=x.device)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        return y, last if initial_state is None else last.copy_(initial_state)

    def run(way: Way) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        p = _Problem(x, delta, A, B, C, D, resets, offsets, _chunk(x, chunk_size, 128, way), way)
        sums, boundary = p.sums(), p.boundary(initial_state)
        starts = p.states_between(p.x, p.B, sums, boundary, back=False)
        block = min(p.block_p, 64)
        kernels.outputs[(p.chunks.slots, p.heads, -(-p.columns // block))](
            p.x, p.C, p.D, *sums[:3], starts, p.squares(), p.offsets, y,
            p.x.stride(0), p.x.stride(1), p.C.stride(0), p.C.stride(1), *p.sizes,
            D_COLUMNS=D is not None and D.ndim == 2, **p.precise, **{**p.tile, "BLOCK_P": block}, **p.options,
        )  # fmt: skip
        return y, boundary

    with on_device(x):
        return _tuning.fastest("ssd", x, _kind(x, B, offsets, chunk_size), FORWARD, run)


def _kind(x: Tensor, B: Tensor, offsets: Tensor | None, chunk_size: int) -> tuple[int, ...]:
    """What a choice depends on beside x."""
    return x.shape[2], *B.shape[2:], offsets is None, chunk_size


def backward(
    grad_y: Tensor | None,
    grad_last_state: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    chunk_size: int,
) -> list[Tensor | None]:
    """The registered gradient's body: the gradients of x, delta, A, B, C, D and the initial state."""
    if not x.numel():
        zeros = [None if t is None else t.new_zeros(t.shape) for t in (x, delta, A, B, C, D, initial_state)]
        if initial_state is not None and grad_last_state is not None:
            zeros[6] = grad_last_state.clone(memory_format=torch.contiguous_format)
        return zeros

    def run(way: Way) -> list[Tensor | None]:
        # Gradients hold several tiles at a time: long chunks would not fit, whatever forward took.
        p = _Problem(x, delta, A, B, C, D, resets, offsets, _chunk(x, chunk_size, 64, way), FORWARD[0])
        sums = p.sums()
        steps, cums, cuts, decays = sums
        grad = torch.zeros_like(p.x) if grad_y is None else rows(grad_y.to(x.dtype))
        boundary = p.boundary(grad_last_state)
        starts = p.states_between(p.x, p.B, sums, p.boundary(initial_state), back=False)
        backs = p.states_between(grad, p.C, sums, boundary, back=True)
        grad_x, grad_delta = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, delta))
        parts_A = p.new(p.chunks.slots, p.heads)
        parts_D = None if D is None else p.new(p.chunks.slots, p.heads, p.columns)
        heavy = {"num_warps": way.warps, "num_stages": way.stages, **FUSED}
        strides = [s for t in (p.x, grad, p.B, p.C) for s in t.stride()[:2]]
        kernels.input_gradients[(p.chunks.slots, p.heads)](
            p.x, p.B, p.C, p.A, p.D, grad, *sums, starts, backs, p.squares(), p.offsets,
            grad_x, grad_delta, parts_A, parts_D, *strides, *p.sizes,
            D_COLUMNS=D is not None and D.ndim == 2, **p.precise, **p.tile, **heavy,
        )  # fmt: skip
        # Heads of a group share B and C: their gradients gather in one program, or in a few where programs are few.
        blocks = p.chunks.slots * p.groups * -(-p.states // p.block_n)
        parts = min(p.in_group, max(1, 4 * processors(x.device) // blocks))
        in_part = -(-p.in_group // parts)
        parts = -(-p.in_group // in_part)
        parts_B = p.new(parts, *B.shape)
        parts_C = torch.empty_like(parts_B)
        kernels.weight_gradients[(p.chunks.slots, p.groups * parts, -(-p.states // p.block_n))](
            p.x, p.B, p.C, grad, steps, cums, cuts, starts, backs, p.offsets, parts_B, parts_C,
            *strides, parts_B.stride(0), *p.span, p.heads, p.in_group, in_part, p.columns, p.states,
            **p.precise, **p.tile, **heavy,
        )  # fmt: skip
        grad_D = None
        if parts_D is not None and D is not None:
            grad_D = parts_D.sum(0) if D.ndim == 2 else parts_D.sum((0, 2))
        return [
            grad_x,
            grad_delta,
            parts_A.sum(0),
            parts_B.sum(0).to(B.dtype),
            parts_C.sum(0).to(C.dtype),
            grad_D,
            None if initial_state is None else boundary,
        ]

    with on_device(x):
        return _tuning.fastest("ssd, back", x, _kind(x, B, offsets, chunk_size), BACKWARD, run)
