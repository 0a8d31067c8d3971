"""KyanChen/RSMamba: the backbone and its linear head."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models.rsmamba import RSMamba, RSMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.vim import load

_NAMES = {
    "img_size": "image_size",
    "patch_size": "patch",
    "in_channels": "in_channels",
    "path_type": "path",
    "num_classes": "num_classes",
    "drop_rate": "dropout",
    "final_norm": "final_norm",
}
_PATCH = {"stride": "stride", "bias": "patch_bias", "kernel_size": "patch"}
_LAYER = {
    "state_size": "state_dim",
    "conv_kernel": "conv_kernel",
    "time_step_rank": "dt_rank",
    "use_conv_bias": "conv_bias",
    "use_bias": "bias",
    "intermediate_size": "inner_dim",
}
_ARCHITECTURES = {
    **dict.fromkeys(("s", "small"), (192, 16)),
    **dict.fromkeys(("b", "base"), (192, 24)),
    **dict.fromkeys(("l", "large"), (256, 36)),
    **dict.fromkeys(("h", "huge"), (320, 48)),
}
_PLACES = {"none": None, "head": "head", "tail": "tail", "middle": "middle"}


@torch.no_grad()
def classifier(fixture: Fixture) -> dict[str, Any]:
    """`RSMamba` with `LinearClsHead`: features by its `out_type`, and scores."""
    given = {"arch": "base", "pe_type": "learnable", "cls_position": "none", "out_type": "avg_featmap"} | fixture.kwargs
    given = {"num_classes": 0, "path_type": "forward_reverse_shuffle_gate"} | given
    for name in ("out_indices", "frozen_stages", "init_cfg", "interpolate_mode"):
        given.pop(name, None)
    architecture = given.pop("arch")
    if isinstance(architecture, str):
        dim, depth = _ARCHITECTURES[architecture]
        own: dict[str, Any] = dict(dim=dim, depth=depth)
    else:
        own = dict(dim=architecture["embed_dims"], depth=architecture["num_layers"])
        own["inner_dim"] = architecture["feedforward_channels"]
    norm = given.pop("norm_cfg", {"type": "LN", "eps": 1e-6})
    if norm["type"] != "LN":
        raise ParityError(f"norm_cfg={norm!r} is not supported; supported: LN")
    own["norm_eps"] = norm.get("eps", 1e-5)
    positions, place, kind = given.pop("pe_type"), given.pop("cls_position"), given.pop("out_type")
    if positions == "sine" or place not in _PLACES:
        raise ParityError(f"pe_type={positions!r} with cls_position={place!r} is not supported")
    own |= dict(position=positions == "learnable", class_token=_PLACES[place])
    own |= dict(pool="class" if kind == "cls_token" else "mean", pool_norm=kind == "avg_featmap")
    own["stride"] = given.get("patch_size", 16)
    patch, layer = given.pop("patch_cfg", {}), given.pop("layer_cfgs", {})
    own |= translate(given, _NAMES) | translate(patch, _PATCH, only={"padding": ("corner",)})
    own |= translate(layer, _LAYER, only={"hidden_act": ("silu",)}, ignored=("use_mambapy",))
    model = load(fixture, RSMamba(RSMambaConfig(**own)))
    images, *permutations = fixture.inputs()
    kept, shape = model.run_layers(images, permutations[0] if permutations else None)
    if kind == "featmap":
        return {"features": model.map_of(kept[-1], shape)}
    if kind == "raw":
        return {"features": kept[-1]}
    return {"features": model.forward_head(kept[-1], pre_logits=True), "logits": model.forward_head(kept[-1])}


ADAPTERS = {"mmpretrain/rsmamba/models/models.py:RSMamba + mmpretrain LinearClsHead": classifier}
