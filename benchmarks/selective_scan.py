"""The selective scan beside the others that run on a CPU: mambapy's parallel scan, and loops over positions.

python -m benchmarks.selective_scan

compares results, then times all of them in one run, taking turns, with softplus, delta bias and D, in float32.
``ratio`` is the time in units of ours.
The floor is the slower of two: the bytes of all inputs and outputs at the speed of a copy, and the multiplications
of the recurrence at the speed of the vector units, both measured in the same run. ``--no-save`` leaves
``benchmarks/results/selective_scan.json`` and ``.md`` as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _measure
from statescan import ops
from statescan.kernels import cpu

BATCH, LENGTH, CHANNELS, STATES = 1, 1024, 1536, 16
LONG = 16_384

#: Multiplications and multiply-adds an element of length x channels x states: delta A, the exponential, delta x B, the
#: state, its sum; and backward the first of them again and eight products with the gradient.
_EXPONENTIAL = {"avx512": 4}
FORWARD_WORK = 4 + _EXPONENTIAL.get(cpu.level(), 6)
BACKWARD_WORK = FORWARD_WORK - 1 + 8


def inputs(length: int, *, gate: bool = False) -> dict[str, Tensor]:
    """Arguments as a Mamba layer of 768 channels has them."""
    torch.manual_seed(0)
    made = {
        "x": torch.randn(BATCH, length, CHANNELS),
        "delta": 0.5 * torch.randn(BATCH, length, CHANNELS) - 4,
        "A": -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1),
        "B": torch.randn(BATCH, length, STATES),
        "C": torch.randn(BATCH, length, STATES),
        "D": torch.ones(CHANNELS),
        "delta_bias": 0.1 * torch.randn(CHANNELS),
    }
    if gate:
        made["z"] = torch.randn(BATCH, length, CHANNELS)
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def ours(**arguments: Tensor) -> Tensor:
    return ops.selective_scan(**arguments, delta_softplus=True)


def loop(**arguments: Tensor) -> Tensor:
    """A position at a time, its exponentials as well."""
    return ops.selective_scan_reference(**arguments, delta_softplus=True)


def loop_after_exponentials(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """All exponentials first, (batch, length, channels, states) of them; then a position at a time."""
    step = F.softplus(delta + delta_bias)
    decay = torch.exp(step[..., None] * A)
    fed = (step * x)[..., None] * B[:, :, None]
    h, rows = torch.zeros_like(decay[:, 0]), []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + fed[:, t]
        rows.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return torch.stack(rows, dim=1) + D * x


def mambapy(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """The parallel scan of the package mambapy, called as its Mamba block calls it."""
    from mambapy.pscan import pscan

    step = F.softplus(delta + delta_bias)
    decay = torch.exp(step[..., None] * A)
    states = pscan(decay, step[..., None] * B[:, :, None] * x[..., None])
    return (states @ C[..., None]).squeeze(3) + D * x


def forward(scan: Callable[..., Tensor], arguments: dict[str, Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return scan(**arguments)

    return call


def forward_and_backward(scan: Callable[..., Tensor], arguments: dict[str, Tensor]) -> Callable[[], Any]:
    grad = torch.randn(arguments["x"].shape)
    return lambda: torch.autograd.grad(scan(**arguments), list(arguments.values()), grad)


def compare_results() -> None:
    """Refuse to time what disagrees."""
    arguments = {name: tensor.detach() for name, tensor in inputs(256).items()}
    exact = loop(**{name: tensor.double() for name, tensor in arguments.items()})
    for scan in (ours, loop, loop_after_exponentials, mambapy):
        error = float((scan(**arguments) - exact).abs().max() / exact.abs().max())
        if error > 1e-5:
            raise SystemExit(f"{scan.__name__} is off by {error:.1e} of the largest value")


def against_others() -> list[dict[str, Any]]:
    arguments = inputs(LENGTH)
    rows = []
    # Once as the C library has it, when arrays of 100 MB come from the system anew each time, as they do for a user; and
    # once with all memory kept, when what is compared is computing alone.
    for memory in ("as it is", "kept"):
        if memory == "kept":
            _measure.keep_freed_memory()
        for direction, make, scans, seconds in (
            ("forward", forward, (ours, loop, loop_after_exponentials, mambapy), 8.0),
            ("forward + backward", forward_and_backward, (ours, loop, mambapy), 12.0),
        ):
            candidates = {scan.__name__: make(scan, arguments) for scan in scans}
            times = _measure.milliseconds(candidates, seconds=seconds, repeats={"ours": 12})
            rows += [
                {
                    "direction": direction,
                    "freed memory": memory,
                    "scan": name,
                    "ms": time,
                    "ratio": time / times["ours"],
                }
                for name, time in times.items()
            ]
    return rows


def against_the_floor() -> list[dict[str, Any]]:
    bytes_a_second, products_a_second = _measure.bandwidth(), _measure.multiply_adds()
    rows = []
    for length in (64, LENGTH, LONG):
        for gate in (False, True):
            arguments = inputs(length, gate=gate)
            calls = {"forward": forward(ours, arguments), "forward + backward": forward_and_backward(ours, arguments)}
            times = _measure.milliseconds(calls, seconds=1.5)
            read = sum(tensor.nbytes for tensor in arguments.values())
            y = arguments["x"].nbytes
            for direction, moved, work in (
                ("forward", read + y, FORWARD_WORK),
                ("forward + backward", 3 * read + 2 * y, FORWARD_WORK + BACKWARD_WORK),
            ):
                memory = 1e3 * moved / bytes_a_second
                products = 1e3 * work * length * BATCH * CHANNELS * STATES / products_a_second
                rows.append(
                    {
                        "direction": direction,
                        "length": length,
                        "gate": "yes" if gate else "no",
                        "ms": times[direction],
                        "memory floor": memory,
                        "arithmetic floor": products,
                        "fraction of floor": max(memory, products) / times[direction],
                    }
                )
    return rows


_PEAK = """
import sys
from benchmarks._measure import peak_memory as peak
from benchmarks.selective_scan import forward_and_backward, inputs, ours
forward_and_backward(ours, inputs(64))()
arguments = inputs(int(sys.argv[1]))
call = forward_and_backward(ours, arguments)
before = peak()
call()
print(peak() - before, sum(t.nbytes for t in arguments.values()))
"""


def memory() -> list[dict[str, Any]]:
    """What a forward and a backward pass add to the memory of a process, gradients and y included."""
    rows = []
    for length in (LONG // 4, LONG // 2, LONG):
        done = subprocess.run([sys.executable, "-c", _PEAK, str(length)], check=True, capture_output=True, text=True)
        added, given = map(int, done.stdout.split())
        rows.append(
            {"length": length, "inputs, MB": given / 1e6, "added at the peak, MB": added / 1e6, "ratio": added / given}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-save", action="store_true", help="print only")
    save = not parser.parse_args().no_save
    compare_results()
    sizes = f"batch {BATCH}, {CHANNELS} channels, {STATES} states, float32"
    tables = {
        f"Beside others: length {LENGTH:,}, {sizes}": against_others(),
        f"Beside the floor: {sizes}": against_the_floor(),
        f"Memory of forward + backward: {sizes}": memory(),
    }
    for title, rows in tables.items():
        _measure.show(title, rows)
    if save:
        print(_measure.save("selective_scan", tables, tables=tables).relative_to(_measure.RESULTS.parent.parent))


if __name__ == "__main__":
    main()
