"""Agents with four kinds of memory on the environments that need it: S5, GRU, LSTM and none, of about the same size.

python -m benchmarks.reinforcement --out runs/reinforcement

trains each with two seeds on the CPU and writes mean returns of the last hundred episodes to
``benchmarks/results/reinforcement.json`` and ``.md``, and the curves and steps a second to
``docs/assets/reinforcement.png``. Runs that are finished are only read, so what was interrupted goes on where it stopped.
All share the trainer's defaults, which were chosen with S5 in view: this shows that each learns, not which could be made to
learn fastest. Steps a second are those of playing and learning together, by the process's CPU time, on one thread.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _measure
from statescan.tasks import ReinforcementTraining, train_reinforcement
from statescan.tasks._picture import COLOURS

#: Layers, so that parameters are near each other: 55,109, 46,725 and 55,045 on repeat_previous; none has 21,765.
DEPTHS = {"s5": 2, "gru": 1, "lstm": 1, "none": 1}
SEEDS = (0, 1)
#: By environment, its options, updates, and steps played for each by 32 copies.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "repeat_previous": ((), 120, 104),
    "stateless_cart_pole": ((), 120, 104),
    "meta_cart_pole": (("trials=4", "steps=100"), 160, 208),
}
PICTURE = Path(__file__).parent.parent / "docs/assets/reinforcement.png"


def run(environment: str, core: Any, seed: int, out: Path) -> dict[str, Any]:
    """Train one agent, or read what a finished run left."""
    finished = out / "result.json"
    if not finished.is_file():
        options, updates, length = ENVIRONMENTS[environment]
        settings = ReinforcementTraining(
            out=out,
            environment=environment,
            environment_set=options,
            core=core,
            seed=seed,
            updates=updates,
            length=length,
            overwrite=True,
        )
        settings = dataclasses.replace(settings, set=(*settings.set, f"depth={DEPTHS[core]}"))
        began = time.process_time()
        result = dataclasses.asdict(train_reinforcement(settings))
        finished.write_text(json.dumps(result | {"cpu_seconds": time.process_time() - began}) + "\n")
    result = json.loads(finished.read_text())
    with (out / "metrics.csv").open() as file:
        metrics = [row for row in csv.DictReader(file) if row["mean_return"]]
    curve = [(int(row["frames"]), float(row["mean_return"])) for row in metrics]
    return {
        "environment": environment,
        "core": core,
        "seed": seed,
        "parameters": result["parameters"],
        "steps": result["frames"],
        "mean return": result["validation"]["mean_return"],
        "mean over the run": float(np.mean([value for _, value in curve])),
        "CPU seconds": result["cpu_seconds"],
        "steps a second": result["frames"] / result["cpu_seconds"],
        "curve": curve,
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """Returns against steps, a panel an environment and a line a seed; below, steps a second."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["environment"] for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 5.6), layout="constrained")
    places = figure.subplots(2, len(names), squeeze=False, height_ratios=(2.2, 1))
    for (above, below), name in zip(places.T, names, strict=True):
        cores = [core for core in DEPTHS if any(row["core"] == core for row in rows if row["environment"] == name)]
        for colour, core in zip(COLOURS, cores, strict=False):
            found = [row for row in rows if (row["environment"], row["core"]) == (name, core)]
            for index, row in enumerate(found):
                x, y = zip(*row["curve"], strict=True)
                above.plot(x, y, color=colour, linewidth=1.4, label=None if index else core)
            rate = float(np.mean([row["steps a second"] for row in found]))
            below.barh(core, rate, color=colour)
            below.text(rate, core, f" {rate:,.0f}", va="center", fontsize=8)
        above.set_title(name)
        above.set_xlabel("steps of environments")
        above.set_ylabel("mean return of 100 episodes")
        above.legend(frameon=False)
        above.grid(alpha=0.25)
        below.invert_yaxis()
        below.margins(x=0.18)
        below.set_xlabel("steps a CPU second, playing and learning")
        for place in (above, below):
            for side in ("top", "right"):
                place.spines[side].set_visible(False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Train, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reinforcement"), help="folder of the runs")
    parser.add_argument(
        "--environments", nargs="+", choices=ENVIRONMENTS, help="train on these alone, and write nothing"
    )
    options = parser.parse_args()
    rows = []
    for seed in SEEDS:
        for environment in options.environments or ENVIRONMENTS:
            for core in DEPTHS:
                rows.append(run(environment, core, seed, options.out / f"{environment}-{core}-{seed}"))
                print(json.dumps({name: value for name, value in rows[-1].items() if name != "curve"}), flush=True)
    if options.environments:
        return
    draw(rows)
    rows.sort(key=lambda row: (list(ENVIRONMENTS).index(row["environment"]), list(DEPTHS).index(row["core"])))
    table = [{name: value for name, value in row.items() if name != "curve"} for row in rows]
    _measure.show("reinforcement", table)
    _measure.save("reinforcement", rows, tables={"reinforcement": table})


if __name__ == "__main__":
    main()
