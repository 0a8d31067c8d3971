"""Effective receptive fields: which pixels the middle of a model's last map depends on, and how much.

Luo, Li, Urtasun and Zemel 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", as
Ding et al. 2022 (arXiv 2203.06717) and Liu et al. 2024 (VMamba, arXiv 2401.10166) draw them for image backbones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan.models._vision import VisionModel


@dataclass(frozen=True)
class ReceptiveField:
    """How much the middle of the last map depends on each pixel.

    Fields:
        field: (height, width), the mean over images and input channels of the gradient's size; its largest is 1.
        images: of the mean.
        grid: rows and columns of the map whose middle was asked.
    """

    field: np.ndarray
    images: int
    grid: tuple[int, int]

    def side(self, share: float) -> int:
        """Side in pixels of the smallest square around the middle that holds this share of the whole."""
        height, width = self.field.shape
        middle = ((height - 1) / 2, (width - 1) / 2)
        rows, columns = np.indices(self.field.shape)
        distance = np.maximum(np.abs(rows - middle[0]), np.abs(columns - middle[1]))
        order = np.argsort(distance, axis=None, kind="stable")
        held = np.cumsum(self.field.ravel()[order]) / self.field.sum()
        return int(np.ceil(2 * distance.ravel()[order][np.searchsorted(held, share)] + 1))


def receptive_field(model: Any, images: Tensor, *, draws: int = 4, seed: int = 0) -> ReceptiveField:
    """The effective receptive field of an image model, on given images, one after the other.

    The gradient, by each pixel, of the middle cell of the last map: of the sum over its channels with
    random signs, for a norm holds their plain sum constant.

    Arguments:
        model: an image model.
        images: (batch, channels, height, width).
        draws: of the signs, whose results are averaged.
        seed: of the signs.

    Raises:
        ValueError: no image model, or one whose features are no map.
    """
    if not isinstance(model, VisionModel):
        raise ValueError(f"model: an image model, got {type(model).__name__}")
    training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    total, grid = torch.zeros(images.shape[2:]), (0, 0)
    for image in images.split(1):
        leaf = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            cells = last_grid(model, leaf)
            grid = (cells.shape[1], cells.shape[2])
            middle = _middle(cells[0])
            for draw in range(draws):
                signs = 2.0 * torch.randint(2, middle.shape, generator=generator).to(middle) - 1
                (gradient,) = torch.autograd.grad((middle * signs).sum(), leaf, retain_graph=draw + 1 < draws)
                total += gradient[0].abs().mean(0).float().cpu()
    model.train(training)
    largest = float(total.max())
    if not largest > 0:
        raise ValueError("model: the middle of its last map does not depend on the image")
    return ReceptiveField((total / largest).numpy(), len(images), grid)


def last_grid(model: Any, images: Tensor) -> Tensor:
    """A model's last map as grids (batch, rows, columns, channels): of its last stage, or of its tokens without class
    tokens.

    Raises:
        ValueError: features that are no map.
    """
    model.check_images(images)
    if model.config.features_only:
        return model(images)[-1].permute(0, 2, 3, 1)
    if hasattr(model, "stage_outputs"):
        return model.stage_outputs(images)[-1]
    features = model.forward_features(images)
    if isinstance(features, Tensor) and features.ndim == 4:
        return features
    tokens = getattr(model, "tokens", None)
    if isinstance(features, Tensor) and features.ndim == 3 and tokens is not None:
        indices = tokens.class_indices(features.shape[1] - tokens.extra)
        patches = features.shape[1] - len(indices)
        height, width = images.shape[2:]
        for rows in range(1, patches + 1):  # the grid whose shape is nearest to the image's
            if patches % rows == 0 and rows / (patches // rows) >= height / width * 0.99:
                return tokens.grid(features, (rows, patches // rows), indices)
    raise ValueError(f"model: the features of {model.family} are no map with a middle")


def _middle(grid: Tensor) -> Tensor:
    """The middle cell of (rows, columns, channels), or the mean of the two or four around the middle."""
    rows, columns = grid.shape[:2]
    return grid[(rows - 1) // 2 : rows // 2 + 1, (columns - 1) // 2 : columns // 2 + 1].mean((0, 1))
