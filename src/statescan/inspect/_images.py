"""What an image model costs, found on torch's meta device: shapes only, no memory, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from statescan.inspect._flops import counter
from statescan.inspect._sizes import build_without_memory
from statescan.models._vision import VisionModel

#: Operators whose work publications count by themselves, as operations of a recurrence and not as multiply-adds.
_SCANS = ("selective_scan", "local_scan", "route_scan", "linear_scan", "ssd")


@dataclass(frozen=True)
class ImageCost:
    """What an image model costs for one batch.

    Arguments:
        parameters: all numbers that are parameters, trainable or not.
        multiply_adds: of convolutions and matrix products.
        scan_operations: of scans, nine for each state of each channel at each position, as publications count.
    """

    parameters: int
    multiply_adds: int
    scan_operations: int


def reads_images(model: Any) -> bool:
    """Whether a model reads images and can be asked for their cost."""
    return isinstance(model, VisionModel)


def image_cost(model: Any, *, size: int | tuple[int, int] | None = None, batch: int = 1, **overrides: Any) -> ImageCost:
    """Costs of an image model, or of a named one, for `batch` images.

    Arguments:
        model: a name, or a model on the meta device.
        size: side, or (height, width), of the images; that of the config unless given.
        batch: images.
        overrides: fields of a named model's config.
    """
    if isinstance(model, str):
        model = build_without_memory(model, **overrides)
    height, width = model.config.image_shape if size is None else (size, size) if isinstance(size, int) else size
    images = torch.zeros(batch, model.config.in_channels, height, width, device="meta")
    model = model.eval()
    with counter() as count, torch.no_grad():
        model(images)
    scans = others = 0
    for operator, operations in count.get_flop_counts().get("Global", {}).items():
        if any(f"statescan.{name}" in str(operator) for name in _SCANS):
            scans += operations
        else:
            others += operations
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ImageCost(parameters, others // 2, scans)
