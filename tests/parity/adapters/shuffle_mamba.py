"""huangzizheng01/ShuffleMamba: the plain form and the one with registers, in evaluation and in training."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models.shuffle_mamba import ShuffleMamba, ShuffleMambaConfig
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity.adapters import vim

_NAMES = {
    "img_size": "image_size",
    "patch_size": "patch",
    "stride": "stride",
    "depth": "depth",
    "embed_dim": "dim",
    "channels": "in_channels",
    "num_classes": "num_classes",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path_rate",
    "shuffle_rate": "shuffle_rate",
    "norm_epsilon": "norm_eps",
    "residual_in_fp32": "residual_in_float32",
}
_REGISTERS = {"num_cls_tokens": "class_tokens", "cls_reduce": "class_reduction"}
_IGNORED = ("fused_add_norm", "initializer_cfg", "device", "dtype")
_DEFAULTS: dict[str, Any] = {"drop_path_rate": 0.1, "shuffle_rate": 0.1, "residual_in_fp32": False, "rms_norm": False}


def _run(fixture: Fixture, own: dict[str, Any]) -> dict[str, Any]:
    model = vim.load(fixture, ShuffleMamba(ShuffleMambaConfig(**own)))
    images, *orders = fixture.inputs()
    if not orders:
        return {"logits": model(images)}
    model.train()
    if model.layer_shuffle is None:  # of probability 0, whatever was drawn
        return {"logits": model(images)}
    shuffled = fixture.data["ours"]["kwargs"]["shuffled_layers"]
    # A number of 0 was drawn for the layers that are named, and permutations handed out as they were asked for: a layer of
    # probability 0 does not shuffle even then, and the next one takes its permutation.
    rows = iter([order for order, yes in zip(orders[0], shuffled, strict=True) if yes])
    rates = model.layer_shuffle.rates
    given = [next(rows) if yes and rate > 0 else None for yes, rate in zip(shuffled, rates, strict=True)]
    with model.layer_shuffle.fixed(given):
        return {"logits": model(images)}


def _options(fixture: Fixture, names: dict[str, str], ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    given = _DEFAULTS | fixture.kwargs
    norm = "rms" if given.pop("rms_norm") else "layer"
    inner = translate(given.pop("ssm_cfg", None) or {}, vim._MIXER, ignored=vim._FIRST)
    return translate(given, names, ignored=(*_IGNORED, *ignored)) | inner | dict(norm=norm)


@torch.no_grad()
def plain(fixture: Fixture) -> dict[str, Any]:
    """`models_shuffle.VisionMamba`, which swallows the arguments of the other form."""
    return _run(fixture, {"stride": 16} | _options(fixture, _NAMES, tuple(_REGISTERS)))


@torch.no_grad()
def registers(fixture: Fixture) -> dict[str, Any]:
    """`models_reg.VisionMamba`, which has no stride and swallows one."""
    names = {name: ours for name, ours in (_NAMES | _REGISTERS).items() if name != "stride"}
    return _run(fixture, _options(fixture, names, ("stride",)) | dict(class_token="spread"))


ADAPTERS = {
    "models_shuffle.py:VisionMamba": plain,
    "models_reg.py:VisionMamba": registers,
}
