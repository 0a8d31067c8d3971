"""Times side by side: candidates take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from statescan.kernels import cpu

RESULTS = Path(__file__).parent / "results"


def milliseconds(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 1.0,
    least: int = 5,
    repeats: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """The median time of a call of each candidate, in milliseconds.

    Arguments:
        candidates: what to call, by name; each is called once before, to warm up.
        seconds: how long to go on.
        least: how many rounds there are at least.
        repeats: how many calls of a candidate make its turn; 1 unless named.
    """
    for call in candidates.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    rounds, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end or rounds < least:
        rounds += 1
        for name, call in candidates.items():
            for _ in range((repeats or {}).get(name, 1)):
                start = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_memory() -> int:
    """The most bytes that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says here includes the parent's peak, from before the program was loaded
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak_memory() -> int:
    """Make what this process holds now its peak so far, where the system allows it; gives the peak from there on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def keep_freed_memory() -> None:
    """Have the C library reuse freed memory of any size, for all candidates alike.

    Otherwise large results come from the kernel anew at every call, and what is timed is page faults.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # not glibc


def bandwidth() -> float:
    """Bytes a second read and written by copying 256 MiB with torch's threads."""
    source = torch.ones(1 << 25)
    target = torch.empty_like(source)
    taken = milliseconds({"copy": lambda: target.copy_(source)}, seconds=0.5)["copy"]
    return 2 * source.nbytes / (taken / 1e3)


def multiply_adds() -> float:
    """Single-precision multiply-adds a second of the vector units, on all of torch's threads."""
    rounds, lanes, sink = 2_000_000, ctypes.c_int64(), ctypes.c_float()
    threads = cpu.threads()
    run = cpu.function("multiply_adds", "lppi")
    taken = milliseconds(
        {"chains": lambda: run(rounds, ctypes.addressof(lanes), ctypes.addressof(sink), threads)}, seconds=0.5
    )["chains"]
    return 12 * lanes.value * rounds * threads / (taken / 1e3)


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, threads, versions, date."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": cpu.level() if cpu.available() else "none: references only",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; all have the same columns."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(width=max(140, Console().width)).print(table)


def save(name: str, rows: Any, *, tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> Path:
    """Write rows and the machine they were measured on to ``results/NAME.json``, and tables to ``NAME.md``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    where = machine()
    path.write_text(json.dumps({"machine": where, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    if tables:
        lines = [f"# {name.replace('_', ' ')}", "", ", ".join(f"{k} {v}" for k, v in where.items()) + "."]
        for title, table in tables.items():
            heads = list(table[0])
            lines += ["", f"## {title}", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
            lines += [f"| {' | '.join(_text(value) for value in row.values())} |" for row in table]
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return path


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
