"""What the commands on image models share: a trained model and how images are brought to it."""

from __future__ import annotations

from typing import Any


def load(model: str, *, device: str | None) -> tuple[Any, Any]:
    """An image model on its device, and its `ImagePreparation`.

    Raises:
        ValueError: a model of another kind, or one without a head.
    """
    from statescan import checkpoints
    from statescan.cli import _language
    from statescan.models._vision import VisionConfig
    from statescan.tasks._image_preparation import ImagePreparation

    folder = checkpoints.locate(model)
    loaded = checkpoints.load(folder, device=_language.device_of(device))
    config = loaded.config
    if not isinstance(config, VisionConfig):
        raise ValueError(f"model: {model!r} holds a {loaded.family} model, which reads no images")
    if config.features_only or not config.num_classes:
        raise ValueError(f"model: {model!r} has no head (features_only, or num_classes=0) and names no classes")
    return loaded, ImagePreparation.load(folder, loaded)
