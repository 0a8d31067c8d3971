"""Image backbones on a CPU: beside their authors' code, beside a transformer and a convolutional network of equal cost.

python -m benchmarks.images --published PEERS

times one image through six backbones, forward at 224 and 1,024 pixels and forward and backward at 224, taking turns
with the authors' own code where a folder of it is given (`benchmarks/_published_images.py` says what it must hold); both
have the same weights and must agree first. Forward passes of ours are those of `compile_for_inference`, and in a row of
their own those of the model as it is built. ConvNeXt V2 and DeiT, of the package transformers with random weights, stand
beside them: each backbone beside the one nearest in multiply-adds. The floor of ours is its multiply-adds (three times
as many with the backward pass) at the rate that the vector units have in the same run. Then Vim beside DeiT of the same
width and depth at four sizes. Peak memory is that of a process of its own, over what it held before the call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _measure
from statescan import compile_for_inference, create_model, inspect, models

#: Ours, as they are compared with their authors' code.
BACKBONES = (
    "vim_tiny",
    "vmamba_tiny_s1l8",
    "efficient_vmamba_t",
    "vssd_micro",
    "efficient_vim_m2",
    "mobile_mamba_b1",
)
#: Compiled for inference where there is no backward pass; never.
OURS = ("ours", "ours, as built")
#: Those of them that have no scan: the issue there is to be no slower.
WITHOUT_SCAN = ("vssd_micro", "efficient_vim_m2")
#: How many times faster than the authors' code a backbone with a scan is to be.
TARGET = 5.0
#: ConvNeXt V2 by depths, widths and billions of multiply-adds at 224 pixels (Woo et al. 2023, table 7).
CONVNEXTS = {
    "convnextv2_atto": ((2, 2, 6, 2), (40, 80, 160, 320), 0.55),
    "convnextv2_femto": ((2, 2, 6, 2), (48, 96, 192, 384), 0.78),
    "convnextv2_pico": ((2, 2, 6, 2), (64, 128, 256, 512), 1.37),
    "convnextv2_nano": ((2, 2, 8, 2), (80, 160, 320, 640), 2.45),
    "convnextv2_tiny": ((3, 3, 9, 3), (96, 192, 384, 768), 4.47),
}
SIZES = (224, 512, 1024, 1248)
SMALL = 64
PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "vim_and_deit.png"


def ours(name: str, size: int) -> nn.Module:
    """A model of ours; those with position embeddings are made for the size."""
    return create_model(name, image_size=size)


def published(name: str, size: int, folder: Path) -> nn.Module:
    """The authors' model."""
    from benchmarks._published_images import PEERS

    place, make = PEERS[name]
    return make(folder / place, size)


def convnext(name: str, size: int) -> nn.Module:
    """A ConvNeXt V2 of transformers."""
    import transformers

    depths, widths, _ = CONVNEXTS[name]
    config = transformers.ConvNextV2Config(depths=list(depths), hidden_sizes=list(widths), num_labels=1000)
    return _Logits(transformers.ConvNextV2ForImageClassification(config))


