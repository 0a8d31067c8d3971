"""Changed copies of training images, and mixtures of two.

The operations on single images are those of kornia, which needs torch alone. Mixtures are written here, since kornia's draw
their proportion from a uniform distribution and published recipes draw it from a beta distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Policy = Literal["none", "randaugment", "autoaugment", "three"]


@dataclass
class Augmentation:
    """Changes batches of images (batch, channels, height, width) from 0 to 1 and their targets; draws from torch's seed.

    Fields:
        policy: operations on colours and shapes. ``randaugment``: some of a list, of one strength (Cubuk et al. 2020);
            ``autoaugment``: pairs that were learnt on ImageNet (Cubuk et al. 2019); ``three``: one of grey, solarised and
            blurred, then changed colours (Touvron et al. 2022). They are for three channels.
        operations: how many of them, of ``randaugment``.
        magnitude: their strength, from 0 to 10, of ``randaugment``.
        erasing: probability that a rectangle of an image is made grey.
        mixup: parameter of the beta distribution of the proportion in which two images are added (Zhang et al. 2018); 0
            for never.
        cutmix: likewise for a rectangle of another image that is put in (Yun et al. 2019).
        smoothing: part of the target that goes to all classes alike.
        together: so many images of a batch share their operations, which have other strengths or signs for each image.
    """

    policy: Policy = "none"
    operations: int = 2
    magnitude: float = 9.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    together: int = 8
    _steps: list[Callable[[Tensor], Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: 0 or more, got {getattr(self, name)}")
        for name in ("erasing", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 0 and below 1, got {getattr(self, name)}")
        if not 0 < self.magnitude <= 10 or self.operations < 1:
            raise ValueError(
                f"operations, magnitude: at least 1, and above 0 up to 10, got {self.operations} and {self.magnitude}"
            )

    def change(self, images: Tensor) -> Tensor:
        """Operations on single images.

        Raises:
            ValueError: a policy for images that have not three channels, or kornia is not installed.
        """
        if self._steps is None:
            self._steps = self._build(images.shape[1])
        if not self._steps:
            return images
        with torch.autocast(images.device.type, enabled=False):
            for step in self._steps:
                images = torch.cat([step(some) for some in images.split(self.together)]).clamp(0, 1)
        return images

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixtures of each image with the one that stands opposite in the batch, and of their targets.

        Arguments:
            images: of any normalisation.
            targets: (batch, classes), probabilities.
        """
        kinds = [name for name in ("mixup", "cutmix") if getattr(self, name)]
        if not kinds or len(images) < 2:
            return images, targets
        kind = kinds[int(torch.randint(len(kinds), ()))]
        strength = getattr(self, kind)
        share = float(torch.distributions.Beta(strength, strength).sample())
        if kind == "mixup":
            mixed = share * images + (1 - share) * images.flip(0)
        else:
            mixed, share = _cut(images, share)
        return mixed, share * targets + (1 - share) * targets.flip(0)

    def soften(self, targets: Tensor, classes: int) -> Tensor:
        """Class numbers (batch,) as probabilities (batch, classes), smoothed; several labels (batch, classes) smoothed."""
        if targets.ndim == 2:
            return targets.float() * (1 - self.smoothing) + self.smoothing / 2
        rest = self.smoothing / classes
        return torch.nn.functional.one_hot(targets, classes).float() * (1 - self.smoothing) + rest

    def _build(self, channels: int) -> list[Callable[[Tensor], Tensor]]:
        if self.policy == "none" and not self.erasing:
            return []
        try:
            import kornia.augmentation as kornia
            from kornia.augmentation import auto
        except ImportError:
            raise ValueError("augment, erasing: these need kornia: pip install 'statescan[images]'") from None
        if self.policy != "none" and channels != 3:
            raise ValueError(
                f"augment: {self.policy!r} changes colours and needs 3 channels, the images have {channels}; use "
                "--augment none"
            )
        steps: list[Any] = []
        if self.policy == "randaugment":
            # kornia counts to 30, the published recipes to 10
            strength = min(29, max(1, round(3 * self.magnitude)))
            steps.append(auto.RandAugment(n=self.operations, m=strength))
        elif self.policy == "autoaugment":
            steps.append(auto.AutoAugment("imagenet"))
        elif self.policy == "three":
            steps.append(_OneOf([kornia.RandomGrayscale(p=1.0), kornia.RandomSolarize(p=1.0), _blur(kornia)]))
            steps.append(kornia.ColorJitter(0.3, 0.3, 0.3, p=1.0))
        if self.erasing:
            steps.append(kornia.RandomErasing(p=self.erasing, value=0.5))
        return steps


class _OneOf:
    """One of several operations, drawn for the images that share them."""

    def __init__(self, operations: list[Any]) -> None:
        self.operations = operations

    def __call__(self, images: Tensor) -> Tensor:
        return self.operations[int(torch.randint(len(self.operations), ()))](images)


def _blur(kornia: Any) -> Any:
    return kornia.RandomGaussianBlur((5, 5), (0.1, 2.0), p=1.0)


def _cut(images: Tensor, share: float) -> tuple[Tensor, float]:
    """Each image with a rectangle of its opposite, and the part of the area that is its own."""
    height, width = images.shape[2:]
    side = (1 - share) ** 0.5
    middle = (int(torch.randint(height, ())), int(torch.randint(width, ())))
    edges = []
    for centre, whole in zip(middle, (height, width), strict=True):
        half = side * whole / 2
        edges.append((max(0, round(centre - half)), min(whole, round(centre + half))))
    (top, bottom), (left, right) = edges
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
