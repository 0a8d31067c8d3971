"""Which models are image models, and how their images are prepared."""

from __future__ import annotations

from statescan import models
from statescan.models._vision import VisionModel

#: Means and deviations of ImageNet's channels, in images from 0 to 1: what published image models were trained on.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_models() -> list[str]:
    """Names of all variants that classify images, sorted. Imports every family."""
    found = []
    for name in models.list_models():
        family = models.family(models.model_info(name).family)
        if issubclass(family.model, VisionModel):
            found.append(name)
    return found
