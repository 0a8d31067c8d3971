"""lewandofskee/MobileMamba."""

from __future__ import annotations

from typing import Any

from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity._images import image_model

_NAMES = {
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "embed_dim": "widths",
    "depth": "depths",
    "global_ratio": "global_ratios",
    "local_ratio": "local_ratios",
    "kernels": "kernels",
    "drop_path": "drop_path_rate",
    "ssm_ratio": "expand",
    "distillation": "distillation",
}
#: Defaults of the published class that are not ours.
_DEFAULTS = {"ssm_ratio": 1}
_ONLY: dict[str, tuple[Any, ...]] = {
    "stages": (["s", "s", "s"],),
    "down_ops": ([["subsample", 2], ["subsample", 2], [""]],),
}
#: Two walks: the rows and back, or the rows twice.
_ROUTES = {"v052d": "bidirectional"}


def model(fixture: Fixture) -> dict[str, Any]:
    """`MobileMamba`."""
    given = _DEFAULTS | fixture.kwargs
    kind = given.pop("forward_type", "v052d")
    activation = "identity"
    if kind.endswith("_oact"):
        kind, activation = kind.removesuffix("_oact"), "gelu"
    if kind not in _ROUTES:
        raise ParityError(f"forward_type={kind!r} is not supported; supported: {', '.join(_ROUTES)}")
    options = translate(given, _NAMES, ignored=("img_size",), only=_ONLY)
    return image_model(fixture, "mobile_mamba", options | {"route": _ROUTES[kind], "scan_activation": activation})


ADAPTERS = {"model/mobilemamba/mobilemamba.py:MobileMamba": model}
