"""wangf3014/Patch_Scaling: Adventurer and its block."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models import load_published
from statescan.models.patch_scaling import Adventurer, AdventurerConfig, to_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity.adapters.vim import load

_NAMES = {
    "img_size": "image_size",
    "patch_size": "patch",
    "depth": "depth",
    "embed_dim": "dim",
    "channels": "in_channels",
    "num_classes": "num_classes",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path_rate",
    "norm_epsilon": "norm_eps",
    "mamba_expand": "expand",
    "mamba_d_state": "state_dim",
}
_MIXER = {
    "headdim": "head_dim",
    "d_conv": "conv_kernel",
    "ngroups": "groups",
    "d_state": "state_dim",
    "expand": "expand",
    "bias": "bias",
    "conv_bias": "conv_bias",
}
#: First weights, and what changes speed alone.
_FIRST = ("conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor", "chunk_size", "use_mem_eff_path")


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Published arguments of `Adventurer` under our names."""
    given = dict(given)
    norm = "rms" if given.pop("rms_norm", False) else "layer"
    mixer = translate(given.pop("ssm_cfg", None) or {}, _MIXER, ignored=_FIRST, only={"norm_before_gate": (False,)})
    return translate(given, _NAMES, ignored=("initializer_cfg", "device", "dtype")) | mixer | {"norm": norm}


@torch.no_grad()
def classifier(fixture: Fixture) -> dict[str, Any]:
    """`Adventurer`: the class token, and the scores."""
    model = load(fixture, Adventurer(AdventurerConfig(**options(fixture.kwargs))))
    features = model.forward_features(fixture.inputs()[0])
    return {"features": model.forward_head(features, pre_logits=True), "logits": model.forward_head(features)}


@torch.no_grad()
def block(fixture: Fixture) -> dict[str, Any]:
    """`Block` by itself, in both directions: the first block of a model that is otherwise ours.

    How many heads its mixer has is not among its arguments and is read off its tensors.
    """
    published = {name.replace("block.", "layers.0.", 1): tensor for name, tensor in fixture.state_dict().items()}
    given = options({"depth": 1} | fixture.kwargs)
    given["norm"] = "layer" if "layers.0.norm.bias" in published else "rms"
    heads = len(published["layers.0.mixer.dt_bias"])
    given["head_dim"] = published["layers.0.mixer.norm.weight"].numel() // heads
    model = Adventurer(AdventurerConfig(**given, image_size=16, num_classes=0)).eval()
    fixture.check_parameters(model.blocks)
    rest = to_published(dict(model.state_dict()), model.config)
    load_published(model, {name: tensor for name, tensor in rest.items() if "layers." not in name} | published)
    outputs = {}
    for name, flip in (("forward", False), ("flipped", True)):
        model.blocks[0].mixer.flip = flip
        outputs[name] = model.blocks[0](fixture.inputs()[0])
    return outputs


ADAPTERS = {
    "models_mamba.py:Adventurer": classifier,
    "models_mamba.py:Block (as block.*)": block,
}