def deit_tiny(name: str, size: int) -> nn.Module:
    """A DeiT-tiny of transformers; ``deit_tiny`` writes its attention matrices out, ``deit_tiny_sdpa`` fuses them."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=size,
        num_labels=1000,
        attn_implementation="sdpa" if name.endswith("sdpa") else "eager",
    )
    return _Logits(transformers.ViTForImageClassification(config))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def build(who: str, name: str, size: int, folder: Path | None) -> nn.Module:
    """A model by who wrote it: one of `OURS`, ``published`` or ``transformers``."""
    torch.manual_seed(0)
    if who in OURS:
        return ours(name, size)
    if who == "published":
        assert folder is not None
        return published(name, size, folder)
    return deit_tiny(name, size) if name.startswith("deit") else convnext(name, size)


def call(model: nn.Module, size: int, *, backward: bool) -> Callable[[], Any]:
    """One image through a model, and back if asked for."""
    images = torch.randn(1, 3, size, size)
    if not backward:
        model.eval()

        def forward() -> Tensor:
            with torch.no_grad():
                return model(images)

        return forward
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # one image alone has no statistics in the last stages

    def both() -> None:
        model.zero_grad()
        found = model(images)
        (found[0] if isinstance(found, tuple) else found).square().mean().backward()

    return both


def agree(name: str, mine: nn.Module, theirs: nn.Module) -> None:
    """Give ours the authors' weights, and refuse to time what disagrees."""
    for parameter in theirs.parameters():
        if parameter.ndim == 1 and not bool(parameter.detach().any()):
            nn.init.uniform_(parameter, -0.5, 0.5)  # else whole branches would be multiplied by zero
    models.load_published(mine, theirs.state_dict())  # type: ignore[arg-type]
    images = torch.randn(1, 3, 224, 224)
    mine.eval(), theirs.eval()
    with torch.no_grad():
        want = theirs(images)
        given = [mine(images), compile_for_inference(mine)(images)]
        error = max(float((found - want).abs().max() / want.abs().max()) for found in given)
    if not error < 1e-4:
        raise SystemExit(f"{name}: ours and theirs differ by {error:.1e} of the largest score")


def seconds_of(calls: dict[str, Callable[[], Any]], least: int, most: float) -> dict[str, float]:
    """Median seconds of a call of each, in turns; slow ones get fewer turns."""
    taken: dict[str, list[float]] = {}
    for name, run in calls.items():
        start = time.perf_counter()
        run()
        first = time.perf_counter() - start
        # a call of many seconds is its own warm-up
        taken[name] = [first] if first > most else []
    end = time.perf_counter() + most
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        rounds += 1
        for name, run in calls.items():
            if taken[name] and taken[name][0] > most:
                continue
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
        if all(times and times[0] > most for times in taken.values()):
            break
    return {name: statistics.median(times) for name, times in taken.items()}


