"""Images with captions, cut into patches: numbers for a diffusion loss, or entries of a codebook as tokens."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class CaptionedImages:
    """Images of one size.

    Fields:
        images: (images, height, width, channels), float32.
        captions: one an image; empty where nothing is said.
    """

    images: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def select(self, index: Tensor) -> CaptionedImages:
        """Some of them."""
        return CaptionedImages(self.images[index], tuple(self.captions[i] for i in index.tolist()))

    def split(self, fraction: float, *, seed: int) -> tuple[CaptionedImages, CaptionedImages]:
        """A part chosen at random, and the rest; each has at least one image."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        first = min(len(self) - 1, max(1, round(fraction * len(self))))
        return self.select(order[:first]), self.select(order[first:])


def read_captioned_images(source: str | os.PathLike[str]) -> CaptionedImages:
    """Images with captions.

    Arguments:
        source: ``digits`` (1,797 real handwritten digits of 8 x 8 pixels, of scikit-learn), or a ``.npz`` file with arrays
            ``images`` (images, height, width[, channels]) and, if need be, ``captions`` (images,) of text.

    Raises:
        ValueError: for a file that is not what it should be, or fewer than two images.
        FileNotFoundError: where there is no such file.
    """
    if str(source) == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ValueError("images: 'digits' comes with scikit-learn: pip install 'statescan[eval]'") from None
        digits: Any = load_digits()
        images = torch.from_numpy(digits.images.astype(np.float32))[..., None]
        return CaptionedImages(images, tuple(f"The digit {_DIGITS[label]}." for label in digits.target))
    path = Path(source)
    if path.suffix != ".npz":
        raise ValueError(f"images: expected 'digits' or a .npz file, got {str(source)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"images: there is no file {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: cannot be read as arrays that numpy.savez wrote: {error}") from None
    if "images" not in arrays:
        raise ValueError(f"{path}: no array 'images'; it has {', '.join(arrays) or 'none'}")
    images = torch.from_numpy(arrays["images"].astype(np.float32))
    images = images[..., None] if images.ndim == 3 else images
    captions = tuple(str(caption) for caption in arrays.get("captions", np.full(len(images), "")))
    if images.ndim != 4 or len(images) < 2 or len(captions) != len(images):
        raise ValueError(
            f"{path}: expected two or more images (images, height, width[, channels]) and as many captions, got "
            f"{tuple(arrays['images'].shape)} and {len(captions)}"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{path}: the images hold NaN or infinity")
    return CaptionedImages(images, captions)


@dataclass(frozen=True)
class PatchCodec:
    """Images to standardised patches and back, and patches to entries of a codebook.

    Fields:
        patch: pixels of a patch's side.
        height, width, channels: of the images.
        mean, scale: of all pixels that the codec was fitted to.
        codebook: (entries, patch_dim), or (0, patch_dim) where there is none.
    """

    patch: int
    height: int
    width: int
    channels: int
    mean: float
    scale: float
    codebook: Tensor

    @classmethod
    def fit(cls, images: Tensor, *, patch: int, entries: int = 0, seed: int = 0) -> PatchCodec:
        """A codec of such images (images, height, width, channels); its codebook is found by k-means.

        Raises:
            ValueError: where patches do not fill the images, or there are fewer patches than entries.
        """
        _, height, width, channels = images.shape
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"patch: patches of {patch} pixels do not fill images of {height} x {width}")
        scale = float(images.std().clamp(min=1e-6))
        empty = torch.zeros(0, patch * patch * channels)
        codec = cls(patch, height, width, channels, float(images.mean()), scale, empty)
        if not entries:
            return codec
        points = codec.patches(images).flatten(0, 1)
        if len(points) < entries:
            raise ValueError(f"codebook: {entries} entries, but there are only {len(points)} patches")
        return cls(patch, height, width, channels, codec.mean, scale, k_means(points, entries, seed=seed))

    @property
    def count(self) -> int:
        """Patches of an image."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch."""
        return self.patch**2 * self.channels

    def patches(self, images: Tensor) -> Tensor:
        """(images, height, width, channels) -> (images, count, patch_dim), row by row, standardised."""
        rows, columns = self.height // self.patch, self.width // self.patch
        grid = images.reshape(-1, rows, self.patch, columns, self.patch, self.channels)
        return ((grid.transpose(2, 3).flatten(3).flatten(1, 2)) - self.mean) / self.scale

    def images(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        rows, columns = self.height // self.patch, self.width // self.patch
        grid = (patches * self.scale + self.mean).reshape(-1, rows, columns, self.patch, self.patch, self.channels)
        return grid.transpose(2, 3).reshape(-1, self.height, self.width, self.channels)

    def tokens(self, patches: Tensor) -> Tensor:
        """Numbers of the nearest entries: (..., patch_dim) -> (...)."""
        return torch.cdist(patches.flatten(0, -2), self.codebook).argmin(-1).view(patches.shape[:-1])

    def save(self, file: Any) -> None:
        """Write it as arrays of ``.npz``."""
        fields = {name: getattr(self, name) for name in ("patch", "height", "width", "channels", "mean", "scale")}
        np.savez(file, codebook=self.codebook.numpy(), **fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PatchCodec:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            patch, height, width, channels = (int(arrays[name]) for name in ("patch", "height", "width", "channels"))
            mean, scale = float(arrays["mean"]), float(arrays["scale"])
            return cls(patch, height, width, channels, mean, scale, torch.from_numpy(arrays["codebook"].copy()))


def k_means(points: Tensor, entries: int, *, seed: int, rounds: int = 25) -> Tensor:
    """Centres of (points, channels) by Lloyd's rounds from points chosen at random; an empty one is drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:entries]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(-1)
        counts = torch.bincount(nearest, minlength=entries)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        fresh = points[torch.randint(len(points), (entries,), generator=generator)]
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), fresh)
    return centres
