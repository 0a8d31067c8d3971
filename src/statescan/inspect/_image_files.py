"""Pictures as an image model reads them: from files, from folders, or a photograph of scikit-image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Endings of files that are taken for images.
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
#: Mean and deviation of the channels that most published weights were trained with (ImageNet).
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Photographs that come with scikit-image.
_SAMPLES = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "camera",
    "motorcycle_left",
    "retina",
    "gravel",
    "grass",
    "brick",
)


def read_picture(path: str | os.PathLike[str] | None, size: tuple[int, int], *, channels: int = 3) -> np.ndarray:
    """An image file as numbers from 0 to 1, its shorter side brought to size and its middle cut out.

    Arguments:
        path: a file; None for the photograph of an astronaut that comes with scikit-image.
        size: height and width.
        channels: 3, or 1 for grey.

    Returns:
        (height, width, channels) float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image; other numbers of channels; no path and no scikit-image.
        ModuleNotFoundError: without Pillow.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if channels not in (1, 3):
        raise ValueError(f"channels: pictures have 3, or 1 in grey; the model reads {channels}")
    if path is None:
        path = sample_pictures()[0]
    if not Path(path).is_file():
        raise FileNotFoundError(f"image: no file {os.fspath(path)!r}")
    try:
        with Image.open(path) as file:
            picture = ImageOps.fit(
                file.convert("RGB" if channels == 3 else "L"), (size[1], size[0]), Image.Resampling.BICUBIC
            )
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image: {os.fspath(path)!r} cannot be read as an image: {error}") from None
    return np.asarray(picture, dtype=np.float32).reshape(*size, channels) / 255


def as_input(pictures: np.ndarray) -> Tensor:
    """Pictures (height, width, channels) or (batch, height, width, channels) from 0 to 1 -> (batch, channels, height,
    width), each channel shifted and scaled as ImageNet's usually are; grey by the mean of these numbers."""
    batch = torch.from_numpy(pictures if pictures.ndim == 4 else pictures[None]).permute(0, 3, 1, 2)
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    if batch.shape[1] == 1:
        mean, deviation = mean.mean(0, keepdim=True), deviation.mean(0, keepdim=True)
    return ((batch - mean[:, None, None]) / deviation[:, None, None]).contiguous()


def sample_pictures() -> list[Path]:
    """Files of photographs that come with scikit-image.

    Raises:
        ValueError: scikit-image is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ValueError(
            "image: give a file; the photograph that is taken else comes with scikit-image, which is missing"
        )
    folder = Path(found.origin).parent / "data"
    return [path for name in _SAMPLES for path in (folder / f"{name}.png", folder / f"{name}.jpg") if path.is_file()]


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        FileNotFoundError: no such folder, or none in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"images: no folder {os.fspath(folder)!r}")
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGE_FILES)
    if not found:
        raise FileNotFoundError(f"images: no image files in {os.fspath(folder)!r}; known: {', '.join(IMAGE_FILES)}")
    return found