def memory(who: str, name: str, size: int, folder: Path | None, *, backward: bool) -> float:
    """Peak MiB of a call in a process of its own, over what the process held before it."""
    words = [sys.executable, "-m", "benchmarks.images", "--memory", who, name, str(size), str(int(backward))]
    if folder is not None:
        words += ["--published", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return float("nan")
    return json.loads(done.stdout.splitlines()[-1])


def nearest_convnext(name: str) -> str:
    """The ConvNeXt V2 whose cost at 224 pixels is nearest in ratio."""
    cost = inspect.image_cost(name, size=224)
    own = (cost.multiply_adds + cost.scan_operations) / 1e9
    return min(CONVNEXTS, key=lambda other: abs(torch.tensor(CONVNEXTS[other][2] / own).log().item()))


def backbones(
    names: list[str], folder: Path | None, seconds: float, sizes: list[int], *, quick: bool
) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        other = nearest_convnext(name)
        for size, backward in [(size, False) for size in sizes] + [(224, True)]:
            candidates = {"ours": build("ours", name, size, None)}
            if not backward:
                candidates["ours, as built"] = candidates["ours"]
                candidates["ours"] = compile_for_inference(candidates["ours"])
            if folder is not None:
                candidates["published"] = build("published", name, size, folder)
                agree(name, build("ours", name, 224, None), build("published", name, 224, folder))
            candidates[other] = build("transformers", other, size, None)
            if name == "vim_tiny":
                candidates["deit_tiny_sdpa"] = build("transformers", "deit_tiny_sdpa", size, None)
            calls = {who: call(model, size, backward=backward) for who, model in candidates.items()}
            cost = inspect.image_cost(build("ours", name, size, None).to("meta"), size=size)
            floor = (3 if backward else 1) * cost.multiply_adds / _measure.multiply_adds()
            times = seconds_of(calls, 3, seconds)
            for who, taken in times.items():
                author = who if who in (*OURS, "published") else "transformers"
                model = name if author != "transformers" else who
                rows.append(
                    {
                        "backbone": name,
                        "pixels": size,
                        "pass": "forward + backward" if backward else "forward",
                        "model": who,
                        "ms": 1e3 * taken,
                        "images/s": 1 / taken,
                        "times ours": taken / times["ours"],
                        "of the floor": None if author == "transformers" else floor / taken,
                        "peak MiB": None if quick else memory(author, model, size, folder, backward=backward),
                    }
                )
                print({key: _short(value) for key, value in rows[-1].items()}, flush=True)
    return rows


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached beside the authors' code, where that was there, and which part of the floor that would be."""
    found = []
    for row in rows:
        if row["model"] == "published":
            target = 1.0 if row["backbone"] in WITHOUT_SCAN else TARGET
            kept = {name: row[name] for name in ("backbone", "pixels", "pass", "times ours")}
            asked = {"target": target, "of the floor at the target": row["of the floor"] * target}
            found.append(kept | asked | {"held": "yes" if row["times ours"] >= target else "no"})
    return found


def vim_and_deit(seconds: float, *, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for size in SIZES[:2] if quick else SIZES:
        calls = {
            "vim_tiny": call(build("ours", "vim_tiny", size, None), size, backward=False),
            "deit_tiny": call(build("transformers", "deit_tiny", size, None), size, backward=False),
            "deit_tiny_sdpa": call(build("transformers", "deit_tiny_sdpa", size, None), size, backward=False),
        }
        times = seconds_of(calls, 3, seconds)
        for who, taken in times.items():
            author = "ours" if who == "vim_tiny" else "transformers"
            rows.append(
                {
                    "pixels": size,
                    "model": who,
                    "ms": 1e3 * taken,
                    "times Vim": taken / times["vim_tiny"],
                    "peak MiB": None if quick else memory(author, who, size, None, backward=False),
                }
            )
            print({key: _short(value) for key, value in rows[-1].items()}, flush=True)
    return rows


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against the image's side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {
        "vim_tiny": ("Vim-tiny", "#0072B2", "o"),
        "deit_tiny": ("DeiT-tiny, attention written out", "#D55E00", "s"),
        "deit_tiny_sdpa": ("DeiT-tiny, attention fused", "#E69F00", "^"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in ((axes[0], "ms", "milliseconds an image"), (axes[1], "peak MiB", "peak memory, MiB")):
        for model, (title, colour, marker) in names.items():
            own = [row for row in rows if row["model"] == model]
            axis.plot([r["pixels"] for r in own], [r[key] for r in own], color=colour, marker=marker, label=title)
        axis.set_xlabel("side of the image, pixels")
        axis.set_ylabel(label)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="a folder with the authors' repositories")
    parser.add_argument("--models", nargs="*", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--sizes", nargs="*", type=int, default=[224, 1024], help="of the forward passes")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each comparison (default: 10)")
    parser.add_argument(
        "--quick", action="store_true", help="small images, a second each, no memory; nothing is written"
    )
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--memory", nargs=4, metavar=("WHO", "NAME", "SIZE", "BACKWARD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        who, name, size, backward = options.memory
        model = build(who, name, int(size), options.published)
        if who == "ours" and backward == "0":
            compile_for_inference(model, in_place=True)
            call(model, SMALL, backward=False)()  # arranged weights are the model's, not a call's
        run = call(model, int(size), backward=backward == "1")
        before = _measure.reset_peak_memory()
        run()
        print(json.dumps((_measure.peak_memory() - before) / 2**20))
        return
    if options.quick:
        options.sizes, options.seconds, options.no_save = [224], 1.0, True
    rows = backbones(options.models, options.published, options.seconds, options.sizes, quick=options.quick)
    title = "One image: milliseconds (medians), images a second, peak memory of a call"
    tables = {title: rows}
    if "vim_tiny" in options.models:
        tables["Vim-tiny beside DeiT-tiny, one image, inference"] = vim = vim_and_deit(
            options.seconds, quick=options.quick
        )
        if not options.no_save:
            draw(vim, PICTURE)
    if options.published:
        tables["Targets: times faster than the authors' code"] = targets(rows)
    else:
        print("no targets without --published: they are ratios to the authors' code")
    for name, table in tables.items():
        _measure.show(name, table)
    if not options.no_save:
        print(f"written to {_measure.save('images', tables, tables=tables)}")


if __name__ == "__main__":
    main()
