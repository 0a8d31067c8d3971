"""Published settings of the training of image models on ImageNet, by name: data, no code.

Sources are the papers and their published command lines: Vim (2401.09417), VMamba (2401.10166), PlainMamba (2403.17695),
MambaOut (2405.07992), RSMamba (2403.19654), Res-VMamba (2402.15761), patch scaling (2502.03738). Learning rates are
for 512 images a step and grow with their number, but RSMamba's. Warm-up is a part of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ImageRecipe:
    """How a family was trained.

    Fields:
        rate: highest learning rate; for 512 images a step unless `scaled` is False.
        epochs: of the published run.
        warmup: of these epochs.
        settings: fields of `ClassificationTraining`.
        drop_path: probability that the last block is skipped, by a part of the model's name; '' for all others.
        scaled: the learning rate grows with the images of a step.
    """

    rate: float
    epochs: int
    warmup: int
    settings: dict[str, Any] = field(default_factory=dict)
    drop_path: dict[str, float] = field(default_factory=dict)
    scaled: bool = True

    def drop_path_of(self, model: str) -> float | None:
        """The probability for a model of this name, if the publication gives one."""
        found = [rate for part, rate in self.drop_path.items() if part and part in model]
        return found[0] if found else self.drop_path.get("")

    def learning_rate(self, images: int) -> float:
        """The highest learning rate for so many images a step."""
        return self.rate * images / 512 if self.scaled else self.rate


#: What Swin and those after it have in common.
_SWIN: dict[str, Any] = dict(
    weight_decay=0.05,
    betas=(0.9, 0.999),
    final_learning_rate=0.01,
    augment="randaugment",
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    gradient_clip=5.0,
)
#: The published runs do not shorten gradients.
_UNCLIPPED: dict[str, Any] = {"gradient_clip": 1e9}

RECIPES: dict[str, ImageRecipe] = {
    "vim": ImageRecipe(
        5e-4,
        300,
        5,
        _SWIN | _UNCLIPPED | dict(weight_decay=0.1, ema=0.99996, repeats=3),
        {"vim_small": 0.05, "": 0.0},
    ),
    "vmamba": ImageRecipe(
        5e-4, 300, 20, _SWIN | dict(ema=0.9999), {"tiny": 0.2, "small": 0.3, "base_s1": 0.5, "base": 0.6}
    ),
    "plainmamba": ImageRecipe(5e-4, 300, 15, _SWIN, {"l2": 0.2, "l3": 0.5, "": 0.2}),
    "mambaout": ImageRecipe(
        5e-4,
        300,
        20,
        _SWIN | _UNCLIPPED,
        {"femto": 0.025, "kobe": 0.025, "tiny": 0.2, "small": 0.4, "base": 0.6},
    ),
    "rsmamba": ImageRecipe(
        5e-4,
        500,
        10,
        _UNCLIPPED
        | dict(
            weight_decay=0.05,
            betas=(0.9, 0.999),
            final_learning_rate=0.02,
            augment="autoaugment",
            mixup=0.8,
            cutmix=1.0,
            smoothing=0.1,
            scale=(0.4, 1.0),
            vertical_flip=0.5,
        ),
        scaled=False,
    ),
    "res_vmamba": ImageRecipe(5e-4, 300, 20, _SWIN | dict(ema=0.9999), {"": 0.3}),
    # The first of its three stages; the warm-up is that of DeiT, the publication names none.
    "patch_scaling": ImageRecipe(
        5e-4,
        300,
        5,
        _UNCLIPPED
        | dict(
            weight_decay=0.05,
            betas=(0.9, 0.999),
            final_learning_rate=0.01,
            augment="three",
            mixup=0.8,
            cutmix=1.0,
            repeats=3,
        ),
        {"base": 0.1, "": 0.0},
    ),
}
