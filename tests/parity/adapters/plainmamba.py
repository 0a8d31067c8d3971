"""ChenhongyiYang/PlainMamba: the backbone and its snakes."""

from __future__ import annotations

from typing import Any

import torch

from statescan import routes
from statescan.models.plainmamba import PlainMamba, PlainMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.vim import load

_NAMES = {
    "img_size": "image_size",
    "in_channels": "in_channels",
    "patch_size": "patch",
    "embed_dims": "dim",
    "num_layers": "depth",
    "num_convs_patch_embed": "stem_convolutions",
    "with_pos_embed": "position",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path_rate",
    "final_norm": "final_norm",
    "layers_with_dwconv": "convolution_layers",
}
_MIXER = {
    "d_state": "state_dim",
    "expand": "expand",
    "dt_rank": "dt_rank",
    "conv_size": "conv_kernel",
    "conv_bias": "conv_bias",
    "bias": "bias",
    "init_layer_scale": "layer_scale",
}
_FIRST = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "default_hw_shape")
_IGNORED = ("init_cfg", "test_cfg", "convert_syncbn", "freeze_patch_embed")
#: What a named architecture sets.
_ARCHITECTURES = {
    "L1": dict(dim=192, depth=24, patch=16, stem_convolutions=1, convolution_layers=(0,)),
    "L2": dict(dim=384, depth=24, patch=16, stem_convolutions=2, convolution_layers=()),
    "L3": dict(dim=448, depth=36, patch=16, stem_convolutions=2, convolution_layers=()),
}


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Published arguments of `PlainMamba` under our names."""
    given = {"num_layers": 20, "out_indices": -1, "layer_cfgs": {}} | given
    norm = given.pop("norm_cfg", None) or {"type": "LN", "eps": 1e-6}
    if norm["type"] != "LN":
        raise ParityError(f"norm_cfg={norm!r} is not supported; supported: LN")
    if given.pop("interpolate_mode", "bicubic") != "bicubic":
        raise ParityError("interpolate_mode: only bicubic is supported")
    layers, chosen, architecture = given.pop("layer_cfgs"), given.pop("out_indices"), given.pop("arch", None)
    if not isinstance(layers, dict):
        raise ParityError("layer_cfgs: only one dictionary for all layers is supported")
    own = translate(given, _NAMES, ignored=_IGNORED)
    if architecture is not None:
        own |= _ARCHITECTURES[architecture]
    else:
        own |= translate({"bias": False} | dict(layers.get("mamba_cfg", {})), _MIXER, ignored=_FIRST)
        own["norm"] = "rms" if layers.get("use_rms_norm") else "layer"
    chosen = [chosen] if isinstance(chosen, int) else chosen
    own["feature_layers"] = tuple(own["depth"] + index if index < 0 else index for index in chosen)
    return own | {"norm_eps": norm.get("eps", 1e-5), "features_only": True}


@torch.no_grad()
def backbone(fixture: Fixture) -> dict[str, Any]:
    """`PlainMamba`: the tokens after the last norm, and the maps."""
    model = load(fixture, PlainMamba(PlainMambaConfig(**options(fixture.kwargs))))
    grids = model.run_blocks(fixture.inputs()[0])
    maps = {f"features_{index}": value for index, value in enumerate(model.maps_of(grids))}
    return {"tokens": grids[-1].flatten(1, 2), **maps}


def snake(fixture: Fixture) -> dict[str, Any]:
    """`get_permute_order`: the four walks and how each cell was entered."""
    height, width = fixture.kwargs["hw_shape"]
    route = routes.get("snake")
    return {"orders": route.table(height, width), "directions": route.directions(height, width)}


_FILE = "mmcls/plain_mamba_dev/models/plain_mamba"
ADAPTERS = {
    f"{_FILE}/plain_mamba.py:PlainMamba": backbone,
    f"{_FILE}/plain_mamba_layer.py:PlainMamba2D.get_permute_order": snake,
}
