"""`ssd`, `causal_conv1d`, `linear_scan`, `gated_rms_norm`, `merged_scan`, `vandermonde` and `cauchy` beside plain PyTorch.

python -m benchmarks.operators [NAME ...]

compares results with the same formulas first, then prints the median times of both, in one run, taking turns. Some stand
beside their floor as well: their multiplications at the rate of the vector units, or their tensors read and written once
at the rate of a copy, whichever takes longer, both measured in the same run. ``--no-save`` leaves
``benchmarks/results/operators.json`` and ``.md`` as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _measure
from statescan import ops, routes
from statescan.kernels import cpu_ssd


@dataclass(frozen=True)
class Case:
    """An operator, what it stands beside, and the arguments of both."""

    operator: str
    sizes: str
    ours: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]
    forward_only: bool = False
    work: Callable[..., tuple[float, float]] | None = None  # of the arguments and `backward`: multiply-adds and bytes


# ---- the formulas --------------------------------------------------------------------------------------------


def chunked_ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int = 64) -> Tensor:
    """Dao and Gu 2024, listing 1: quadratic within chunks, a recurrence of states between them."""
    kind, per_group = x.dtype, x.shape[2] // B.shape[2]
    x, B, C = x.float(), B.float(), C.float()
    x, decay = x * delta[..., None], delta * A
    B, C = (w.repeat_interleave(per_group, dim=2) for w in (B, C))
    x, B, C, decay = (t.unflatten(1, (-1, chunk)) for t in (x, B, C, decay))
    decay = decay.permute(0, 3, 1, 2)  # (batch, heads, chunks, chunk)
    total = decay.cumsum(-1)
    within = torch.exp(_segment_sums(decay))
    y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, within, x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, torch.exp(total[..., -1:] - total), x)
    between = torch.exp(_segment_sums(F.pad(total[..., -1], (1, 0))))
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    return (y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(total))).flatten(1, 2).to(kind)


def _segment_sums(values: Tensor) -> Tensor:
    """Sums over (j, i] for j <= i, minus infinity elsewhere."""
    size = values.shape[-1]
    mask = torch.ones(size, size, dtype=torch.bool)
    spread = values[..., None].expand(*values.shape, size).masked_fill(~mask.tril(-1), 0)
    return spread.cumsum(-2).masked_fill(~mask.tril(), -torch.inf)


def conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    width, channels = weight.shape[1], x.shape[2]
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=width - 1, groups=channels)
    return F.silu(y[..., : x.shape[1]]).transpose(1, 2)


def gated_norm(x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
    h = x * F.silu(gate)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5) * weight


def scan_loop(a: Tensor, b: Tensor) -> Tensor:
    h, rows = torch.zeros_like(b[:, 0]), []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        rows.append(h)
    return torch.stack(rows, dim=1)


def scan_doubling(a: Tensor, b: Tensor) -> Tensor:
    """Hillis and Steele 1986: log2(length) passes over everything."""
    reach = 1
    while reach < b.shape[1]:
        b = torch.cat([b[:, :reach], torch.addcmul(b[:, reach:], a[:, reach:], b[:, :-reach])], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return b


def step_formula(state: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    per_group = x.shape[1] // B.shape[1]
    B, C = (w.repeat_interleave(per_group, dim=1) for w in (B, C))
    after = torch.exp(delta * A)[..., None, None] * state + (delta[..., None] * x)[..., None] * B[:, :, None]
    return torch.einsum("bhpn,bhn->bhp", after, C)


def vandermonde_formula(weights: Tensor, exponents: Tensor, length: int = 4096) -> Tensor:
    powers = torch.exp(exponents[..., None] * torch.arange(length))
    return 2 * torch.einsum("rhn,hnl->rhl", weights, powers).real


# ---- floors --------------------------------------------------------------------------------------------------


def ssd_work(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backward: bool = False
) -> tuple[float, float]:
    """The multiply-adds of the chunked form and the bytes it has to read and write, forward or forward and backward.

    Products of a head: forward, two with the state (C on it, B into it) and a triangle on x; backward, the state's again and
    four more (on the flow of B and of x, on the state of the output's gradient, and C into the flow) and two triangles.
    Products of a group, which its heads share: a triangle forward; the same again and two for its gradient.
    """
    batch, length, heads, head_dim = x.shape
    groups, state_dim = B.shape[2:]
    positions, state = batch * length, head_dim * state_dim

    def triangle(chunk: int) -> float:
        return (chunk + 1) / 2

    forward = triangle(cpu_ssd.chunk(64, state_dim))
    products = heads * (2 * state + forward * head_dim) + groups * forward * state_dim
    tensors = [x, x, delta, B, C]  # y is as large as x
    if backward:
        square = triangle(cpu_ssd.chunk(64, state_dim, backward=True))
        products += heads * (5 * state + 2 * square * head_dim) + groups * 3 * square * state_dim
        tensors += [x, x, x, delta, delta, B, B, C, C]  # what the backward pass reads, and the gradients
    return positions * products, float(sum(t.nbytes for t in tensors))


def merged_scan_work(x: Tensor, selected: Tensor, weight: Tensor, A: Tensor, *_: Tensor, backward: bool = False) -> Any:
    """A channel's step on a walk: `rank` multiply-adds for its size, 15 for the softplus, two for D x and step x; for each
    state five for its decay, one each to move it on, to feed it and to read it."""
    walks, channels, rank = weight.shape
    positions = x.shape[0] * x.shape[1] * walks * channels
    moved = 2 * x.nbytes + selected.nbytes
    return positions * (rank + 17 + 8 * A.shape[1]), float(moved)


def vandermonde_work(weights: Tensor, exponents: Tensor, *, length: int = 4096, backward: bool = False) -> Any:
    """A power is multiplied on to the next, four multiplications; its gradient's two sums are two more."""
    count = weights.numel() * length
    return count * (10 if backward else 4), float(length * weights.numel() // weights.shape[2] * 4)


def cauchy_work(v: Tensor, z: Tensor, w: Tensor, *, backward: bool = False) -> Any:
    """Of a pole and a node: 13 multiplications for the two quotients and four for each row; for the gradients the quotients
    again, eight for each row and twelve for the pole."""
    rows, count = v.shape[0], w.numel() * z.shape[0]
    products = 13 + 4 * rows + ((13 + 8 * rows + 12) if backward else 0)
    return count * products, float(8 * rows * w.shape[0] * z.shape[0])


# ---- the cases -----------------------------------------------------------------------------------------------


def _ssd_arguments(length: int, heads: int, head_dim: int, state_dim: int, groups: int = 1) -> tuple[Tensor, ...]:
    delta = F.softplus(torch.randn(1, length, heads) - 3)
    B, C = torch.randn(2, 1, length, groups, state_dim)
    return torch.randn(1, length, heads, head_dim), delta, -torch.rand(heads) * 15 - 1, B, C


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    for state_dim in (16, 64, 128, 256):
        sizes = f"length 1024, heads 24 x 64, state {state_dim}"
        yield Case("ssd", sizes, ops.ssd, chunked_ssd, _ssd_arguments(1024, 24, 64, state_dim), work=ssd_work)
    sizes = "length 1024, heads 24 x 64, state 128, bfloat16"
    x, delta, A, B, C = _ssd_arguments(1024, 24, 64, 128)
    narrow = (x.bfloat16(), delta, A, B.bfloat16(), C.bfloat16())
    yield Case("ssd", sizes, ops.ssd, chunked_ssd, narrow, work=ssd_work)
    x, weight, bias = torch.randn(1, 1024, 3072)[..., :1536], torch.randn(1536, 4), torch.randn(1536)
    yield Case(
        "causal_conv1d", "length 1024, half of 3072 channels, width 4, silu", _conv, conv1d_silu, (x, weight, bias)
    )
    x, weight, gate = torch.randn(1, 1024, 1536), torch.randn(1536), torch.randn(1, 1024, 1536)
    yield Case("gated_rms_norm", "length 1024, 1536 channels, gate", ops.gated_rms_norm, gated_norm, (x, weight, gate))
    a, b = torch.rand(1, 1024, 1536), torch.randn(1, 1024, 1536)
    yield Case("linear_scan", "length 1024, 1536 channels; a loop", ops.linear_scan, scan_loop, (a, b))
    yield Case("linear_scan", "length 1024, 1536 channels; doubling", ops.linear_scan, scan_doubling, (a, b))
    a = torch.polar(torch.rand(1, 1024, 768), torch.randn(1, 1024, 768))
    b = torch.randn(1, 1024, 768, dtype=torch.complex64)
    yield Case("linear_scan", "length 1024, 768 complex channels; a loop", ops.linear_scan, scan_loop, (a, b))
    x, delta, A, B, C = _ssd_arguments(1, 24, 64, 128)
    state = torch.randn(1, 24, 64, 128)
    now = (state, x[:, 0], delta[:, 0], A, B[:, 0], C[:, 0])
    yield Case("ssd_step", "heads 24 x 64, state 128", _step, step_formula, now, forward_only=True)
    for side, channels, rank in ((56, 96, 6), (14, 384, 24)):
        sizes = f"grid {side} x {side}, {channels} channels, four walks, rank {rank}, one state"
        order = routes.get("cross").table(side, side, torch.device("cpu"))

        def ours(*args: Tensor, order: Tensor = order) -> Tensor:
            return ops.merged_scan(*args[:-1], order=order, delta_bias=args[-1])

        def formula(*args: Tensor, order: Tensor = order) -> Tensor:
            return ops.merged_scan_reference(*args[:-1], order=order, delta_bias=args[-1])

        cells = side * side
        given = (torch.randn(1, cells, channels), torch.randn(1, cells, 4, rank + 2), torch.randn(4, channels, rank))
        weights = (-torch.rand(4 * channels, 1), torch.randn(4 * channels), torch.randn(4 * channels) - 3)
        yield Case("merged_scan", sizes, ours, formula, (*given, *weights), forward_only=True, work=merged_scan_work)
    exponents = torch.complex(-torch.rand(256, 32) * 0.01, torch.rand(256, 32) * 0.1)
    weights = torch.randn(1, 256, 32, dtype=torch.complex64)
    sizes = "length 4096, dim 256, 32 pairs of states"
    yield Case("vandermonde", sizes, _vandermonde, vandermonde_formula, (weights, exponents), work=vandermonde_work)
    v, poles = torch.randn(4, 64, 32, dtype=torch.complex64), torch.complex(-torch.rand(64, 32), torch.rand(64, 32))
    nodes = torch.complex(torch.zeros(2048), torch.linspace(0, 100, 2048))
    sizes = "2048 nodes, four rows, dim 64, 32 pairs of poles"
    yield Case("cauchy", sizes, *_at(nodes), (v, poles), work=lambda v, w, **kind: cauchy_work(v, nodes, w, **kind))


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = ops.causal_conv1d(x, weight, bias, activation="silu")
    assert isinstance(y, Tensor)
    return y


def _step(*args: Tensor) -> Tensor:
    return ops.ssd_step(*args)[0]


def _vandermonde(weights: Tensor, exponents: Tensor) -> Tensor:
    return ops.vandermonde(weights, exponents, 4096)


def _at(nodes: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Cauchy products at some nodes, ours and the formula."""
    return lambda v, w: ops.cauchy(v, nodes, w), lambda v, w: ops.cauchy_reference(v, nodes, w)


# ---- the comparison ------------------------------------------------------------------------------------------


def _trained(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Callable[[], Any]:
    leaves = [t.detach().requires_grad_() for t in arguments]
    weight = torch.randn_like(function(*arguments))

    def run() -> Any:
        return torch.autograd.grad(function(*leaves), leaves, weight)

    return run


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Check that both agree, then time them."""
    with torch.no_grad():
        ours, theirs = case.ours(*case.arguments), case.formula(*case.arguments)
        # The formula may round more often than the kernel does; figures are worthless where the two differ by more.
        tolerance = 3e-2 if case.arguments[0].dtype == torch.bfloat16 else 1e-4
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < tolerance, f"{case.operator}: off by {error:.1e} of the largest value"
        both = {"ours": lambda: case.ours(*case.arguments), "formula": lambda: case.formula(*case.arguments)}
        forward = _measure.milliseconds(both, seconds=seconds)
    row: dict[str, Any] = {"operator": case.operator, "sizes": case.sizes, "forward": forward}
    if not case.forward_only:
        both = {
            "ours": _trained(case.ours, case.arguments),
            "formula": _trained(case.formula, case.arguments),
        }
        row["forward and backward"] = _measure.milliseconds(both, seconds=seconds)
    if case.work is not None:
        products, copies = _measure.multiply_adds(), _measure.bandwidth()
        for kind, backward in (("forward", False), ("forward and backward", True)):
            if kind not in row:
                continue
            count, moved = case.work(*case.arguments, backward=backward)
            row[kind]["floor"] = 1e3 * max(count / products, moved / copies)
    return row


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of both, their ratio and, where the floor is known, which fraction of our time it is; a row a case."""
    flat = []
    for row in rows:
        columns = {"operator": row["operator"], "sizes, float32 unless said": row["sizes"]}
        for kind, label in (("forward", "forward"), ("forward and backward", "both")):
            times = row.get(kind)
            columns[f"{label}, ms"] = times and times["ours"]
            columns[f"{label}, PyTorch"] = times and times["formula"]
            columns[f"{label}, ratio"] = times and times["formula"] / times["ours"]
            columns[f"{label}, of floor"] = times and times.get("floor") and times["floor"] / times["ours"]
        flat.append(columns)
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operator", nargs="*", help="measure only these")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair of times (default: 1)")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    chosen = [case for case in cases() if not options.operator or case.operator in options.operator]
    known = sorted({case.operator for case in cases()})
    unknown = set(options.operator) - set(known)
    if unknown:
        parser.error(f"operator: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    rows = [measure(case, options.seconds) for case in chosen]
    title = "Medians in milliseconds: both is forward and backward"
    _measure.show(title, table(rows))
    if not options.no_save and not options.operator:
        print(f"written to {_measure.save('operators', rows, tables={title: table(rows)})}")


if __name__ == "__main__":
    main()
