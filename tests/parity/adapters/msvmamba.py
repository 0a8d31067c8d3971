"""YuHengsss/MSVMamba: models and feature maps."""

from __future__ import annotations

from typing import Any

from statescan.models.msvmamba import MSVMamba, MSVMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.vmamba import DEFAULTS, DOWNSAMPLES, STEMS, features, pick, run

_NAMES = {
    "patch_size": "patch_size",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "dims",
    "ssm_d_state": "state_dim",
    "ssm_ratio": "expand",
    "ssm_dt_rank": "dt_rank",
    "ssm_act_layer": "activation",
    "ssm_conv": "conv_kernel",
    "ssm_conv_bias": "conv_bias",
    "ssm_drop_rate": "dropout",
    "drop_path_rate": "drop_path_rate",
    "patch_norm": "patch_norm",
    "add_se": "squeeze",
    "sep_norm": "separate_norms",
}
#: Dead arguments of the published class, and what changes no output.
_IGNORED = (
    ("recurrent", "inter_block_ssm", "grid_size", "multiscale_ratio", "multiscale_ksize", "continous_patch")
    + (("adaptive_merge", "b1_seq", "b1_ratio", "up_sample", "lpu", "use_checkpoint", "out_indices", "pretrained"))
    + ("ssm_simple_init", "norm_layer", "mlp_drop_rate", "ms_stage", "ssm_rank_ratio")
)
_LOW = {
    3: "raster_reversed+column+column_reversed",
    2: "raster_reversed+column_reversed",
    1: "column_reversed",
}


def config(arguments: dict[str, Any], **more: Any) -> MSVMambaConfig:
    """Our config of published arguments."""
    given = DEFAULTS | {"ssm_rank_ratio": 2.0, "add_se": False} | arguments
    expand, rank = given["ssm_ratio"], given["ssm_rank_ratio"]
    if 0 < rank < expand:
        raise ParityError(
            f"argument ssm_rank_ratio={rank}: below ssm_ratio={expand} the published code lowers the rank"
        )
    if given.pop("sscore_type", None) != "multiscale_4scan_12":
        raise ParityError("argument sscore_type: only 'multiscale_4scan_12' was released")
    if sorted(given.get("ms_stage") or ()) != list(range(len(given["depths"]))):
        raise ParityError(f"argument ms_stage={given.get('ms_stage')}: all stages, or not supported")
    if str(given.get("norm_layer", "ln")).lower() != "ln":
        raise ParityError(f"argument norm_layer={given['norm_layer']!r}: only layer norms")
    sets, splits = given.pop("ms_split", (1, 3))
    if sets != 1:
        raise ParityError(f"argument ms_split: one parameter set for the coarse grid, got {sets}")
    kind, activation = given.pop("forward_type"), given["ssm_act_layer"].lower()
    given["ssm_act_layer"] = activation
    bare = kind.endswith("nozact")
    if kind.removesuffix("nozact").endswith(("softmax", "sigmoid")):
        raise ParityError(f"argument forward_type={kind!r}: only with a layer norm after the scans")
    mixed, mlp = given.pop("convFFN", False), given.pop("mlp_ratio")
    if mixed and mlp > 0:
        raise ParityError("arguments convFFN and mlp_ratio: one of both")
    dropout, other = given.pop("ffn_dropout", 0.2), given.get("mlp_drop_rate", 0.0)
    activation_of_mlp = given.pop("mlp_act_layer", "gelu").lower()
    if activation_of_mlp != "gelu" and mlp > 0:
        raise ParityError(f"argument mlp_act_layer={activation_of_mlp!r}: only gelu")
    stem, downsample = given.pop("patchembed_version"), given.pop("downsample_version")
    ours = translate(given, _NAMES, ignored=_IGNORED, only={"add_conv": (True,), "ms_fusion": (None,)})
    return MSVMambaConfig(
        **ours,
        stem=pick(STEMS, "patchembed_version", stem),
        downsample=pick(DOWNSAMPLES, "downsample_version", downsample),
        gate="identity" if bare else activation,
        low_route=pick(_LOW, "ms_split", splits),
        channel_mixer="convolution" if mixed else "mlp",
        mlp_ratio=2.0 if mixed else mlp,
        mlp_dropout=dropout if mixed else other,
        **more,
    )


def classifier(fixture: Fixture) -> dict[str, Any]:
    """`VSSM` of this repository."""
    return run(fixture, MSVMamba(config(fixture.kwargs)))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_VSSM` of this repository."""
    return run(fixture, MSVMamba(config({"norm_layer": "ln"} | fixture.kwargs, **features(fixture))))


_FILE = "YuHengsss/MSVMamba:classification/models/vmamba.py"
ADAPTERS = {f"{_FILE}:VSSM": classifier, f"{_FILE}:Backbone_VSSM": backbone}
