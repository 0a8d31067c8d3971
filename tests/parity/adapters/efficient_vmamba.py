"""TerryPei/EfficientVMamba: models, feature maps, and the atrous walk."""

from __future__ import annotations

from typing import Any

from statescan import routes
from statescan.models.efficient_vmamba import EfficientVMamba, EfficientVMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.vmamba import features, run

_NAMES = {
    "patch_size": "patch_size",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "dims",
    "ssm_ratio": "expand",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
    "patch_norm": "patch_norm",
}
#: Arguments that the published class takes and never uses, and what changes no output.
_IGNORED = ("d_state", "dt_rank", "attn_drop_rate", "shared_ssm", "softmax_version", "drop_rate", "window_size") + (
    ("use_checkpoint", "out_indices", "pretrained", "norm_layer")
)
_DEFAULTS: dict[str, Any] = {
    "depths": [2, 2, 9, 2],
    "dims": [96, 192, 384, 768],
    "ssm_ratio": 2.0,
    "mlp_ratio": 4.0,
    "downsample_version": "v2",
}


def config(arguments: dict[str, Any], **more: Any) -> EfficientVMambaConfig:
    """Our config of published arguments."""
    given = _DEFAULTS | arguments
    if given["ssm_ratio"] > 2.0:
        raise ParityError(f"argument ssm_ratio={given['ssm_ratio']}: above 2 the published code scans at a lower rank")
    version = given.pop("downsample_version")
    ours = translate(given, _NAMES, ignored=_IGNORED, only={"step_size": (2,)})
    # The published code asks for "v2" alone; whatever else is given merges patches.
    return EfficientVMambaConfig(**ours, downsample="convolution2" if version == "v2" else "merging", **more)


def classifier(fixture: Fixture) -> dict[str, Any]:
    """`EfficientVSSM`."""
    return run(fixture, EfficientVMamba(config(fixture.kwargs)))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_EfficientVSSM`."""
    return run(fixture, EfficientVMamba(config(fixture.kwargs, **features(fixture))))


def atrous(fixture: Fixture) -> dict[str, Any]:
    """`EfficientScan` and `EfficientMerge`, of its own sequences."""
    step = fixture.kwargs.get("step_size", 2)
    if step != 2:
        raise ParityError(f"argument step_size={step}: the published merge leaves cells unset for steps other than 2")
    route = routes.get("atrous_step2")
    x, *rest = fixture.inputs()
    height, width = x.shape[2:]
    sequences = route.walk(x.permute(0, 2, 3, 1))
    given = rest[0].permute(0, 3, 1, 2) if rest else sequences
    merged = route.merge(given, height, width).permute(0, 3, 1, 2).flatten(2)
    return {"sequences": sequences.permute(0, 2, 3, 1), "merged": merged}


_FILE = "classification/models/vmamba_efficient.py"
ADAPTERS = {
    f"{_FILE}:EfficientVSSM": classifier,
    f"{_FILE}:Backbone_EfficientVSSM": backbone,
    f"{_FILE}:EfficientScan+EfficientMerge": atrous,
}
