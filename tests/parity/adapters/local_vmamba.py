"""hunto/LocalMamba: LocalVMamba and its feature maps."""

from __future__ import annotations

from typing import Any

from statescan.models.local_vmamba import LocalVMamba, LocalVMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.vmamba import features, run

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


_FILE = "classification/lib/models/local_vmamba.py"
ADAPTERS = {f"{_FILE}:VSSM": classifier, f"{_FILE}:Backbone_LocalVSSM": backbone}
