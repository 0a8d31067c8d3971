"""Projections by modality beside shared ones, on real text and real images: loss at equal steps, FLOPs to equal loss.

python -m benchmarks.mixture_of_mamba --out runs/mixture

Text is the prose of Python's manual that the standard library holds (`pydoc_data.topics`); images are scikit-learn's
1,797 handwritten digits, 16 patches of 2 x 2 pixels each; the last tenth of the text and a tenth of the images are
held out. A sequence is 96 bytes of text that end with the digit's name, then the digit. Two forms: ``tokens``
(Chameleon: 64 image tokens, nats a token) and ``patches`` (Transfusion: continuous patches under a diffusion loss of
weight 5, squared error of the noise).

All arms have the same depth, width, steps and batches; the better of the learning rates counts, by the held-out loss
at the end; it is constant after a warm-up, so that every point of a curve is the end of a shorter training. A token
passes as many parameters in each arm. ``FLOPs to the dense loss`` is the share of the dense arm's training FLOPs
after which an arm's held-out loss (a mean of three evaluations) is that of the dense arm at its end. ``--ablation``
splits single projections too.

Finished trainings are kept in ``OUT/points.jsonl``: a killed run goes on there. Figures go to
``benchmarks/results/mixture_of_mamba.json`` and ``.md``. Liang et al. 2025, arXiv 2501.16295, sections 4 and 5.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

import statescan
from benchmarks import _measure
from benchmarks._points import Points
from statescan import data
from statescan.generation import progress_bar
from statescan.inspect._flops import counter
from statescan.layers import PROJECTIONS
from statescan.tasks._module import Sums
from statescan.tasks.multimodal import (
    TEXT_VOCABULARY,
    MultimodalBatches,
    text_and_image,
    token_loss,
    transfusion_loss,
)

DIM, DEPTH, STATES, BATCH, TEXT, PATCH, CODEBOOK, WEIGHT = 64, 4, 8, 16, 96, 2, 64, 5.0
STEPS, EVERY, WARMUP = 1500, 50, 50
RATES = (2e-3, 5e-3)
SEEDS = (0, 1, 2)
TASK = {"dim": DIM, "depth": DEPTH, "states": STATES, "batch": BATCH, "text": TEXT, "patch": PATCH, "codes": CODEBOOK}
ARMS: dict[str, tuple[str, ...]] = {"dense": (), "split": PROJECTIONS}
ABLATION: dict[str, tuple[str, ...]] = {f"split {name} only": (name,) for name in PROJECTIONS}


@functools.cache
def material(discrete: bool) -> tuple[Any, ...]:
    """Text to learn from and held out, images likewise, and their codec."""
    text = np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
    cut = round(0.9 * len(text))
    held_out, images = data.read_captioned_images("digits").split(0.1, seed=0)
    codec = data.PatchCodec.fit(images.images, patch=PATCH, entries=CODEBOOK if discrete else 0)
    return text[:cut], text[cut:], images, held_out, codec


def create(form: str, split: tuple[str, ...], codec: data.PatchCodec) -> Any:
    """A model of one arm."""
    options: dict[str, Any] = dict(dim=DIM, depth=DEPTH, state_dim=STATES, split=split)
    if form == "tokens":
        return statescan.create_model("mixture_of_mamba_tiny", vocabularies=(TEXT_VOCABULARY, CODEBOOK), **options)
    return statescan.create_model("transfusion_mamba_tiny", patch_dim=codec.patch_dim, **options)


def train(form: str, split: tuple[str, ...], *, rate: float, seed: int, steps: int, show: str = "") -> dict[str, Any]:
    """Train one arm; gives its held-out losses along the way. Batch n is the same for all of a seed."""
    discrete = form == "tokens"
    text, text_held_out, images, held_out, codec = material(discrete)
    common: dict[str, Any] = dict(text_length=TEXT, discrete=discrete)
    batches = iter(MultimodalBatches(text, images, codec, batch_size=BATCH, seed=seed, **common))
    trial = [vars(b) for b in MultimodalBatches(text_held_out, held_out, codec, batch_size=90, once=True, **common)]
    share = codec.count / (codec.count + TEXT + 1)
    weights = (1 - share, share) if discrete else (1.0, WEIGHT)
    measure = token_loss() if discrete else transfusion_loss(WEIGHT)
    torch.manual_seed(seed)
    model = create(form, split, codec)
    optimiser = torch.optim.AdamW(model.parameter_groups(0.1), lr=rate, betas=(0.9, 0.95))
    with counter() as count:
        measure(model, vars(next(iter(MultimodalBatches(text, images, codec, batch_size=BATCH, **common)))), None)
    curve: list[tuple[int, float, float]] = []
    began = time.process_time()
    with progress_bar(show, steps, unit="steps", shown=bool(show)) as advance:
        for step in range(steps + 1):
            if step % EVERY == 0:
                model.eval()
                with torch.no_grad():
                    total = sum(measure(model, batch, None)[1] for batch in trial)
                model.train()
                losses = text_and_image(Sums(*total.tolist()), text_weight=weights[0], image_weight=weights[1])
                curve.append((step, losses["text_loss"], losses["image_loss"]))
            if step == steps:
                break
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARMUP)
            torch.manual_seed(data.batch_seed(seed, "noise", step))
            loss, _, _ = measure(model, vars(next(batches)), None)
            optimiser.zero_grad()
            (loss / BATCH).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            advance(1)
    return {
        "curve": curve,
        "flops": 3 * count.get_total_flops(),  # of a step: forward, and twice that backward
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.process_time() - began,
    }


def smooth(curve: list[Any], column: int) -> list[tuple[int, float]]:
    """Steps and means of three neighbouring evaluations, the last of which is at the step."""
    values = [point[column] for point in curve]
    return [(curve[i][0], statistics.fmean(values[max(0, i - 2) : i + 1])) for i in range(len(curve))]


def reaching(curve: list[Any], column: int, level: float) -> float | None:
    """Steps after which a loss is `level`, between evaluations by a straight line; None: never."""
    points = smooth(curve, column)
    for (before, high), (after, low) in itertools.pairwise(points):
        if low <= level:
            return after if high <= level else before + (after - before) * (high - level) / (high - low)
    return None


def measure(
    points: Points, *, steps: int, seeds: tuple[int, ...], arms: dict[str, tuple[str, ...]], rates: tuple[float, ...]
) -> list[dict[str, Any]]:
    """A row for each form, arm and kind of loss."""
    rows = []
    for form in ("tokens", "patches"):
        best: dict[str, list[dict[str, Any]]] = {}
        for name, split in arms.items():
            for seed in seeds:
                found = []
                for rate in rates:
                    settings: dict[str, Any] = {"rate": rate, "seed": seed, "steps": steps}
                    call = functools.partial(train, form, split, show=f"{form}, {name}, {rate:g}, {seed}", **settings)
                    found.append(points.get(TASK | {"form": form, "split": split} | settings, call))
                ends = [smooth(f["curve"], 1)[-1][1] + smooth(f["curve"], 2)[-1][1] for f in found]
                best.setdefault(name, []).append(found[ends.index(min(ends))])
        for column, kind in ((1, "text"), (2, "image")):
            for name in arms:
                ends, shares = [], []
                for dense, arm in zip(best["dense"], best[name], strict=True):
                    ends.append(smooth(arm["curve"], column)[-1][1])
                    there = reaching(arm["curve"], column, smooth(dense["curve"], column)[-1][1])
                    shares.append(None if there is None else there * arm["flops"] / (steps * dense["flops"]))
                reached = [share for share in shares if share is not None]
                rows.append(
                    {
                        "form": form,
                        "loss of": kind,
                        "arm": name,
                        "parameters": best[name][0]["parameters"],
                        "MFLOPs a step": best[name][0]["flops"] / 1e6,
                        "held-out loss": statistics.median(ends),
                        "losses": ", ".join(f"{end:.4f}" for end in sorted(ends)),
                        "FLOPs to the dense loss": _share(reached, len(shares)) if name != "dense" else "1",
                    }
                )
    return rows


def _share(reached: list[float], seeds: int) -> str:
    if not reached:
        return "not reached"
    each = ", ".join(f"{share:.2f}" for share in sorted(reached))
    return each if len(reached) == seeds else f"{each}; {seeds - len(reached)} of {seeds} not"


def main() -> None:
    """Train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mixture"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of each training")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="trainings of each arm")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates, the better counts")
    parser.add_argument("--ablation", action="store_true", help="arms that split one projection, too")
    parser.add_argument(
        "--quick", action="store_true", help="60 steps, one seed, one rate, nothing written: to see it work"
    )
    parser.add_argument("--no-save", action="store_true", help="leave the results as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds, rates = options.steps, tuple(range(options.seeds)), tuple(options.rates)
    if options.quick:
        steps, seeds, rates, options.no_save = 60, (0,), rates[:1], True
    arms = ARMS | (ABLATION if options.ablation else {})
    points = Points(options.out / ("quick.jsonl" if options.quick else "points.jsonl"))
    rows = measure(points, steps=steps, seeds=seeds, arms=arms, rates=rates)
    title = f"{steps} steps of {BATCH} sequences, dim {DIM}, {DEPTH} blocks, {len(seeds)} seeds"
    _measure.show(title, rows)
    if not options.no_save:
        print(_measure.save("mixture_of_mamba", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
