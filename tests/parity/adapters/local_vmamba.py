"""hunto/LocalMamba: LocalVMamba and LocalVim, and their feature maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from statescan.models.local_vim import LocalVim, LocalVimConfig
from statescan.models.local_vmamba import LocalVMamba, LocalVMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.vmamba import features, pick, run

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
    "directions": "directions",
}
#: What the published class takes and never uses (among them d_state, which it calls ssm_d_state), or changes no output.
_IGNORED = ("d_state", "use_checkpoint", "out_indices", "pretrained", "ssm_simple_init", "norm_layer")


def config(arguments: dict[str, Any], **more: Any) -> LocalVMambaConfig:
    """Our config of published arguments. The published way back from columns is right on squares alone."""
    given = {"dims": [96, 192, 384, 768], "depths": [2, 2, 9, 2]} | arguments
    if str(given.get("norm_layer", "ln")).lower() != "ln":
        raise ParityError(f"argument norm_layer={given['norm_layer']!r}: only layer norms")
    if "ssm_act_layer" in given:
        given["ssm_act_layer"] = given["ssm_act_layer"].lower()
    return LocalVMambaConfig(**translate(given, _NAMES, ignored=_IGNORED), legacy_unwalk=True, **more)


def classifier(fixture: Fixture) -> dict[str, Any]:
    """`VSSM` of this repository."""
    return run(fixture, LocalVMamba(config(fixture.kwargs)))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_LocalVSSM`."""
    return run(fixture, LocalVMamba(config({"norm_layer": "ln"} | fixture.kwargs, **features(fixture))))


_VIM_NAMES = {
    "img_size": "image_size",
    "patch_size": "patch",
    "depth": "depth",
    "embed_dim": "dim",
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
    "directions": "directions",
}
_SSM = {"d_state": "state_dim", "d_conv": "conv_kernel", "expand": "expand", "dt_rank": "dt_rank"}
_FIRST = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")
_POOLS = {"none": "last", "mean": "mean", "all": "all"}


def vim_config(arguments: dict[str, Any], **more: Any) -> LocalVimConfig:
    """Our config of published arguments of `VisionMamba`."""
    given = {"depth": 24, "embed_dim": 192, "rms_norm": False, "final_pool_type": "none"} | arguments
    for name in ("if_abs_pos_embed", "if_rope", "if_rope_residual"):
        given.setdefault(name, False)
    token, middle = given.pop("if_cls_token", False), given.pop("use_middle_cls_token", False)
    if token != middle:
        raise ParityError("arguments if_cls_token, use_middle_cls_token: both or none; walks know no other place")
    inner = translate(given.pop("ssm_cfg", None) or {}, _SSM, ignored=_FIRST)
    norm, pool = (
        "rms" if given.pop("rms_norm") else "layer",
        pick(_POOLS, "final_pool_type", given.pop("final_pool_type")),
    )
    ignored = ("fused_add_norm", "initializer_cfg", "ft_seq_len", "bimamba_type", "device", "dtype", "pretrained_ckpt")
    own = translate(given, _VIM_NAMES, ignored=ignored) | inner
    place = "middle" if token else None
    return LocalVimConfig(**own, norm=norm, pool=pool, class_token=place, legacy_unwalk=True, **more)


def as_filled(fixture: Fixture) -> dict[str, Tensor]:
    """The tensors as they lie in a published LocalVim that was filled on a CPU: it makes the decays of all walks of a
    layer as parameters over one memory, so the last one written is in force for all."""
    tensors = fixture.state_dict()
    last = {name.rsplit("_", 1)[0]: tensor for name, tensor in tensors.items() if ".A_log_" in name}
    return {name: last.get(name.rsplit("_", 1)[0], tensor) for name, tensor in tensors.items()}


def vim_classifier(fixture: Fixture) -> dict[str, Any]:
    """`VisionMamba` of this repository."""
    return run(fixture, LocalVim(vim_config(fixture.kwargs)), as_filled(fixture))


def vim_backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_LocalVisionMamba`."""
    given = {"out_indices": [4, 9, 14, 19]} | fixture.kwargs
    layers = tuple(given.pop("out_indices"))
    maps = LocalVim(vim_config(given, features_only=True, feature_layers=layers))
    return run(fixture, maps, as_filled(fixture))


_FILE = "classification/lib/models/local_vmamba.py"
_VIM = "classification/lib/models/local_vim.py"
ADAPTERS = {
    f"{_FILE}:VSSM": classifier,
    f"{_FILE}:Backbone_LocalVSSM": backbone,
    f"{_VIM}:VisionMamba": vim_classifier,
    f"{_VIM}:Backbone_LocalVisionMamba": vim_backbone,
}
