"""ChiShengChen/ResVMamba: models, and feature maps (which its code takes without the branches)."""

from __future__ import annotations

from typing import Any

from statescan.models.res_vmamba import ResVMamba, ResVMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity.adapters.vmamba import features, run

_NAMES = {
    "patch_size": "patch_size",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "depths": "depths",
    "dims": "dims",
    "d_state": "state_dim",
    "dt_rank": "dt_rank",
    "ssm_ratio": "expand",
    "attn_drop_rate": "dropout",
    "drop_rate": "mlp_dropout",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
    "patch_norm": "patch_norm",
}
_DEFAULTS: dict[str, Any] = {"dims": [96, 192, 384, 768], "mlp_ratio": 4.0, "downsample_version": "v2"}


def config(arguments: dict[str, Any], **more: Any) -> ResVMambaConfig:
    """Our config of published arguments."""
    given = _DEFAULTS | arguments
    version = given.pop("downsample_version")
    ours = translate(
        given,
        _NAMES,
        ignored=("use_checkpoint", "out_indices", "pretrained", "norm_layer"),
        only={"softmax_version": (False,), "shared_ssm": (False,)},
    )
    # The published code asks for "v2" alone; whatever else is given merges patches.
    return ResVMambaConfig(**ours, downsample="convolution2" if version == "v2" else "merging", **more)


def classifier(fixture: Fixture) -> dict[str, Any]:
    """`VSSM`, its random convolutions kept as modules ``res_fuse``."""
    return run(fixture, ResVMamba(config(fixture.kwargs)))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_VSSM`: its own forward has no branches."""
    return run(fixture, ResVMamba(config(fixture.kwargs, residual="none", **features(fixture))))


ADAPTERS = {"models/resvmamba.py:VSSM": classifier, "models/resvmamba.py:Backbone_VSSM": backbone}
