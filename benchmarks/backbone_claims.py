"""Claims of three papers on generated data that asks for what they add.

python -m benchmarks.backbone_claims --out runs/backbone_claims

- paths: RSMamba's ways of reading a sequence. Two textures lie in opposite quarters of a scene of noise, and the class is
  whether they are of one kind, so that tokens far apart have to be put together. The order that the paper found: forward,
  both directions by their mean, both directions gated, all three gated.
- points: HRVMamba's branches of high resolution. A disc, a ring and a cross lie on textures of 64 pixels; heat maps of a
  stride of 4 say where, read by a 1x1 convolution from the branch of that stride, or from the last map, of stride 32, of a
  VMamba of about as many parameters, enlarged.
- variates: TSM2's channel mixer. The last of six series repeats another one after a delay, under noise, and nothing of
  its own past foretells it: a model that mixes variates can know it, one that treats each alone cannot.

Means over seeds; ``paths`` trains until 95 of 100 scenes are right, for three times the steps at most, ``variates`` for
twice the steps. Figures go to ``benchmarks/results/backbone_claims.json`` and ``.md``; trainings stay in
``OUT/points.jsonl``: a killed run goes on there. ``--quick`` shows it at work. Chen et al. 2024, "RSMamba" (arXiv
2403.19654); Zhang et al. 2024, "HRVMamba" (arXiv 2410.03174); Behrouz et al. 2024, "MambaMixer" (arXiv 2403.19888).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import statescan
from benchmarks import _measure
from benchmarks._points import Points

EXPERIMENTS = ("paths", "points", "variates")
PATHS = ("forward", "forward_reverse_mean", "forward_reverse_gate", "forward_reverse_shuffle_gate")
SIDE, PATCH = 64, 8
#: Variates, history, delay and horizon of the series.
VARIATES, HISTORY, DELAY, HORIZON = 6, 48, 8, 8


def optimise(
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    steps: int,
    rate: float,
    after: Callable[[int], bool] = lambda step: False,
) -> float:
    """AdamW with a warm-up and a cosine, until `after` a step says that it is enough; gives the seconds of a step."""
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    spent = 0.0
    for step in range(1, steps + 1):
        start = time.process_time()
        optimiser.zero_grad()
        loss(*batch()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        spent += time.process_time() - start
        if after(step):
            break
    return spent / step


# ---- paths: two textures that lie apart --------------------------------------------------------------------------


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 64, 64) of noise with two textures of 16 pixels in opposite quarters, and whether they agree."""
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    line = torch.arange(16)
    stripes = torch.stack([((line[:, None] + s * line) // 2 % 2) * 2.0 - 1 for s in (1, -1)])
    kinds = torch.randint(2, (count, 2), generator=generator)
    places = torch.randint(SIDE // 2 - 16, (count, 2, 2), generator=generator)
    for image, kind, place in zip(noise, kinds.tolist(), places.tolist(), strict=True):
        for corner, (one, (row, column)) in enumerate(zip(kind, place, strict=True)):
            row, column = row + corner * SIDE // 2, column + corner * SIDE // 2
            image[:, row : row + 16, column : column + 16] += 2 * stripes[one]
    return noise, (kinds[:, 0] == kinds[:, 1]).long()


def paths(path: str, *, seed: int, steps: int) -> dict[str, float]:
    """Steps after which an RSMamba with these paths is right in 95 of 100 scenes, asked every 25 steps."""
    torch.manual_seed(seed)
    model = statescan.create_model(
        "rsmamba_small", image_size=SIDE, patch=PATCH, stride=PATCH, dim=64, depth=4, num_classes=2, path=path
    )
    generator = torch.Generator().manual_seed(seed)
    images, agree = scenes(256, torch.Generator().manual_seed(1_000_000))
    taken, accuracy = 0, 0.0

    def learnt(step: int) -> bool:
        nonlocal taken, accuracy
        taken = step
        if step % 25:
            return False
        model.eval()
        with torch.inference_mode():
            right = torch.cat([model(part).argmax(1) for part in images.split(64)]) == agree
        model.train()
        accuracy = float(right.float().mean())
        return accuracy >= 0.95

    seconds = optimise(
        model,
        lambda: scenes(32, generator),
        lambda x, y: F.cross_entropy(model(x), y),
        steps=3 * steps,
        rate=2e-3,
        after=learnt,
    )
    return {"steps": taken, "accuracy then": accuracy, "seconds a step": seconds}


# ---- points: marks on textures ------------------------------------------------------------------------------------


def marks(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Textures (count, 3, 64, 64) with a disc, a ring and a cross, and where those are: (count, 3, 2) rows and columns."""
    coarse = torch.randn(count, 3, 12, 12, generator=generator)
    images = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic") + 0.3 * torch.randn(
        count, 3, SIDE, SIDE, generator=generator
    )
    where = torch.randint(6, SIDE - 6, (count, 3, 2), generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1)
    away = (grid - where[:, :, None, None]).float()
    far, (rows, columns) = away.norm(dim=-1), away.abs().unbind(-1)
    inside = (rows <= 4) & (columns <= 4)
    shapes = torch.stack(
        [
            far[:, 0] <= 4,
            (far[:, 1] <= 4) & (far[:, 1] > 2),
            inside[:, 2] & ((rows[:, 2] <= 1) | (columns[:, 2] <= 1)),
        ],
        1,
    )
    return torch.where(shapes.any(1, keepdim=True), torch.tensor(2.0), images), where


class HeatMaps(nn.Module):
    """Three heat maps of a stride of 4 from one map of a backbone: the first, or the last enlarged."""

    def __init__(self, backbone: Any, index: int):
        super().__init__()
        self.backbone, self.index = backbone, index
        self.head = nn.Conv2d(backbone.feature_info[index].channels, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.head(self.backbone(images)[self.index])
        return maps if self.index == 0 else F.interpolate(maps, (SIDE // 4, SIDE // 4), mode="bilinear")


def heat(where: Tensor) -> Tensor:
    """Gaussians of a deviation of one cell around the points, on cells of 4 pixels, which sum to one."""
    centres = torch.arange(SIDE // 4) * 4 + 1.5
    rows, columns = (((centres - place[..., None]) / 4) ** 2 for place in where.unbind(-1))
    weights = torch.exp(-(rows[..., :, None] + columns[..., None, :]) / 2).flatten(-2)
    return weights / weights.sum(-1, keepdim=True)


def away_from(maps: Tensor, where: Tensor) -> Tensor:
    """Cross-entropy of the cells' distribution."""
    return -(heat(where) * maps.flatten(2).log_softmax(-1)).sum(-1).mean()


def positions(maps: Tensor) -> Tensor:
    """Where the maps are highest, in pixels, by the mean over the 3x3 cells around the peak: (batch, 3, 2)."""
    batch, kinds, height, width = maps.shape
    maps = maps.flatten(2).softmax(-1).view_as(maps)
    peak = maps.flatten(2).argmax(-1)
    rows, columns = peak // width, peak % width
    near = F.unfold(F.pad(maps.flatten(0, 1)[:, None], (1, 1, 1, 1)), 3).view(batch, kinds, 9, -1)
    around = near.gather(-1, peak[..., None, None].expand(-1, -1, 9, 1))[..., 0]
    around = around / around.sum(-1, keepdim=True).clamp_min(1e-6)
    shift = torch.arange(9)
    centre = torch.stack([rows + (around * (shift // 3 - 1)).sum(-1), columns + (around * (shift % 3 - 1)).sum(-1)], -1)
    return centre * 4 + 1.5


BACKBONES: dict[str, tuple[str, dict[str, Any], int]] = {
    "HRVMamba, stride 4": ("hrvmamba_nano", {}, 0),
    "VMamba, stride 32": (
        "vmamba_tiny_s1l8",
        {"dims": (18, 36, 72, 144), "depths": (1, 1, 4, 1)},
        3,
    ),
}


def heat_maps(name: str) -> HeatMaps:
    """A model of the table with fresh weights."""
    model, fields, index = BACKBONES[name]
    return HeatMaps(statescan.create_model(model, features_only=True, **fields), index)


def points(name: str, *, seed: int, steps: int) -> dict[str, float]:
    """Distance in pixels from the marks, mean and median."""
    torch.manual_seed(seed)
    model = heat_maps(name)
    generator = torch.Generator().manual_seed(seed)
    seconds = optimise(
        model, lambda: marks(16, generator), lambda x, at: away_from(model(x), at), steps=steps, rate=2e-3
    )
    images, where = marks(256, torch.Generator().manual_seed(1_000_000))
    model.eval()
    with torch.inference_mode():
        found = torch.cat([positions(model(part)) for part in images.split(32)])
    away = (found - where).norm(dim=-1)
    return {
        "pixels away": float(away.mean()),
        "median": float(away.median()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds a step": seconds,
    }


# ---- variates: a series that repeats another -----------------------------------------------------------------------


def series(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Histories (count, 48, 6) and what follows (count, 8, 6): the last variate is the third, 8 points before."""
    length = HISTORY + HORIZON
    noise = torch.randn(count, length + DELAY, VARIATES, generator=generator)
    x = noise.clone()
    for t in range(1, x.shape[1]):
        x[:, t] = 0.3 * x[:, t - 1] + noise[:, t]
    repeated = x[:, :-DELAY, 2] + 0.3 * noise[:, DELAY:, -1]
    x = x[:, DELAY:].clone()
    x[..., -1] = repeated
    return x[:, :HISTORY], x[:, HISTORY:]


def variates(mix: bool, *, seed: int, steps: int) -> dict[str, float]:
    """Squared error on the series that repeats another, and on the others."""
    torch.manual_seed(seed)
    model = statescan.create_model(
        "tsm2_small",
        channels=VARIATES,
        history=HISTORY,
        horizon=HORIZON,
        patch_size=8,
        stride=4,
        dim=48,
        depth=2,
        mix_channels=mix,
        dropout=0.0,
    )
    generator = torch.Generator().manual_seed(seed)
    seconds = optimise(
        model, lambda: series(32, generator), lambda x, y: F.mse_loss(model(x), y), steps=2 * steps, rate=2e-3
    )
    x, y = series(512, torch.Generator().manual_seed(1_000_000))
    model.eval()
    with torch.inference_mode():
        wrong = ((torch.cat([model(part) for part in x.split(64)]) - y) ** 2).mean((0, 1))
    return {
        "error of the repeated series": float(wrong[-1]),
        "of the others": float(wrong[:-1].mean()),
        "seconds a step": seconds,
    }


def rows(
    name: str, settings: dict[str, Callable[..., dict[str, float]]], steps: int, seeds: int, points: Points
) -> list:
    """Means over seeds, and the deviation of a seed of the first figure."""
    found = {}
    for setting, measure in settings.items():
        found[setting] = []
        for seed in range(seeds):
            point = {"experiment": name, "setting": setting, "seed": seed, "steps": steps}
            found[setting].append(points.get(point, functools.partial(measure, seed=seed, steps=steps)))
            print(name, setting, seed, found[setting][-1], flush=True)
    out = []
    for setting, results in found.items():
        means = {key: statistics.mean(one[key] for one in results) for key in results[0]}
        first = next(iter(means))
        spread = statistics.stdev(one[first] for one in results) if len(results) > 1 else 0.0
        out.append({name: setting, first: means.pop(first), "± a seed": spread} | means)
    return out


def main() -> None:
    """Train, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/backbone_claims"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each model")
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=EXPERIMENTS,
        default=EXPERIMENTS,
        help="which; results are written after all of them",
    )
    parser.add_argument("--quick", action="store_true", help="a few steps, to see it at work; nothing is written")
    options = parser.parse_args()
    steps, seeds = (2, 1) if options.quick else (options.steps, options.seeds)
    torch.set_num_threads(1)
    _measure.keep_freed_memory()
    kept = Points(options.out / ("quick.jsonl" if options.quick else "points.jsonl"))
    experiments: dict[str, dict[str, Callable[..., dict[str, float]]]] = {
        "paths": {path: functools.partial(paths, path) for path in PATHS},
        "points": {name: functools.partial(points, name) for name in BACKBONES},
        "variates": {
            "mixed": functools.partial(variates, True),
            "each alone": functools.partial(variates, False),
        },
    }
    tables = {}
    for name in options.only:
        settings = experiments[name]
        title = f"{name}: {steps} steps, seeds: {seeds}"
        tables[title] = rows(name, settings, steps, seeds, kept)
        _measure.show(title, tables[title])
    if not options.quick and set(options.only) == set(EXPERIMENTS):
        print(_measure.save("backbone_claims", {"steps": steps, "seeds": seeds, "tables": tables}, tables=tables))


if __name__ == "__main__":
    main()
