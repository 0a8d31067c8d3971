"""yuweihao/MambaOut."""

from __future__ import annotations

from typing import Any

from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity._images import image_model

_NAMES = {
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "widths",
    "conv_ratio": "conv_ratio",
    "kernel_size": "conv_kernel",
    "drop_path_rate": "drop_path_rate",
    "head_dropout": "head_dropout",
}


def model(fixture: Fixture) -> dict[str, Any]:
    """`MambaOut`. It swallows arguments that it does not know, `expansion_ratio` among them."""
    options = translate(fixture.kwargs, _NAMES, ignored=("expansion_ratio", "pretrained", "img_size"))
    for name in ("depths", "widths"):
        if isinstance(options.get(name), int):
            options[name] = (options[name],)
    return image_model(fixture, "mambaout", options)


ADAPTERS = {"models/mambaout.py:MambaOut": model}
