"""S4 and S4D as convolutions, beside the same formulas with their matrices written out; and `fft_conv` beside torch.fft.

python -m benchmarks.structured_speed [kernels] [memory] [convolution]

compares results first, then times both in one run, taking turns. The kernels' peers are what the published code falls
back on without its extensions: the (states, length) matrices of exponentials or of quotients in PyTorch, then torch.fft.
Memory is what a forward and a backward pass add to the peak of a process of their own. ``--no-save`` leaves
``benchmarks/results/structured_speed.json`` and ``.md`` as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from statescan import layers, ops

Call = Callable[[], Any]
LENGTH, DIM, STATE = 16_384, 256, 64
LONG = 65_536
SYSTEMS: dict[str, type[layers.DiagonalKernel]] = {"s4d": layers.DiagonalKernel, "s4": layers.DPLRKernel}


# ---- the peers: matrices written out --------------------------------------------------------------------------


def diagonal_formula(system: layers.DiagonalKernel, length: int) -> Tensor:
    """Gu et al. 2022 (S4D), section 3.2: the kernel (dim, length) by the whole Vandermonde matrix."""
    dt, A, B, C = system.system()
    exponents = dt * A
    weights = C[0] * B * (torch.exp(exponents) - 1) / A
    matrix = torch.exp(exponents[..., None] * torch.arange(length))
    return 2 * torch.einsum("hn,hnl->hl", weights, matrix).real


def low_rank_formula(system: layers.DiagonalKernel, length: int) -> Tensor:
    """Gu, Goel and Re 2022 (S4), algorithm 1: the kernel (dim, length) by the whole Cauchy matrix, for rank 1.

    The published code divides every pair of rows by the matrix, four such matrices; here one is shared, since four and
    their gradients do not fit a machine of 24 GB at the sizes below.
    """
    assert isinstance(system, layers.DPLRKernel)
    dt, A, B, C = system.system()
    P = torch.view_as_complex(system.P)
    v = torch.stack([B, P[0]])[:, None] * torch.stack([C[0], P[0].conj()])[None] * dt
    nodes = torch.polar(torch.ones(()), torch.tensor(-2 * math.pi / length)) ** torch.arange(length // 2 + 1)
    z = 2 * (1 - nodes) / (1 + nodes)
    v, w = torch.cat([v, v.conj()], dim=-1), torch.cat([A * dt, (A * dt).conj()], dim=-1)
    r = torch.einsum("rchn,hnj->rchj", v, 1 / (z - w[..., None]))
    spectrum = (r[0, 0] - r[0, 1] * r[1, 0] / (1 + r[1, 1])) * 2 / (1 + nodes)
    return torch.fft.irfft(spectrum, n=length)


FORMULAS = {"s4d": diagonal_formula, "s4": low_rank_formula}


def whole_convolution(rows: Tensor, kernel: Tensor, D: Tensor) -> Tensor:
    """(batch, dim, length), as published: one transform of everything at twice the length."""
    size = 2 * rows.shape[-1]
    spectrum = torch.fft.rfft(rows, n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : rows.shape[-1]] + D[:, None] * rows


def chunked_convolution(rows: Tensor, kernel: Tensor, D: Tensor, gate: Tensor | None = None, chunk: int = 16) -> Tensor:
    """The same, some channels at a time, so that their spectra stay in the cache."""
    out = torch.empty_like(rows)
    for start in range(0, rows.shape[1], chunk):
        part = slice(start, start + chunk)
        u = rows[:, part] if gate is None else rows[:, part] * gate[:, part]
        out[:, part] = whole_convolution(u, kernel[part], D[part])
    return out


# ---- kernel generation and convolution ------------------------------------------------------------------------


class Problem:
    """One system with its input; our call and the formula's, forward and with gradients."""

    def __init__(self, name: str, length: int, dim: int, state: int):
        torch.manual_seed(0)
        self.name, self.length = name, length
        options = {"max_length": length} if name == "s4" else {}
        self.system = SYSTEMS[name](dim, state, **options)
        with torch.no_grad():
            self.system(min(length, 64)) if name == "s4d" else self.system(length)  # S4 truncates C once
        self.D = torch.randn(dim, requires_grad=True)
        self.x = torch.randn(1, length, dim).requires_grad_()
        self.rows = self.x.detach().mT.contiguous().requires_grad_()  # in the formula's own layout
        self.grad = torch.randn(1, length, dim)
        self.grad_rows = self.grad.mT.contiguous()

    def ours(self) -> Tensor:
        return ops.fft_conv(self.x, self.system(self.length)[0][0], self.D)

    def formula(self) -> Tensor:
        return whole_convolution(self.rows, FORMULAS[self.name](self.system, self.length), self.D)

    def gradients(self, which: str) -> tuple[Tensor, ...]:
        ours = which == "ours"
        leaves = [self.x if ours else self.rows, self.D, *self.system.parameters()]
        y = self.ours() if ours else self.formula()
        return torch.autograd.grad(y, leaves, self.grad if ours else self.grad_rows)

    def forward(self, which: str) -> Tensor:
        with torch.no_grad():
            return self.ours() if which == "ours" else self.formula()

    def check(self) -> float:
        """The largest difference of outputs and gradients, in units of the largest value of each."""
        pairs = [(self.forward("ours"), self.forward("formula").mT)]
        ours, theirs = self.gradients("ours"), self.gradients("formula")
        pairs += [(ours[0], theirs[0].mT), *zip(ours[1:], theirs[1:], strict=True)]
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def kernels(seconds: float, sizes: tuple[int, int, int] = (LENGTH, DIM, STATE)) -> list[dict[str, Any]]:
    """Times of kernel and convolution together, forward and with all gradients."""
    rows = []
    for name in SYSTEMS:
        small = Problem(name, 1024, 16, STATE)
        error = small.check()
        if not error < 1e-3:
            raise SystemExit(f"{name}: results differ by {error:.1e} of the largest")
        problem = Problem(name, *sizes)
        for direction, call in (("forward", problem.forward), ("forward + backward", problem.gradients)):
            candidates = {which: (lambda w=which, c=call: c(w)) for which in ("ours", "formula")}
            times = _measure.milliseconds(candidates, seconds=seconds, least=3, repeats={"ours": 3})
            rows.append({
                "system": name,
                "direction": direction,
                "ms": times["ours"],
                "formula, ms": times["formula"],
                "ratio": times["formula"] / times["ours"],
            })  # fmt: skip
    return rows


