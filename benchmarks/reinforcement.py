"""Agents with four kinds of memory on the environments that need it: S5, GRU, LSTM and none, of about the same size.

python -m benchmarks.reinforcement --out runs/reinforcement

trains each with two seeds on the CPU and writes mean returns of the last hundred episodes to
``benchmarks/results/reinforcement.json`` and ``.md``. Runs that are finished are only read. All share the trainer's
defaults, which were chosen with S5 in view: this shows that each learns, not which could be made to learn fastest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks import _measure
from statescan.data import ENVIRONMENTS
from statescan.tasks import ReinforcementTraining, train_reinforcement

#: Layers, so that parameters are near each other: 55,109, 46,725 and 55,045 on repeat_previous; none has 21,765.
DEPTHS = {"s5": 2, "gru": 1, "lstm": 1, "none": 1}
SEEDS = (0, 1)
UPDATES = 120


def run(environment: str, core: Any, seed: int, out: Path) -> dict[str, Any]:
    """Train one agent, or read what a finished run left."""
    finished = out / "result.json"
    if not finished.is_file():
        settings = ReinforcementTraining(
            out=out, environment=environment, core=core, seed=seed, updates=UPDATES, length=104, overwrite=True
        )
        settings = dataclasses.replace(settings, set=(*settings.set, f"depth={DEPTHS[core]}"))
        result = train_reinforcement(settings)
        finished.write_text(json.dumps(dataclasses.asdict(result)) + "\n")
    result = json.loads(finished.read_text())
    return {
        "environment": environment,
        "core": core,
        "seed": seed,
        "parameters": result["parameters"],
        "steps": result["frames"],
        "mean return": result["validation"]["mean_return"],
    }


def main() -> None:
    """Train, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reinforcement"), help="folder of the runs")
    options = parser.parse_args()
    rows = [
        run(environment, core, seed, options.out / f"{environment}-{core}-{seed}")
        for environment in ENVIRONMENTS
        for core in DEPTHS
        for seed in SEEDS
    ]
    _measure.show("reinforcement", rows)
    _measure.save("reinforcement", rows, tables={"reinforcement": rows})


if __name__ == "__main__":
    main()
