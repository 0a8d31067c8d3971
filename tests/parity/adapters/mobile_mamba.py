"""lewandofskee/MobileMamba.

DISPUTED for batches of more than one image. Where no GPU is there, the published code adds the two walks' results by
``y[:, 0] + y[:, 1].flip(-1).view(B, 1, D, -1)`` and sums over axis 1 (`csm_tritonk2.py`, `cross_merge_fwd`): shapes
(B, D, L) and (B, 1, D, L) broadcast to (B, B, D, L), so that every image gets the forward walk of ALL images, and its
own backward walk B times. On a GPU a Triton kernel adds image by image. Our model does so everywhere; the adapter swaps
in the fault for such fixtures (without it, `mobile_mamba__tiny` with two images differs by 1e-2; with it, not at all).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from statescan.layers.grid import SS2D
from statescan.routes import Route
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


class _MixedBatch(Route):
    """The published merge without a GPU."""

    def join(self, values: Tensor) -> Tensor:
        """(batch, height, width, 2, channels) -> (batch, height, width, channels)."""
        forwards, backwards = values.unbind(3)
        return forwards.sum(0) + len(values) * backwards


def _mix_batch(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, SS2D):
            part.route = _MixedBatch(part.route.name, part.route.rule)


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
    options |= {"route": _ROUTES[kind], "scan_activation": activation}
    (images,) = fixture.inputs()
    return image_model(fixture, "mobile_mamba", options, alter=_mix_batch if len(images) > 1 else None)


ADAPTERS = {"model/mobilemamba/mobilemamba.py:MobileMamba": model}