_PEAK = """
import json, sys
from benchmarks._measure import peak_memory, reset_peak_memory
from benchmarks.structured_speed import Problem
name, which, *sizes = sys.argv[1:]
Problem(name, 256, 16, 64).gradients(which)  # imports, thread pools and plans are there before
problem = Problem(name, *map(int, sizes))
before = reset_peak_memory()
problem.gradients(which)
print(json.dumps(peak_memory() - before))
"""


def memory(sizes: tuple[int, int, int] = (LENGTH, DIM, STATE)) -> list[dict[str, Any]]:
    """What a forward and a backward pass add to the memory of a process, gradients and y included."""
    rows = []
    for name in SYSTEMS:
        added = {}
        for which in ("ours", "formula"):
            command = [sys.executable, "-c", _PEAK, name, which, *map(str, sizes)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            added[which] = json.loads(done.stdout)
        rows.append({
            "system": name,
            "added at the peak, MB": added["ours"] / 1e6,
            "formula, MB": added["formula"] / 1e6,
            "ratio": added["formula"] / added["ours"],
        })  # fmt: skip
    return rows


# ---- the convolution by itself --------------------------------------------------------------------------------


def convolution(seconds: float, length: int = LONG, dim: int = DIM) -> list[dict[str, Any]]:
    """`fft_conv` beside torch.fft, whole and in the chunks that are fastest."""
    torch.manual_seed(0)
    x, gate = torch.randn(2, 1, length, dim)
    kernel, D = torch.randn(dim, length) / length, torch.randn(dim)
    rows, gate_rows = (t.mT.contiguous() for t in (x, gate))
    found = []
    with torch.no_grad():
        for gated in (False, True):
            ahead, ahead_rows = (gate, gate_rows) if gated else (None, None)
            given = rows if ahead_rows is None else rows * ahead_rows
            candidates: dict[str, Call] = {
                "ours": lambda g=ahead: ops.fft_conv(x, kernel, D, gate=g),
                "whole": lambda g=ahead_rows: whole_convolution(rows if g is None else rows * g, kernel, D),
            }
            for chunk in (8, 16, 32, 64):
                candidates[f"chunks of {chunk}"] = lambda g=ahead_rows, c=chunk: chunked_convolution(
                    rows, kernel, D, g, c
                )
            wanted = whole_convolution(given.double(), kernel.double(), D.double()).mT
            error = float((candidates["ours"]() - wanted).abs().max() / wanted.abs().max())
            if not error < 1e-5:
                raise SystemExit(f"fft_conv differs by {error:.1e} of the largest")
            times = _measure.milliseconds(candidates, seconds=seconds)
            best = min(times, key=lambda name: times[name] if name.startswith("chunks") else math.inf)
            found.append({
                "gate": "yes" if gated else "no",
                "ms": times["ours"],
                "torch.fft whole, ms": times["whole"],
                "torch.fft chunked, ms": times[best],
                "the best chunks": best,
                "ratio to chunked": times[best] / times["ours"],
                "difference from float64": error,
            })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="kernels, memory, convolution (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair of times (default: 10)")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    sizes = f"length {LENGTH:,}, dim {DIM}, state {STATE}, batch 1, float32"
    parts: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
        "memory": (f"Memory of kernel and convolution, forward + backward: {sizes}", memory),
        "kernels": (f"Kernel and convolution: {sizes}", lambda: kernels(options.seconds)),
        "convolution": (
            f"The convolution alone, forward: length {LONG:,}, dim {DIM}, batch 1, float32",
            lambda: convolution(options.seconds),
        ),
    }
    _measure.keep_freed_memory()
    tables = {}
    for name, (title, measure) in parts.items():
        if not options.part or name in options.part:
            tables[title] = measure()
            _measure.show(title, tables[title])
    if not options.no_save and not options.part:
        print(f"written to {_measure.save('structured_speed', tables, tables=tables)}")


if __name__ == "__main__":
    main()
