"""Does what light backbones add help, on generated images?

python -m benchmarks.light_backbones [shapes | textures | below]

``shapes``: EfficientViM tells four shapes apart, from the states of all stages or from the last grid alone.
``textures``: MobileMamba tells four pairs of frequencies apart, with its scans and wavelets or with those channels left as
they are. ``below``: Spatial-Mamba says, at the cell of a mark, the colour of the dot that lies five cells below and to the
right, farther than its convolutions reach, with and without state fusion. 300 steps each (``--steps``), three seeds
(``--seeds``), accuracy on 1,024 fresh images. Figures go to ``benchmarks/results/light_backbones_TASK.json`` and ``.md``,
after each model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import statescan
from benchmarks import _measure
from statescan import inspect

SIDE = 64
BATCH = 32
#: (images, labels, extra) of so many examples.
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]


def shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Disc, square, ring or cross, of any size, place and colour, in noise."""
    labels = torch.randint(4, (count,), generator=generator)
    centre = 20 + 24 * torch.rand(count, 2, 1, 1, generator=generator)
    radius = 8 + 8 * torch.rand(count, 1, 1, generator=generator)
    axis = torch.arange(SIDE).float()
    rows, columns = (axis[:, None] - centre[:, 0]).abs(), (axis[None, :] - centre[:, 1]).abs()
    distance, farther, nearer = (
        (rows**2 + columns**2).sqrt(),
        torch.maximum(rows, columns),
        torch.minimum(rows, columns),
    )
    drawn = torch.stack(
        [
            distance < radius,
            farther < 0.89 * radius,  # the area of the disc
            (distance < 1.2 * radius) & (distance > 0.66 * radius),
            (farther < 1.2 * radius) & (nearer < 0.4 * radius),
        ],
        1,
    )
    mask = drawn[torch.arange(count), labels].float()
    colour = 0.5 + torch.rand(count, 3, 1, 1, generator=generator)
    noise = 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return colour * mask[:, None] + noise, labels, labels


def textures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A coarse wave and a fine one, each of two frequencies, any directions and phases, in noise."""
    labels = torch.randint(4, (count,), generator=generator)
    coarse = torch.where(labels < 2, 1.5, 3.0) / SIDE
    fine = torch.where(labels % 2 == 0, 12.0, 16.0) / SIDE
    side = 2 * SIDE
    image = torch.randn(count, side, side, generator=generator)
    axis = torch.arange(side).float()
    for frequency in (coarse, fine):
        angle, phase = 2 * torch.pi * torch.rand(2, count, 1, 1, generator=generator)
        along = axis[:, None] * torch.sin(angle) + axis[None, :] * torch.cos(angle)
        image = image + torch.sin(2 * torch.pi * frequency[:, None, None] * along + phase)
    return image[:, None].expand(-1, 3, -1, -1), labels, labels


def below(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A white mark, a dot of one of four colours five cells of four pixels below and to the right.

    The third result is the mark's cell (row, column)."""
    labels = torch.randint(4, (count,), generator=generator)
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    side = 12
    images = 0.1 * torch.randn(count, 3, 4 * side, 4 * side, generator=generator)
    marks = torch.randint(side - 5, (count, 2), generator=generator)
    for image, label, mark in zip(images, labels, marks, strict=True):
        answer = mark + 5
        _paint(image, answer, colours[int(label)])
        _paint(image, mark, torch.ones(3) * 2)
    return images, labels, marks


def _paint(image: Tensor, cell: Tensor, colour: Tensor) -> None:
    row, column = (4 * cell).tolist()
    image[:, row : row + 4, column : column + 4] = colour[:, None, None]


class LastStageHead(nn.Module):
    """EfficientViM with one head, on the mean of the last grid."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.widths[-1], 4)

    def forward(self, images: Tensor, _: Tensor) -> Tensor:
        """(batch, classes)."""
        return self.head(self.model.forward_features(images)[-1].mean((1, 2)))


class AtTheMark(nn.Module):
    """Scores at one cell of the grid."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, marks: Tensor) -> Tensor:
        """(batch, classes)."""
        grid = self.model.forward_features(images)
        return self.model.head(grid[torch.arange(len(grid)), marks[:, 0], marks[:, 1]])


class Whole(nn.Module):
    """Scores of a whole image."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, _: Tensor) -> Tensor:
        """(batch, classes)."""
        return self.model(images)


def efficient_vim(kind: type[nn.Module]) -> nn.Module:
    """EfficientViM of three small stages."""
    return kind(statescan.create_model("efficient_vim_tiny", num_classes=4, widths=(32, 48, 64)))


def mobile_mamba(**fields: Any) -> nn.Module:
    """MobileMamba of three small stages."""
    return Whole(statescan.create_model("mobile_mamba_tiny", num_classes=4, depths=(1, 1, 1), **fields))


def spatial_mamba(*, fusion: bool) -> nn.Module:
    """One block, at a cell for four pixels."""
    fields: dict[str, Any] = {"dim": 32, "depths": (1,), "num_classes": 4, "mlp_ratio": 2.0, "fusion": fusion}
    return AtTheMark(statescan.create_model("spatial_mamba_test", **fields))


#: Task: how examples are drawn, and the candidates.
TASKS: dict[str, tuple[Draw, dict[str, Callable[[], nn.Module]]]] = {
    "shapes": (
        shapes,
        {
            "states of all stages": lambda: efficient_vim(Whole),
            "last grid alone": lambda: efficient_vim(LastStageHead),
        },
    ),
    "textures": (
        textures,
        {
            "scan and wavelets": lambda: mobile_mamba(),
            "these channels left": lambda: mobile_mamba(
                global_ratios=(0.0, 0.0, 0.0), local_ratios=(9.5 / 48, 0.2, 0.3)
            ),
        },
    ),
    "below": (
        below,
        {
            "state fusion": lambda: spatial_mamba(fusion=True),
            "one-way scan": lambda: spatial_mamba(fusion=False),
        },
    ),
}


def train(build: Callable[[], nn.Module], draw: Draw, seed: int, steps: int) -> dict[str, Any]:
    """Accuracy of one candidate on fresh images after so many steps."""
    torch.manual_seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    start = time.process_time()
    for _ in range(steps):
        images, labels, extra = draw(BATCH, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images, extra), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - start
    model.eval()
    held_out = torch.Generator().manual_seed(10_000)
    right = 0
    with torch.no_grad():
        for _ in range(8):
            images, labels, extra = draw(128, held_out)
            right += int((model(images, extra).argmax(-1) == labels).sum())
    return {"parameters": inspect.count_parameters(model), "accuracy": right / 1024, "seconds": seconds}


def main() -> None:
    """Train, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=TASKS, help="all unless given")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for task in [options.task] if options.task else TASKS:
        draw, candidates = TASKS[task]
        rows: list[dict[str, Any]] = []
        title = f"{task}: accuracy after {options.steps} steps of {BATCH} images, chance 0.25"
        for seed in range(options.seeds):
            for name, build in candidates.items():
                found = train(build, draw, seed, options.steps)
                rows.append(
                    {
                        "model": name,
                        "seed": seed,
                        "parameters": found["parameters"],
                        "accuracy": f"{found['accuracy']:.3f}",
                        "CPU seconds": f"{found['seconds']:.0f}",
                    }
                )
                _measure.save(f"light_backbones_{task}", rows, tables={title: rows})
        _measure.show(title, rows)


if __name__ == "__main__":
    main()
