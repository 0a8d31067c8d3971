"""From labelled images to batches: crops of one size, in an order that the seed alone decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from statescan.data._images import LabelledImages
from statescan.data._synthetic import batch_seed


@dataclass(frozen=True)
class ImageBatch:
    """Some images and what they show.

    Fields:
        images: (batch, channels, height, width), bytes or floating-point numbers.
        targets: (batch,) class numbers, or (batch, classes) of 0 and 1.
    """

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Views:
    """How images of any size become images of one.

    Fields:
        size: height and width.
        crop: for tests: the middle part of the image that is seen, by the side.
        scale: for training: least and greatest part of the image's area that a random crop has.
        ratio: for training: least and greatest ratio of the crop's width to its height.
        flip: probability in training that left and right change places.
        vertical_flip: likewise above and below.
    """

    size: tuple[int, int]
    crop: float = 1.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale: least and greatest part of the area, above 0 and up to 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: least and greatest, positive, got {self.ratio}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop: above 0 and up to 1, got {self.crop}")

    def test(self, image: Tensor) -> Tensor:
        """The middle of an image (channels, height, width), of the views' shape, resized.

        It is the largest part of that shape, shortened to `crop` of its sides.
        """
        height, width = image.shape[1:]
        part = self.crop * min(height / self.size[0], width / self.size[1])
        rows, columns = (max(1, min(n, round(part * side))) for n, side in zip((height, width), self.size, strict=True))
        top, left = (height - rows) // 2, (width - columns) // 2
        return self._resize(image[:, top : top + rows, left : left + columns])

    def train(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """A random part of an image (channels, height, width), resized, mirrored or not."""
        height, width = image.shape[1:]
        top, left, rows, columns = 0, 0, height, width
        for _ in range(10):
            area = height * width * generator.uniform(*self.scale)
            ratio = np.exp(generator.uniform(np.log(self.ratio[0]), np.log(self.ratio[1])))
            wide, high = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
            if 0 < wide <= width and 0 < high <= height:
                rows, columns = high, wide
                top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
                break
        view = self._resize(image[:, top : top + rows, left : left + columns])
        axes = [axis for axis, rate in ((2, self.flip), (1, self.vertical_flip)) if generator.random() < rate]
        return view.flip(axes) if axes else view

    def _resize(self, image: Tensor) -> Tensor:
        if tuple(image.shape[1:]) == self.size:
            return image
        return torch.nn.functional.interpolate(
            image[None].contiguous(), size=self.size, mode="bicubic", antialias=True, align_corners=False
        )[0]


class ImageBatches(IterableDataset):
    """The batches of one process, from batch `first` on; what batch n holds depends on the seed and n alone.

    Arguments:
        images: to draw from.
        views: crops of them.
        channels: of the images.
        batch_size: images a batch, over all processes.
        seed: of the order, which is a new one in each pass, and of the crops.
        rank, world: which process of how many; each takes its share of every batch.
        first: batch to begin with.
        once: stop after one pass, in the given order, with the views of tests and a last batch that may be smaller.
        repeats: so many crops of an image stand in a batch together (repeated augmentation, Hoffer et al. 2020); a pass
            has as many crops as there are images, whatever their number.
    """

    def __init__(
        self,
        images: LabelledImages,
        views: Views,
        *,
        channels: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        once: bool = False,
        repeats: int = 1,
    ) -> None:
        self._images, self._views, self._channels = images, views, channels
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world, self._first, self._once, self._repeats = rank, world, first, once, repeats

    def __iter__(self) -> Any:
        worker = get_worker_info()
        # The loader asks its workers in turn.
        offset, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        count = len(self._images)
        if self._once:
            for index in list(torch.arange(count).split(self._batch_size))[offset::stride]:
                yield self._take(index[self._rank :: self._world])
            return
        size = min(self._batch_size, count)
        per_pass = count // size
        number = self._first + offset
        drawn, order = -1, torch.empty(0)
        while True:
            if number // per_pass != drawn:
                drawn = number // per_pass
                seed = batch_seed(self._seed, "order", drawn)
                order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
                order = order.repeat_interleave(self._repeats)[:count]
            start = number % per_pass * size
            index = order[start : start + size]
            yield self._take(index[self._rank :: self._world], batch_seed(self._seed, f"views {self._rank}", number))
            number += stride

    def _take(self, index: Tensor, seed: int | None = None) -> ImageBatch:
        generator = None if seed is None else np.random.default_rng(seed)
        views = []
        for number in index.tolist():
            image = self._images.read(number, channels=self._channels)
            views.append(self._views.test(image) if generator is None else self._views.train(image, generator))
        if not views:
            views, empty = [torch.zeros(self._channels, *self._views.size)], True
        else:
            empty = False
        if any(view.is_floating_point() for view in views):
            views = [view if view.is_floating_point() else view.float() / 255 for view in views]
        return ImageBatch(torch.stack(views)[: 0 if empty else None], self._images.targets[index])
