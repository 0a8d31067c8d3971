"""MzeroMiko/VMamba: models, feature maps, and the four ways of walking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan import routes
from statescan.models import load_published
from statescan.models.vmamba import VANILLA, VMamba, VMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

STEMS = {"v1": "patches", "v2": "overlapping"}
DOWNSAMPLES = {"v1": "merging", "v2": "convolution2", "v3": "convolution3", "none": "none"}
NORMS = {"ln": "layer_norm", "ln2d": "layer_norm", "bn": "batch_norm"}
OUTPUT_NORMS = {
    "_onnone": "none",
    "_ondwconv3": "depthwise",
    "_oncnorm": "layer_norm_depthwise",
    "_onsoftmax": "softmax",
    "_onsigmoid": "sigmoid",
}
CORES: dict[str, dict[str, Any]] = {name: {} for name in ("v01", "v02", "v03", "v04", "v05", "v2", "v3")} | {
    "v051d": {"route": "cross_unidirectional"},
    "v052d": {"route": "cross_bidirectional"},
    "v052dc": {"scan": "cascade"},
    "v052d3": {"route": "quarter_turns"},
    "m0": {"scan": "ssd"},
}
NAMES = {
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
    "ssm_init": "initialisation",
    "mlp_ratio": "mlp_ratio",
    "mlp_act_layer": "mlp_activation",
    "mlp_drop_rate": "mlp_dropout",
    "gmlp": "mlp_gated",
    "drop_path_rate": "drop_path_rate",
    "patch_norm": "patch_norm",
    "posembed": "position_embedding",
    "imgsize": "image_size",
}
#: What the published class takes where an argument is not given.
DEFAULTS: dict[str, Any] = {
    "depths": [2, 2, 9, 2],
    "dims": [96, 192, 384, 768],
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_conv_bias": True,
    "ssm_act_layer": "silu",
    "forward_type": "v2",
    "mlp_ratio": 4.0,
    "drop_path_rate": 0.1,
    "norm_layer": "LN",
    "downsample_version": "v2",
    "patchembed_version": "v1",
}


def pick(table: dict[str, Any], argument: str, value: Any) -> Any:
    """What a published value means for us."""
    if value not in table:
        raise ParityError(f"argument {argument}={value!r} is not supported; supported: {', '.join(table)}")
    return table[value]


def forward_type(name: str, activation: str) -> dict[str, Any]:
    """A published forward type: a core and postfixes, stripped from the end in a fixed order."""
    if name in ("v0", "v0seq"):
        first = ("conv_bias", "gate")
        return {key: VANILLA[key] for key in first} | {"activation": "silu", "conv_kernel": 3, "initialisation": "v0"}
    found = {}
    for postfix in ("_no32", "_oact", "_noz", "_nozact"):
        found[postfix] = name.endswith(postfix)
        name = name.removesuffix(postfix)
    norm = "layer_norm"
    for postfix, meaning in OUTPUT_NORMS.items():
        # The published code strips all of these; the first in its order decides.
        if name.endswith(postfix):
            name = name.removesuffix(postfix)
            norm = meaning if norm == "layer_norm" else norm
    gate = None if found["_noz"] else "identity" if found["_nozact"] else activation
    return pick(CORES, "forward_type", name) | {
        "gate": gate,
        "output_norm": norm,
        "output_activation": "gelu" if found["_oact"] else "identity",
    }


def config(arguments: dict[str, Any], **more: Any) -> VMambaConfig:
    """Our config of published arguments."""
    given = DEFAULTS | arguments
    for name in ("ssm_act_layer", "mlp_act_layer", "norm_layer"):
        if name in given:
            given[name] = given[name].lower()
    kind, norm = given.pop("forward_type"), given.pop("norm_layer")
    stem, downsample = given.pop("patchembed_version"), given.pop("downsample_version")
    ours = translate(given, NAMES, ignored=("use_checkpoint", "out_indices", "pretrained"))
    ours |= forward_type(kind, ours["activation"])
    return VMambaConfig(
        **ours,
        stem=pick(STEMS, "patchembed_version", stem),
        downsample=pick(DOWNSAMPLES, "downsample_version", downsample),
        norm=pick(NORMS, "norm_layer", norm),
        **more,
    )


@torch.no_grad()
def run(fixture: Fixture, model: Any) -> dict[str, Any]:
    """Load the published tensors, and the scores or the feature maps of the fixture's images."""
    fixture.check_parameters(model)
    load_published(model.eval(), fixture.state_dict(), constants=[name for name, *_ in fixture.data["constants"]])
    (images,) = fixture.inputs()
    outputs = model(images)
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    return {f"features_{index}": grid for index, grid in zip(model.out_indices, outputs, strict=True)}


def features(fixture: Fixture) -> dict[str, Any]:
    """Fields of a config that gives the feature maps of a fixture."""
    return {"features_only": True, "out_indices": tuple(fixture.kwargs.get("out_indices", (0, 1, 2, 3)))}


def classifier(fixture: Fixture) -> dict[str, Any]:
    """`VSSM`."""
    return run(fixture, VMamba(config(fixture.kwargs)))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_VSSM`."""
    return run(fixture, VMamba(config({"norm_layer": "ln"} | fixture.kwargs, **features(fixture))))


MODES = {
    0: ("cross", "cross"),
    1: ("unidirectional", "cross_unidirectional"),
    2: ("bidirectional", "cross_bidirectional"),
    3: ("rot90", "quarter_turns"),
}


def scan_modes(fixture: Fixture) -> dict[str, Any]:
    """Walks and merges of a map, and of four maps one walk each; channels first outside."""
    x, y, x4 = fixture.inputs()
    height, width = x.shape[2:]
    outputs = {}
    for mode in fixture.kwargs["scans"]:
        name, ours = pick(MODES, "scans", mode)
        route = routes.get(ours)
        which = torch.arange(route.walks)
        outputs[f"scan_{name}"] = route.walk(x.permute(0, 2, 3, 1)).permute(0, 2, 3, 1)
        # Each walk reads a map of its own: walk all maps by all walks, keep the pairs.
        walked = route.walk(x4.permute(0, 3, 4, 1, 2).flatten(3)).unflatten(3, x4.shape[1:3])
        outputs[f"scan_one_by_one_{name}"] = walked[:, :, which, which].permute(0, 2, 3, 1)
        sequences = y.flatten(3).permute(0, 3, 1, 2)
        outputs[f"merge_{name}"] = route.merge(sequences, height, width).permute(0, 3, 1, 2).flatten(2)
        apart = route.unwalk(sequences, height, width)
        outputs[f"merge_one_by_one_{name}"] = apart.permute(0, 3, 4, 1, 2).flatten(3)
    return outputs


ADAPTERS = {
    "classification/models/vmamba.py:VSSM": classifier,
    "classification/models/vmamba.py:Backbone_VSSM": backbone,
    "vmamba.py:cross_scan_fwd, cross_merge_fwd, cross_scan1b1_fwd, cross_merge1b1_fwd": scan_modes,
}
