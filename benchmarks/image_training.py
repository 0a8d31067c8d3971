"""Image backbones trained from scratch on one real task, for equal processor time.

python -m benchmarks.image_training --minutes 10 --out runs/image_training

The task is the data `textures`: from which of twelve photographs is a crop? Crops to learn from and those of the test share
no pixel, and brightness, colour and orientation are random. Each model, the smallest of its family, learns for ``--minutes``
of processor time with the same settings: AdamW at 1e-3, warm-up and cosine, batches of 32 crops, random crops and
mirroring. How many steps that is, a few timed steps say. A linear model of the pixels and a small convolutional network
stand beside them, and MambaOut, which has no scan, at the multiply-adds of VMamba and of Vim.

What is done stays in the ``--out`` folder, and a command given again goes on from there; ``--only`` names models. The table
goes to ``benchmarks/results/image_training.json`` and ``.md``, the picture to ``docs/assets/image_training.png``, unless the
run is ``--quick``: two baselines and three models for a third of a minute each.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import statescan
from benchmarks import _measure
from statescan import data, inspect
from statescan.inspect._flops import counter
from statescan.tasks import ClassificationTraining, train_classification
from statescan.tasks._image_preparation import ImagePreparation

#: A model a row: its name and fields that differ.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_micro", {}),
    "Vim": ("vim_micro", {}),
    "LBVim": ("lbvim_micro", {}),
    "LocalVim": ("local_vim_tiny", {}),
    "PlainMamba": ("plainmamba_tiny", {}),
    "RSMamba": ("rsmamba_tiny", {}),
    "Adventurer": ("adventurer_micro", {}),
    "VMamba": ("vmamba_tiny", {}),
    "LocalVMamba": ("local_vmamba_tiny", {}),
    "EfficientVMamba": ("efficient_vmamba_tiny", {}),
    "MSVMamba": ("msvmamba_tiny", {}),
    "Res-VMamba": ("res_vmamba_tiny", {}),
    "EfficientViM": ("efficient_vim_tiny", {}),
    "MobileMamba": ("mobile_mamba_tiny", {}),
    "Spatial-Mamba": ("spatial_mamba_test", {}),
    "VSSD": ("vssd_test", {}),
    "ViM2": ("vim2_nano", {}),
    "MHS-VM": ("mhs_vm_classifier_tiny", {}),
    "HRVMamba": ("hrvmamba_nano", {}),
    "MambaOut": ("mambaout_test", {}),
}
#: MambaOut at the multiply-adds of these.
EQUAL = ("VMamba", "Vim")
BASELINES = ("linear", "convolutions")
QUICK = (*BASELINES, "ViT", "Vim", "MambaOut")
BATCH, RATE, SIZE = 32, 1e-3, 64
ROOT = Path(__file__).parents[1]


def millions(name: str, fields: dict[str, Any]) -> float:
    """Multiply-adds of one image in millions, nine operations a state of a scan among them, two counted as one."""
    cost = inspect.image_cost(name, size=SIZE, image_size=SIZE, **fields)
    return (cost.multiply_adds + cost.scan_operations / 2) / 1e6


def mambaout_at(target: float) -> dict[str, Any]:
    """The widths of MambaOut whose multiply-adds are nearest to a model's."""
    config = statescan.model_info("mambaout_test").config
    best: tuple[float, dict[str, Any]] | None = None
    for part in range(8, 97, 2):
        fields = {"widths": tuple(max(4, 4 * round(width * part / 64)) for width in config.widths)}
        distance = abs(math.log(millions("mambaout_test", fields) / target))
        if best is None or distance < best[0]:
            best = distance, fields
    assert best is not None
    return best[1]


