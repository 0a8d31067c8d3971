"""Hyperspectral cubes (MorpMamba) and electrocardiograms (ECG Mamba) made for the purpose, beside simple baselines.

python -m benchmarks.signals_and_cubes --out runs/signals_and_cubes

* cubes: a made cube of 128 x 128 pixels, 100 bands and six materials. Models of windows, as described and as published, and
  classifiers of single spectra (logistic regression, support vector machine), each on two splits of the labelled pixels: at
  random, where windows of the test hold pixels that were learnt from, and by blocks that keep all windows apart.
* records: 600 made records of 12 leads, 10 seconds at 500 Hz, with six diagnoses. ECG Mamba in both directions and forward
  alone, convolutional networks without Mamba, and a logistic regression on mean and deviation of each lead. The challenge's
  score is computed with ones on the diagonal of the matrix and zeros elsewhere; it is no figure of the challenge.
* lengths: one record of growing length in one call and read in parts: processor seconds, bytes carried.

Every training has the same steps, batches and learning rate. Finished points are kept in ``OUT/points.jsonl``: a killed run
goes on there. Tables go to ``benchmarks/results/signals_and_cubes.json`` and ``.md``. ``--quick`` shows that it works, in
about 75 seconds of one thread.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _measure
from benchmarks._points import Points
from statescan import create_model, data, inspect, tasks
from statescan.models.ecg_mamba import RecordStream
from statescan.tasks.cubes import spectral_baselines
from statescan.tasks.records import judge_records

PARTS = ("cubes", "records", "lengths")
SPLITS = ("random", "blocks")
_TOKENS: dict[str, Any] = dict(dim=32, depth=1, hidden=64)
#: Classifiers of windows: fields of the config that differ from the variant's.
CUBE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "greatest and smallest values, Mamba": ("morp_mamba", _TOKENS | dict(window=7, state_dim=8)),
    "the same, spatial tokens alone": ("morp_mamba_spatial", _TOKENS | dict(window=7, state_dim=8)),
    "convolutions, Mamba": ("morp_mamba", _TOKENS | dict(window=7, state_dim=8, morphology="conv")),
    "convolutions, recurrence (as published)": ("morp_mamba_published", {}),
    "the same, window 7": ("morp_mamba_published", dict(window=7)),
}
#: Classifiers of records.
RECORD_MODELS: dict[str, dict[str, Any]] = {
    "ECG Mamba": {},
    "ECG Mamba, forward": dict(direction="forward"),
    "its convolutions alone": dict(depth=0),
    "convolutional network": dict(
        depth=0, dim=48, stem_kernels=(15, 7, 7, 7, 7), stem_strides=(5, 2, 2, 2, 2), stem_dims=(16, 24, 32, 48, 48)
    ),
}


def _settings(fields: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={value!r}" for name, value in fields.items())


def cubes(points: Points, out: Path, *, steps: int, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row a classifier and split: means over the seeds, each its own cube, split and first weights."""
    rows = []
    for split in SPLITS:
        for name, (model, fields) in CUBE_MODELS.items():
            found = []
            for seed in seeds:
                point = dict(part="cubes", split=split, model=model, fields=fields, steps=steps, seed=seed)

                def train(model: str = model, fields: dict[str, Any] = fields, split: Any = split, seed: int = seed):
                    began = time.process_time()
                    settings = tasks.CubeTraining(
                        out=out / "run",
                        overwrite=True,
                        model=model,
                        set=_settings(fields),
                        split=split,
                        training=0.2,
                        steps=steps,
                        warmup=max(1, steps // 10),
                        learning_rate=4e-3,
                        seed=seed,
                    )
                    result = tasks.train_hyperspectral(settings)
                    picture = out / f"map_{model}_{split}_{seed}_{len(fields)}.png"
                    shutil.copy(out / "run" / "map.png", picture)
                    return {
                        **result.test,
                        "parameters": result.parameters,
                        "seconds": time.process_time() - began,
                        "map": picture.name,
                    }

                found.append(points.get(point, train))
                print(f"cubes, {split}, {name}, seed {seed}: {found[-1]['overall_accuracy']:.4f}", flush=True)
            rows.append(_cube_row(split, name, found))
        for name in ("logistic", "svm"):
            found = []
            for seed in seeds:
                point = dict(part="cubes", split=split, model=name, seed=seed)
                found.append(points.get(point, lambda split=split, seed=seed, name=name: _spectra(split, seed)[name]))
            rows.append(_cube_row(split, {"logistic": "logistic regression", "svm": "vector machine"}[name], found))
    return rows


def _cube_row(split: str, name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    accuracy = [point["overall_accuracy"] for point in found]
    return {
        "split": split,
        "classifier": name,
        "parameters": found[0].get("parameters"),
        "OA": f"{np.mean(accuracy):.3f}",
        "OA of the seeds": ", ".join(f"{value:.3f}" for value in accuracy),
        "AA": f"{np.mean([point['average_accuracy'] for point in found]):.3f}",
        "kappa": f"{np.mean([point['kappa'] for point in found]):.3f}",
        "seconds": float(np.mean([point["seconds"] for point in found])),
    }


def _spectra(split: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Classifiers of single spectra, on the split of the models whose window is 7."""
    cube = data.make_cube(seed=seed)
    assert cube.labels is not None
    parts = data.split_pixels(
        cube.labels, training=0.2, validation=0.1, scheme=split, gap=6 if split == "blocks" else 0, seed=seed
    )
    found = {}
    for name in ("logistic", "svm"):
        began = time.process_time()
        score = spectral_baselines(cube, parts, seed=seed)[name]
        found[name] = {
            "overall_accuracy": score.overall,
            "average_accuracy": score.average,
            "kappa": score.kappa,
            "seconds": time.process_time() - began,
        }
    return found


def records(points: Points, out: Path, *, steps: int, seeds: tuple[int, ...], count: int = 600) -> list[dict[str, Any]]:
    """A row a classifier of records: means over the seeds, each its own records and first weights."""
    rows = []
    for name, fields in RECORD_MODELS.items():
        found = []
        for seed in seeds:

            def train(fields: dict[str, Any] = fields, seed: int = seed) -> dict[str, Any]:
                began = time.process_time()
                folder, weights = _made(out, count, seed)
                settings = tasks.RecordTraining(
                    data=str(folder),
                    weights=str(weights),
                    out=out / "run",
                    overwrite=True,
                    set=_settings(fields),
                    steps=steps,
                    warmup=max(1, steps // 10),
                    learning_rate=4e-3,
                    seed=seed,
                )
                result = tasks.train_records(settings)
                return {**result.test, "parameters": result.parameters, "seconds": time.process_time() - began}

            point = dict(part="records", fields=fields, steps=steps, seed=seed, count=count)
            found.append(points.get(point, train))
            print(f"records, {name}, seed {seed}: {found[-1]['macro_auroc']:.4f}", flush=True)
        rows.append(_record_row(name, found))
    found = [
        points.get(dict(part="records", means=True, seed=seed, count=count), lambda s=seed: _means(out, count, s))
        for seed in seeds
    ]
    rows.append(_record_row("logistic regression on means and deviations", found))
    return rows


def _made(out: Path, count: int, seed: int) -> tuple[Path, Path]:
    folder, weights = out / f"records_{count}_{seed}", out / "weights.csv"
    if len(list(folder.glob("*.hea"))) != count:
        data.make_records(folder, count, seed=seed)
    same = {code: "|".join(group) for group in data.EQUIVALENT_DIAGNOSES for code in group}
    codes = [same.get(code, code) for code in data.MADE_DIAGNOSES]
    lines = [",".join(["", *codes])]
    lines += [",".join([code, *("1" if code == other else "0" for other in codes)]) for code in codes]
    weights.write_text("\n".join(lines) + "\n")
    return folder, weights


def _means(out: Path, count: int, seed: int) -> dict[str, Any]:
    """A logistic regression a class on mean and deviation of each lead."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    began = time.process_time()
    folder, weights = _made(out, count, seed)
    matrix = data.read_challenge_weights(weights)
    tried, learn = data.read_records(folder, classes=matrix.classes).split(0.2, seed=seed)
    inputs = []
    for part in (learn, tried):
        signals = [part.signals(i) for i in range(len(part))]
        inputs.append(np.stack([np.concatenate([some.mean(0), some.std(0)]) for some in signals]))
    scores = []
    for target in learn.targets.T:
        fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs[0], target)
        scores.append(fitted.predict_proba(inputs[1])[:, 1])
    test = judge_records(tried, np.stack(scores, 1), np.full(len(matrix.classes), 0.5), matrix)
    return {**test, "parameters": 25 * len(matrix.classes), "seconds": time.process_time() - began}


def _record_row(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    areas = [point["macro_auroc"] for point in found]
    return {
        "classifier": name,
        "parameters": found[0]["parameters"],
        "AUROC": f"{np.mean(areas):.3f}",
        "AUROC of the seeds": ", ".join(f"{value:.3f}" for value in areas),
        "AUPRC": f"{np.mean([point['macro_auprc'] for point in found]):.3f}",
        "F1": f"{np.mean([point['macro_f1'] for point in found]):.3f}",
        "score, unit matrix": f"{np.mean([point['challenge_score'] for point in found]):.3f}",
        "seconds": float(np.mean([point["seconds"] for point in found])),
    }


def lengths(points: Points, *, seconds: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row a length: one record at 500 Hz by the tiny model in one call, and read in parts of ten seconds."""
    rows = []
    for length in seconds:

        def measure(length: int = length) -> dict[str, Any]:
            torch.manual_seed(0)
            model = create_model("ecg_mamba_tiny", direction="forward").eval()
            samples = 500 * length
            x = torch.randn(1, samples, 12) if length <= 300 else None
            found: dict[str, Any] = {"parameters": inspect.count_parameters(model)}
            with torch.no_grad():
                if x is not None:
                    model(x[:, :5000])
                    began = time.process_time()
                    whole = model(x)
                    found["whole"] = time.process_time() - began
                stream, held = RecordStream(model), 0
                began = time.process_time()
                for start in range(0, samples, 5000):
                    some = torch.randn(1, 5000, 12) if x is None else x[:, start : start + 5000]
                    stream.push(some)
                    held = max(held, stream.nbytes)
                stream.finish()
                found |= {"parts": time.process_time() - began, "held": held}
                if x is not None:
                    found["difference"] = float((stream.scores - whole).abs().max())
            return found

        found = points.get(dict(part="lengths", length=length), measure)
        rows.append(
            {
                "seconds of record": length,
                "one call, s": found.get("whole"),
                "in parts, s": found["parts"],
                "bytes carried": f"{found['held']:,}",
                "greatest difference of scores": found.get("difference"),
            }
        )
    return rows


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/signals_and_cubes"), help="folder of what is finished")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, few records; nothing is saved")
    parser.add_argument("--no-save", action="store_true", help="leave the results as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds, count = options.steps, tuple(range(options.seeds)), 600
    long: tuple[int, ...] = (10, 20, 50, 100, 200, 3600)
    if options.quick:
        steps, seeds, count, long = 20, (0,), 80, (10, 20)
    points = Points(options.out / "points.jsonl")
    tables: dict[str, list[dict[str, Any]]] = {}
    if "cubes" in options.parts:
        title = f"Made cubes, {steps} steps of 64 windows, {len(seeds)} seeds"
        tables[title] = cubes(points, options.out, steps=steps, seeds=seeds)
    if "records" in options.parts:
        title = f"Made records ({count}), {steps} steps of 16, {len(seeds)} seeds"
        tables[title] = records(points, options.out, steps=steps, seeds=seeds, count=count)
    if "lengths" in options.parts:
        tables["Length of a record, the tiny model, forward"] = lengths(points, seconds=long)
    for title, rows in tables.items():
        _measure.show(title, rows)
    if not (options.quick or options.no_save):
        print(_measure.save("signals_and_cubes", tables, tables=tables))


if __name__ == "__main__":
    main()
