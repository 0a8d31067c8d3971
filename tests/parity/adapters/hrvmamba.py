"""zhanghao5201/HRVMamba: the backbone, its block, and the deformable step."""

from __future__ import annotations

from typing import Any

import torch

from statescan.layers.grid import deformable_aggregation
from statescan.models._names import Names
from statescan.models.hrvmamba import BLOCK_RULES, FAMILY, HRVMamba, HRVMambaConfig, dynamic_block
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

_BLOCK = {
    "ssm_d_state": "state_dim",
    "ssm_ratio": "expand",
    "ssm_dt_rank": "dt_rank",
    "mlp_ratio": "mlp_ratio",
}
#: What the scan's convolution would be is not asked: the deformable step stands in its place.
_IGNORED = ("ssm_conv", "ssm_conv_bias", "ssm_drop_rate", "mlp_drop_rate", "ssm_init", "use_checkpoint")
_ONLY: dict[str, tuple[Any, ...]] = {
    "ssm_act_layer": ("silu",),
    "mlp_act_layer": ("gelu",),
    "forward_type": ("v05_noz", "v04_noz", "v03_noz", "v3_noz"),
    "gmlp": (False,),
    "post_norm": (False,),
    "channel_first": (True,),
}


@torch.no_grad()
def block(fixture: Fixture) -> dict[str, Any]:
    """`HRVmambaBlock`: (batch, channels, height, width) to the same shape."""
    given = {"ssm_d_state": 16, "mlp_ratio": 4.0, "dcn_without_pointwise": False} | fixture.kwargs
    pointwise = not given.pop("dcn_without_pointwise")
    dim = given.pop("hidden_dim")
    options = translate(given, _BLOCK, ignored=(*_IGNORED, "out_features", "drop_path"), only=_ONLY)
    ours = dynamic_block(HRVMambaConfig(**options, deformable_pointwise=pointwise), dim).eval()
    fixture.check_parameters(ours)
    ours.load_state_dict(Names(BLOCK_RULES).from_published(fixture.state_dict()), strict=True)
    (x,) = fixture.inputs()
    return {"y": ours(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}


def _stage(stage: dict[str, Any], number: int) -> dict[str, Any]:
    if stage["block"] != "HRVmambaBlock" or stage["num_branches"] != number or len(set(stage["num_blocks"])) != 1:
        raise ParityError(f"stage{number}: {number} branches of as many HRVmambaBlocks each are supported")
    known = ("num_modules", "num_branches", "block", "num_blocks", "num_channels")
    return translate({k: v for k, v in stage.items() if k not in known}, _BLOCK, ignored=_IGNORED, only=_ONLY)


def config(given: dict[str, Any], **more: Any) -> HRVMambaConfig:
    """Our config of published arguments."""
    extra = given["extra"]
    stages = [extra[f"stage{number}"] for number in (2, 3, 4)]
    blocks = [_stage(stage, number) for number, stage in enumerate(stages, start=2)]
    dim = stages[0]["num_channels"][0]
    widths = [dim * 2**branch for branch in range(4)]
    if blocks[1:] != blocks[:-1] or any(list(s["num_channels"]) != widths[: len(s["num_channels"])] for s in stages):
        raise ParityError(
            "stages: the same blocks in all, and channels that double from branch to branch, are supported"
        )
    first = extra["stage1"]
    if first["block"] != "BOTTLENECK" or first["num_modules"] != 1 or first["num_branches"] != 1:
        raise ParityError("stage1: one branch of bottlenecks is supported")
    return HRVMambaConfig(
        in_channels=given.get("in_channels", 3),
        drop_path_rate=extra.get("drop_path_rate", 0.0),
        dim=dim,
        bottlenecks=first["num_blocks"][0],
        bottleneck_dim=first["num_channels"][0],
        modules=tuple(stage["num_modules"] for stage in stages),
        depths=tuple(stage["num_blocks"][0] for stage in stages),
        deformable_pointwise=not given.get("dcn_without_pointwise", False),
        **blocks[0],
        **more,
    )


@torch.no_grad()
def run(fixture: Fixture, **more: Any) -> dict[str, Any]:
    """`HRVmamba`, whole or its branches alone."""
    features = "features_0" in fixture.outputs
    ours = HRVMamba(config(fixture.kwargs, features_only=features, **more)).eval()
    fixture.check_parameters(ours)
    ours.load_state_dict(FAMILY.from_published(fixture.state_dict(), None), strict=True)
    y = ours(*fixture.inputs())
    if features:
        return {f"features_{index}": grid for index, grid in enumerate(y)}
    return dict.fromkeys(fixture.outputs, y)


def segmentation(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_HRVMamba`: the branches, normed."""
    return run(fixture, feature_norm=True)


def deformable(fixture: Fixture) -> dict[str, Any]:
    """The deformable step alone."""
    options = translate(
        fixture.kwargs,
        {"group": "groups", "offset_scale": "offset_scale"},
        only={"kernel_size": (3,), "pad": (1,), "stride": (1,), "dilation": (1,), "remove_center": (0, False)},
    )
    values, offsets = fixture.inputs()
    return {"y": deformable_aggregation(values.float(), offsets.float(), **options)}


_FILE = "classification/models/hrvmamba.py"
_WHOLE = f"{_FILE}:HRVmamba (without neck and head: the four branches)"
_PLAIN = "DCNv4(without_pointwise=True)"
ADAPTERS = {
    f"{_FILE}:HRVmambaBlock": block,
    f"{_FILE}:HRVmambaBlock, {_PLAIN}": block,
    _WHOLE: run,
    f"{_WHOLE}, {_PLAIN}": run,
    f"{_FILE}:HRVmamba": run,
    f"{_FILE}:HRVmamba, {_PLAIN}": run,
    f"{_FILE}:Backbone_HRVMamba": segmentation,
    "pose_estimation/DCNv4_op/src/cuda/dcnv4_im2col_cuda.cuh (from its definition)": deformable,
}
