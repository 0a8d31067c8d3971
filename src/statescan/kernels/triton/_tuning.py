"""Choosing how an operator is launched by timing what there is to choose from, once for each kind of problem.

What is timed is a whole direction of an operator, which makes its own outputs and overwrites nothing else: run again, it
gives the same. Ways differ in speed, and in the order in which they add numbers up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from statescan.kernels.triton._common import INTERPRETED

Way = TypeVar("Way")
Result = TypeVar("Result")

#: Elements of the largest input below which nothing is timed: compiling the ways would take longer than they save.
WORTHWHILE = 1 << 22

#: Timed runs of each way.
RUNS = 5

_chosen: dict[tuple[Any, ...], int] = {}


def fastest(name: str, x: Tensor, sizes: Sequence[int], ways: Sequence[Way], run: Callable[[Way], Result]) -> Result:
    """What `run` gives for the way that is fastest for problems like this one; the first, where nothing is timed.

    Nothing is timed for small problems, while a CUDA graph is recorded, and where torch is asked for deterministic
    algorithms: the choice may differ from process to process, and with it the last bits of sums.

    Arguments:
        name: of the operator and direction.
        x: its largest input, not empty.
        sizes: what the choice depends on besides x's type and its shape, of which the sizes but the last count by
            powers of two.
        ways: to choose from.
        run: makes the result, all of it new, in a way.
    """
    if len(ways) == 1 or torch.are_deterministic_algorithms_enabled():
        return run(ways[0])
    rows = triton.next_power_of_2(x.numel() // x.shape[-1])
    key = (name, x.device, x.dtype, rows, x.shape[-1], *sizes)
    if key not in _chosen and _worthwhile(x):
        times = [_seconds(lambda way=way: run(way)) for way in ways]  # type: ignore[misc]
        _chosen[key] = times.index(min(times))
    return run(ways[_chosen.get(key, 0)])


def _worthwhile(x: Tensor) -> bool:
    if INTERPRETED or not x.is_cuda or x.numel() < WORTHWHILE:
        return False
    return not torch.cuda.is_current_stream_capturing()


def _seconds(call: Callable[[], Any]) -> float:
    """The least time of a few runs; infinite where the GPU lacks the room."""
    try:
        call()  # which compiles
        times = []
        for _ in range(RUNS):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
    except (OutOfResources, torch.OutOfMemoryError):
        return math.inf
    return min(times)
