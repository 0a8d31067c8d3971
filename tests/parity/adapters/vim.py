"""hustvl/Vim: the classifier and its dense form."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models import load_published
from statescan.models.vim import Vim, VimConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

_NAMES = {
    "img_size": "image_size",
    "patch_size": "patch",
    "stride": "stride",
    "depth": "depth",
    "embed_dim": "dim",
    "d_state": "state_dim",
    "channels": "in_channels",
    "num_classes": "num_classes",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path_rate",
    "norm_epsilon": "norm_eps",
    "residual_in_fp32": "residual_in_float32",
    "pt_hw_seq_len": "rotary_size",
    "if_rope": "rotary",
    "if_rope_residual": "rotary_residual",
    "if_abs_pos_embed": "position",
    "if_divide_out": "halve",
    "init_layer_scale": "layer_scale",
}
#: Speed, first weights, and what the published class swallows without using it.
_IGNORED = ("fused_add_norm", "initializer_cfg", "ft_seq_len", "device", "dtype", "if_devide_out")
_MIXER = {
    "d_state": "state_dim",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "dt_rank",
    "bias": "bias",
    "conv_bias": "conv_bias",
}
_FIRST = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")
_KINDS = {"none": "causal", "v1": "shared", "v2": "separate"}
_POOLS = {"none": "last", "mean": "mean", "max": "max", "all": "all"}


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Published arguments of `VisionMamba` under our names."""
    given = {"stride": 16, "drop_path_rate": 0.1, "rms_norm": True, "final_pool_type": "none"} | given
    norm = "rms" if given.pop("rms_norm") else "layer"
    pool = given.pop("final_pool_type")
    if pool not in _POOLS:
        raise ParityError(f"final_pool_type={pool!r} is not supported; supported: {', '.join(_POOLS)}")
    kind = given.pop("bimamba_type", "v2")
    kind = "v1" if given.pop("if_bimamba", False) else kind
    if kind not in _KINDS:
        raise ParityError(f"bimamba_type={kind!r} is not supported; supported: {', '.join(_KINDS)}")
    mixer = _KINDS[kind]
    if given.pop("if_bidirectional", False):
        if mixer != "causal":
            raise ParityError(f"if_bidirectional with bimamba_type={kind!r}")
        mixer = "pairs"
    place = "middle" if given.pop("use_middle_cls_token", True) else "head"
    place = "double" if given.pop("use_double_cls_token", False) else place
    place = place if given.pop("if_cls_token", True) else None
    flips = max(0.0, given.pop("flip_img_sequences_ratio", -1.0))
    inner = translate(given.pop("ssm_cfg", None) or {}, _MIXER, ignored=_FIRST)
    own = translate(given, _NAMES, ignored=_IGNORED) | inner
    return own | dict(norm=norm, pool=_POOLS[pool], mixer=mixer, class_token=place, flip_probability=flips)


def load(fixture: Fixture, model: Any) -> Any:
    """The model in evaluation with the fixture's weights, its parameters counted."""
    fixture.check_parameters(model)
    fixed = [name for name, *_ in fixture.data["constants"]]
    load_published(model, fixture.state_dict(), constants=fixed)
    return model.eval()


@torch.no_grad()
def classifier(fixture: Fixture) -> dict[str, Any]:
    """`VisionMamba`: what the head reads, and the scores."""
    model = load(fixture, Vim(VimConfig(**options(fixture.kwargs))))
    features = model.forward_features(fixture.inputs()[0])
    return {"features": model.forward_head(features, pre_logits=True), "output": model.forward_head(features)}


@torch.no_grad()
def dense(fixture: Fixture) -> dict[str, Any]:
    """`VisionMambaSeg`: its maps. Its `in_chans` and `num_classes` reach the state size and the channels."""
    given = {"in_chans": 3, "num_classes": 80, "out_indices": [3, 5, 7, 11], "if_fpn": True} | fixture.kwargs
    given["d_state"], given["channels"] = given.pop("in_chans"), given.pop("num_classes")
    given.pop("use_checkpoint", None), given.pop("pretrained", None)
    layers, pyramid = given.pop("out_indices"), given.pop("if_fpn")
    stream = given.pop("use_residual_as_feature", False)
    last = {"none": "mixer", "add": "stream", "add & norm": "norm"}[given.pop("last_layer_process", "none")]
    given["if_cls_token"] = False  # the published class takes the class token away again
    config = VimConfig(
        **options(given),
        features_only=True,
        feature_layers=tuple(layers),
        pyramid=pyramid,
        feature_source="stream" if stream else "mixer",
        last_feature=last,
    )
    maps = load(fixture, Vim(config))(fixture.inputs()[0])
    return {f"features_{index}": value for index, value in enumerate(maps)}


ADAPTERS = {
    "vim/models_mamba.py:VisionMamba": classifier,
    "seg/backbone/vim.py:VisionMambaSeg": dense,
}
