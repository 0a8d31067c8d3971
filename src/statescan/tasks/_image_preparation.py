"""What a trained image model must be told of its images, kept beside it: size, normalisation, names of the classes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statescan.data import Views

#: The file, in a model's folder.
FILE = "images.json"
#: Means and deviations of ImageNet's channels, in images from 0 to 1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImagePreparation:
    """From bytes to what a model reads, and from its scores to names.

    Fields:
        size: height and width.
        mean, std: of the channels of images from 0 to 1.
        classes: names, in the order of the scores.
        multilabel: an image can show several classes.
        crop: part of an image's middle that is seen, by the side.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    multilabel: bool = False
    crop: float = 1.0

    @classmethod
    def of(
        cls, model: Any, classes: tuple[str, ...], *, multilabel: bool = False, crop: float = 1.0
    ) -> ImagePreparation:
        """For a model: its size, ImageNet's normalisation where it reads three channels."""
        channels = model.config.in_channels
        mean, std = (MEAN, STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        return cls(model.config.image_shape, mean, std, classes, multilabel, crop)

    @classmethod
    def load(cls, folder: Path, model: Any) -> ImagePreparation:
        """What lies beside a model; where nothing does, what `of` gives, the classes' numbers as names.

        Raises:
            ValueError: a file that is damaged or was written for another model.
        """
        path = folder / FILE
        outputs = model.config.num_classes
        if not path.is_file():
            return cls.of(model, tuple(str(number) for number in range(outputs)))
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
            made = cls(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not what training an image model writes: {error}") from None
        if len(made.classes) != outputs or len(made.mean) != model.config.in_channels:
            raise ValueError(
                f"{path}: {len(made.classes)} classes and {len(made.mean)} channels, the model beside it has {outputs} "
                f"and {model.config.in_channels}"
            )
        return made

    def save(self, folder: Path, *, name: str = FILE) -> None:
        """Write a file of this into a folder; the default name is that beside a model."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")

    @property
    def channels(self) -> int:
        """Of the images."""
        return len(self.mean)

    @property
    def views(self) -> Views:
        """How images of any size are brought to the model's."""
        return Views(self.size, crop=self.crop)

    @staticmethod
    def unit(images: Tensor) -> Tensor:
        """Bytes (batch, channels, height, width) as numbers from 0 to 1; numbers as they are."""
        return images.float() if images.is_floating_point() else images.float() / 255

    def normalise(self, images: Tensor) -> Tensor:
        """Numbers from 0 to 1 as the model wants them: less the mean, over the deviation, of each channel."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def apply(self, images: Tensor) -> Tensor:
        """Both: bytes, or numbers from 0 to 1, (batch, channels, height, width) as the model wants them."""
        return self.normalise(self.unit(images))
