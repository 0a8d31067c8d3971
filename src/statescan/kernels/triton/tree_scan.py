"""The scan along every path of a token tree on a GPU: a quadratic form a head, as in `ssd`, with the tree's mask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, on_device, power_of_two, stride


@triton.jit
def tree_kernel(
    x, delta, A, B, C, D, state, mask, y,
    stride_x, stride_x_node, stride_x_head, stride_delta, stride_delta_node, stride_B, stride_B_node, stride_B_group,
    stride_C, stride_C_node, stride_C_group, stride_mask,
    heads_in_group, nodes, columns, states,
    D_COLUMNS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = tl.arange(0, BLOCK_L)
    real, p_mask = i < nodes, p < columns
    step = tl.load(delta + row * stride_delta + i * stride_delta_node + head, mask=real, other=0.0)
    square = real[:, None] & real[None, :]
    path = tl.load(mask + row * stride_mask + i[:, None] * nodes + i[None, :], mask=square, other=0) != 0
    # Sums along paths, as a masked row sum and as a masked column sum: the same numbers along both axes.
    rate = step * tl.load(A + head)
    total = tl.sum(tl.where(path, rate[None, :], 0.0), 1)
    across = tl.trans(path)
    total_of_column = tl.sum(tl.where(across, rate[:, None], 0.0), 0)
    exponent = tl.where(path, total[:, None] - total_of_column[None, :], -float("inf"))
    B += row * stride_B + head // heads_in_group * stride_B_group
    C += row * stride_C + head // heads_in_group * stride_C_group
    products = tl.zeros((BLOCK_L, BLOCK_L), tl.float32)
    held = tl.zeros((BLOCK_L, BLOCK_P), tl.float32)
    for start in range(0, states, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        n_mask = n < states
        tile = real[:, None] & n_mask[None, :]
        b = tl.load(B + i[:, None] * stride_B_node + n[None, :], mask=tile, other=0.0).to(tl.float32)
        c = tl.load(C + i[:, None] * stride_C_node + n[None, :], mask=tile, other=0.0).to(tl.float32)
        products += tl.dot(c, tl.trans(b), input_precision="ieee")
        if state is not None:
            place = ((row * heads + head) * columns + p[None, :]) * states + n[:, None]
            s = tl.load(state + place, mask=n_mask[:, None] & p_mask[None, :], other=0.0)
            held += tl.dot(c, s, input_precision="ieee")
    tile = real[:, None] & p_mask[None, :]
    place = row * stride_x + i[:, None] * stride_x_node + head * stride_x_head + p[None, :]
    u = tl.load(x + place, mask=tile, other=0.0).to(tl.float32)
    out = tl.dot(products * tl.exp(exponent), step[:, None] * u, input_precision="ieee")
    if state is not None:
        out += tl.exp(total)[:, None] * held
    if D is not None:
        if D_COLUMNS:
            out += u * tl.load(D + head * columns + p, mask=p_mask, other=0.0)[None, :]
        else:
            out += u * tl.load(D + head)
    place = ((row * nodes + i[:, None]) * heads + head) * columns + p[None, :]
    tl.store(y + place, out.to(y.dtype.element_ty), mask=tile)


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, mask: Tensor
) -> tuple[Tensor]:
    """(y,); `mask` ([batch,] nodes, nodes) says which nodes are on the path to each, instead of their parents."""
    batch, nodes, heads, columns = x.shape
    states = B.shape[3]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.numel():
        return (y,)
    x, delta, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, delta, B, C))
    own = mask.ndim == 3
    mask = mask.to(torch.uint8).contiguous()
    block_l = power_of_two(nodes, 16, 128)
    block_p = power_of_two(columns, 16, 64 if block_l <= 64 else 32)
    block_n = power_of_two(states, 16, 64 if block_l <= 64 else 32)
    with on_device(x):
        tree_kernel[(batch, heads, -(-columns // block_p))](
            x, delta, A.contiguous(), B, C, None if D is None else D.contiguous(),
            None if state is None else state.contiguous(), mask, y,
            stride(x), stride(x, 1), stride(x, 2), stride(delta), stride(delta, 1), stride(B), stride(B, 1), stride(B, 2),
            stride(C), stride(C, 1), stride(C, 2), nodes * nodes if own else 0,
            heads // B.shape[2], nodes, columns, states,
            D_COLUMNS=D is not None and D.ndim == 2, BLOCK_L=block_l, BLOCK_P=block_p, BLOCK_N=block_n,
            num_warps=4 if block_l <= 32 else 8, **FUSED,
        )  # fmt: skip
    return (y,)
