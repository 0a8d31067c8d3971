"""mlvlab/EfficientViM."""

from __future__ import annotations

from typing import Any

from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity._images import features, image_model

_NAMES = {
    "in_dim": "in_channels",
    "num_classes": "num_classes",
    "embed_dim": "widths",
    "depths": "depths",
    "mlp_ratio": "mlp_ratio",
    "ssd_expand": "expand",
    "state_dim": "state_dims",
    "distillation": "distillation",
}
_DEFAULTS = {"embed_dim": [128, 256, 512]}


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Published arguments under our names; the class swallows `pretrained` and `init_cfg`."""
    return translate(_DEFAULTS | given, _NAMES, ignored=("pretrained", "init_cfg", "img_size"))


def model(fixture: Fixture) -> dict[str, Any]:
    """`EfficientViM` of the classification folder."""
    return image_model(fixture, "efficient_vim", options(fixture.kwargs))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`EfficientViM` of the folders for dense prediction: no norms, no heads, maps of all stages."""
    given = fixture.kwargs
    return image_model(fixture, "efficient_vim", features(options(given), given))


ADAPTERS = {
    "classification/models/EfficientViM.py:EfficientViM": model,
    "segmentation/efficientViM.py:EfficientViM": backbone,
    "detection/efficientViM.py:EfficientViM": backbone,
}
