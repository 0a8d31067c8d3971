"""EdwardChasel/Spatial-Mamba."""

from __future__ import annotations

from typing import Any

import torch

from statescan.layers.grid import StateFusion
from statescan.models._names import Names
from statescan.models.spatial_mamba import FUSION_NAMES
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity._images import features, image_model

_NAMES = {
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "depths": "depths",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
    "d_state": "state_dim",
}
#: Without effect on the function: sizes that the stem does not read, dropout in training, speed, first values.
_IGNORED = (
    *("img_size", "patch_size", "dt_init", "drop_rate", "attn_drop_rate", "patch_norm", "use_checkpoint"),
    *("image_size", "norm_layer"),
)


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Published arguments under our names."""
    given = {"depths": [2, 2, 9, 2], "dims": 96, "drop_path_rate": 0.1} | given
    dims = given.pop("dims")
    dims = [dims * 2**stage for stage in range(len(given["depths"]))] if isinstance(dims, int) else dims
    if any(after != 2 * before for before, after in zip(dims, dims[1:], strict=False)):
        raise ParityError(f"dims={dims} is not supported: the published downsampling doubles the width")
    if given.get("d_state", 1) != 1:
        raise ParityError(f"d_state={given['d_state']} is not supported: the published fusion takes one state")
    if given.get("norm_layer", "ln") != "ln":
        raise ParityError(f"norm_layer={given['norm_layer']!r} is not supported; supported: ln")
    return translate(given, _NAMES, ignored=_IGNORED) | {"dim": dims[0]}


def model(fixture: Fixture) -> dict[str, Any]:
    """`SpatialMamba`."""
    return image_model(fixture, "spatial_mamba", options(fixture.kwargs))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_SpatialMamba`: maps of the stages."""
    given = fixture.kwargs
    own = features({}, given)
    return image_model(fixture, "spatial_mamba", options(given) | own)


@torch.no_grad()
def fusion(fixture: Fixture) -> dict[str, Any]:
    """`StateFusion`, in the mode that the notes name."""
    ours = StateFusion(fixture.kwargs["dim"])
    fixture.check_parameters(ours)
    ours.load_state_dict(Names(FUSION_NAMES).from_published(fixture.state_dict()))
    mode = fixture.note(r"(training|evaluation) mode")
    if mode is None:
        raise ParityError("the notes do not say whether this is the training or the evaluation mode")
    ours.train(mode == "training")
    (states,) = fixture.inputs()
    return {"y": ours(states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}


_FILE = "classification/models/spatialmamba.py"
ADAPTERS = {
    f"{_FILE}:SpatialMamba": model,
    f"{_FILE}:Backbone_SpatialMamba": backbone,
    f"{_FILE}:StateFusion": fusion,
}
