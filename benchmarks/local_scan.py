"""What looking ahead costs: the local scan beside the selective scan and beside a scan in both directions, on a CPU.

python -m benchmarks.local_scan

Zhang et al. 2025, "LBMamba" (arXiv 2506.15976), claim a few percent for a fused kernel on a GPU.
Times are processor time of this process with one thread, so that other work on the machine counts for little: the median of
calls that take turns. Results go to ``benchmarks/results/local_scan.json`` and ``.md``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks import _measure
from statescan import ops

BATCH, CHANNELS, STATES = 1, 384, 16
LENGTHS = (196, 1024, 4096)
ROUNDS = 15


def medians(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of processor time a call, candidates in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 2):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn >= 2:
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def row(length: int, *, gradient: bool) -> dict[str, Any]:
    """One length: the scans forward alone, or with all gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(gradient)

    x, delta = random(BATCH, length, CHANNELS), random(BATCH, length, CHANNELS)
    B, C = random(BATCH, length, STATES), random(BATCH, length, STATES)
    A = (-torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)).requires_grad_(gradient)

    def scan(turned: bool = False) -> torch.Tensor:
        parts = [part.flip(1) if turned else part for part in (x, delta, B, C)]
        y = ops.selective_scan(parts[0], parts[1], A, parts[2], parts[3], delta_softplus=True)
        assert isinstance(y, torch.Tensor)
        return y.flip(1) if turned else y

    def local() -> torch.Tensor:
        y = ops.local_scan(x, delta, A, B, C, delta_softplus=True)
        assert isinstance(y, torch.Tensor)
        return y

    def timed(function: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            y = function()
            if gradient:
                y.sum().backward()

        return call

    calls = {"scan": scan, "both directions": lambda: scan() + scan(turned=True), "local": local}
    times = medians({name: timed(function) for name, function in calls.items()})
    return {
        "direction": "forward + backward" if gradient else "forward",
        "length": length,
        "window": ops.local_window("auto", length),
        **{f"{name}, ms": value for name, value in times.items()},
        "local / scan": times["local"] / times["scan"],
        "both / scan": times["both directions"] / times["scan"],
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = [row(length, gradient=gradient) for gradient in (False, True) for length in LENGTHS]
    title = f"Processor time, one thread: batch {BATCH}, {CHANNELS} channels, {STATES} states, float32"
    _measure.show(title, rows)
    path = _measure.save("local_scan", rows, tables={f"{title} (python -m benchmarks.local_scan)": rows})
    print(path.relative_to(_measure.RESULTS.parent.parent))


if __name__ == "__main__":
    main()