def baseline(kind: str, classes: int) -> nn.Module:
    """A linear model of the pixels, or four convolutions and a mean."""
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, classes))
    widths = (3, 24, 48, 96, 192)
    parts: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        parts += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def seconds_a_step(model: nn.Module, repeats: int = 4) -> float:
    """Processor time of a training step."""
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(12, (BATCH,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.train()
    began = 0.0
    for index in range(repeats + 1):
        if index == 1:  # the first one warms up
            began = time.process_time()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - began) / repeats


def train(label: str, name: str, fields: dict[str, Any], minutes: float, out: Path, seed: int) -> dict[str, Any]:
    """One model of the library, through `train_classification`; one that was cut short goes on."""
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    plan = out / "plan.json"
    if not plan.is_file():
        torch.manual_seed(seed)
        step = seconds_a_step(statescan.create_model(name, num_classes=12, image_size=SIZE, **fields))
        out.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps({"steps": max(4, round(60 * minutes / step))}))
    steps = json.loads(plan.read_text())["steps"]
    resumed = (out / "checkpoint.ckpt").is_file()
    began = time.process_time()
    result = train_classification(
        ClassificationTraining(
            data="textures",
            out=out,
            model=name,
            set=tuple(f"{key}={value!r}" for key, value in fields.items()),
            size=SIZE,
            steps=steps,
            batch_size=BATCH,
            learning_rate=RATE,
            warmup=max(1, steps // 10),
            validate_every=max(1, steps // 4),
            checkpoint_every=max(1, steps // 20),
            seed=seed,
            resume=resumed,
            overwrite=not resumed,
            accelerator="cpu",
        )
    )
    found = {
        "model": label,
        "name": name,
        "parameters": result.parameters,
        "million multiply-adds": millions(name, fields),
        "steps": steps,
        "cpu minutes": None if resumed else (time.process_time() - began) / 60,
        "accuracy": result.test["accuracy"],
    }
    done.write_text(json.dumps(found))
    return found


def train_baseline(kind: str, minutes: float, out: Path, seed: int) -> dict[str, Any]:
    """The same batches, optimiser and schedule for a model that is none of the library's."""
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    parts = data.read_images("textures", seed=seed)
    torch.manual_seed(seed)
    model = baseline(kind, len(parts.train.classes))
    preparation = ImagePreparation((SIZE, SIZE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), parts.train.classes)
    views = ClassificationTraining().views((SIZE, SIZE))
    batches = iter(data.ImageBatches(parts.train, views, channels=3, batch_size=BATCH, seed=seed))
    began = time.process_time()
    with counter() as count, torch.no_grad():
        model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    # reading takes as long as the model here, so it is timed too
    step = seconds_a_step(baseline(kind, len(parts.train.classes)))
    some = time.process_time()
    for _ in range(4):
        next(batches)
    steps = max(4, round(60 * minutes / (step + (time.process_time() - some) / 4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    warmup = max(1, steps // 10)

    def rate(number: int) -> float:
        if number < warmup:
            return (number + 1) / warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (number - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for _ in range(steps):
        batch = next(batches)
        nn.functional.cross_entropy(model(preparation.apply(batch.images)), batch.targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    right = torch.zeros((), dtype=torch.int64)
    with torch.no_grad():
        for batch in data.ImageBatches(parts.test, views, channels=3, batch_size=BATCH, once=True):
            scores: Tensor = model(preparation.apply(batch.images))
            right += (scores.argmax(-1) == batch.targets).sum()
    found = {
        "model": kind,
        "name": "",
        "parameters": sum(p.numel() for p in model.parameters()),
        "million multiply-adds": count.get_total_flops() / 2e6,
        "steps": steps,
        "cpu minutes": (time.process_time() - began) / 60,
        "accuracy": int(right) / len(parts.test),
    }
    out.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(found))
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over multiply-adds, a point a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    place = figure.subplots()
    for row in rows:
        colour = "#0072B2" if row["name"] else "#D55E00"
        if "MambaOut" in row["model"]:
            colour = "#009E73"
        place.plot(row["million multiply-adds"], row["accuracy"], "o", color=colour)
        place.annotate(
            row["model"],
            (row["million multiply-adds"], row["accuracy"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    place.axhline(1 / 12, color="grey", linewidth=0.8, linestyle=":")
    place.set_xscale("log")
    place.set_xlabel("million multiply-adds an image")
    place.set_ylabel("accuracy on crops of unseen regions")
    place.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="processor time of each model's training")
    parser.add_argument("--out", type=Path, default=Path("runs/image_training"))
    parser.add_argument("--only", nargs="*", help="models of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="five models for a third of a minute each")
    given = parser.parse_args()
    minutes = 1 / 3 if given.quick else given.minutes
    wanted = given.only or (QUICK if given.quick else None)
    out = given.out / f"{minutes:g}_minutes_seed_{given.seed}"
    models = dict(MODELS)
    for other in EQUAL:
        label = f"MambaOut as {other}"
        if wanted is None or label in wanted:
            models[label] = ("mambaout_test", mambaout_at(millions(*MODELS[other])))
    names = [*BASELINES, *models]
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        parser.error(f"--only: unknown {unknown[0]!r}; known: {', '.join(names)}")
    rows: list[dict[str, Any]] = []
    for label in names:
        if wanted is not None and label not in wanted:
            continue
        place = out / label.replace(" ", "_")
        if label in BASELINES:
            rows.append(train_baseline(label, minutes, place, given.seed))
        else:
            rows.append(train(label, *models[label], minutes, place, given.seed))
        print(json.dumps(rows[-1]), flush=True)
        title = f"{minutes:g} processor minutes a model, chance {1 / 12:.3f}"
        if not given.quick and wanted is None:
            _measure.save("image_training", rows, tables={title: rows})
    _measure.show(title, rows)
    if not given.quick and wanted is None:
        draw(rows, ROOT / "docs" / "assets" / "image_training.png")


if __name__ == "__main__":
    main()
