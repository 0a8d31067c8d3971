"""What structure saves: companion kernels by polynomials, quasiseparable solves by elimination along a diagonal.

python -m benchmarks.structured_matrices

compares results with the dense way, then times both in one run, taking turns, in float32.
``--no-save`` leaves ``benchmarks/results/structured_matrices.json`` and ``.md`` as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import _measure
from statescan import ssm
from statescan.layers import QuasiseparableSystem

Call = Callable[[], torch.Tensor]


def kernel(size: int, length: int, *, channels: int = 8, gradient: bool = False) -> tuple[Call, Call]:
    """c A^l b for a companion matrix, fast and naive."""
    torch.manual_seed(0)
    a = torch.randn(channels, size)
    given = [a / a.abs().sum(-1, keepdim=True), torch.randn(channels, size), torch.randn(channels, size)]
    given = [tensor.requires_grad_(gradient) for tensor in given]

    def call(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        found = function(*given, length)
        return torch.autograd.grad(found.square().sum(), given)[0] if gradient else found

    return lambda: call(ssm.companion_kernel), lambda: call(ssm.companion_kernel_naive)


def solve(size: int, *, channels: int = 32) -> tuple[Call, Call]:
    """One step of the bilinear recurrence, with a tridiagonal system and with a dense one made anew."""
    torch.manual_seed(0)
    system, scale, right = QuasiseparableSystem(size), torch.full((channels,), 5e-3), torch.randn(channels, size, 1)
    A, _ = system.matrices()
    eye = torch.eye(size)
    return lambda: system.solve(right, scale), lambda: torch.linalg.solve(eye + scale[:, None, None] * A, right)


CASES: dict[str, Callable[[], tuple[Call, Call]]] = {
    "companion kernel, d 64, l 336": lambda: kernel(64, 336),
    "companion kernel, d 512, l 1,024": lambda: kernel(512, 1024),
    "companion kernel and gradient, d 64, l 336": lambda: kernel(64, 336, gradient=True),
    "companion kernel and gradient, d 512, l 1,024": lambda: kernel(512, 1024, gradient=True),
    "quasiseparable solve, N 64": lambda: solve(64),
    "quasiseparable solve, N 256": lambda: solve(256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair of times (default: 1)")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, build in CASES.items():
        fast, dense = build()
        want = dense()
        error = float((fast() - want).abs().max() / want.abs().max())
        if not error < 1e-3:
            raise SystemExit(f"{name}: results differ by {error:.1e} of the largest")
        times = _measure.milliseconds({"structured": fast, "dense": dense}, seconds=options.seconds)
        rows.append({
            "case": name,
            "structured, ms": times["structured"],
            "dense, ms": times["dense"],
            "ratio": times["dense"] / times["structured"],
            "difference": error,
        })  # fmt: skip
    title = "Medians in milliseconds; ratio: dense over structured"
    _measure.show(title, rows)
    if not options.no_save:
        print(f"written to {_measure.save('structured_matrices', rows, tables={title: rows})}")


if __name__ == "__main__":
    main()
