"""Small training runs, here and in processes of their own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from statescan.tasks import LanguageTraining, train_language

#: Small enough for a step to take a few milliseconds.
SMALL: dict[str, Any] = dict(
    set=("dim=16", "depth=2", "state_dim=4"),
    batch_size=4,
    length=32,
    steps=8,
    warmup=2,
    learning_rate=5e-3,
    log_every=2,
    validate_every=4,
    checkpoint_every=4,
    accelerator="cpu",
    progress=False,
)

TEXT = "".join(f"{number} bottles of beer on the wall, {number} bottles of beer.\n" for number in range(60, 0, -1))


def write_text(folder: Path) -> Path:
    """A text of some 3,000 bytes."""
    path = folder / "text.txt"
    path.write_text(TEXT)
    return path


def run_language(text: Path, out: Path, **changes: Any):
    """Train in this process."""
    return train_language(LanguageTraining(**{**SMALL, "data": (str(text),), "out": out, **changes}))


def metrics(out: Path) -> list[dict[str, float]]:
    """Rows of a run's metrics; what was not measured is not a number."""
    with (out / "metrics.csv").open() as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def command(text: Path, out: Path, *flags: str, **changes: Any) -> list[str]:
    """The command line of the same run."""
    settings = {**SMALL, "data": (str(text),), "out": out, **changes}
    line = [sys.executable, "-m", "statescan.cli", "train", "language", *flags]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            line += [f"--{flag}", *map(str, value)]
        else:
            line += [f"--{flag}", str(value)]
    return line


def start(line: list[str]) -> subprocess.Popen[str]:
    """Run a command beside this process."""
    variables = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """Wait for a command that must succeed; gives what it printed."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, printed
    return printed
