"""renll/SeqBoat: the layer and the classifier of its standalone file."""

from __future__ import annotations

from typing import Any

import torch

from statescan.layers import SeqBoat
from statescan.models import build_model, load_published
from statescan.models.seqboat import layer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

NORMS = {"layernorm": "layer", "batchnorm": "batch"}
SHARED_NAMES = {
    "attention_activation": "attention",
    "bidirectional": "bidirectional",
    "dropout": "dropout",
    "norm_type": "norm",
    "prenorm": "prenorm",
    "rel_pos_bias": "position",
    "max_positions": "max_length",
    "init_temp_scale": "temperature",
}
LAYER_NAMES = SHARED_NAMES | {
    "embed_dim": "dim",
    "zdim": "qk_dim",
    "hdim": "hidden_dim",
    "ndim": "ema_dim",
    "window_size": "window",
    "truncation": "truncation",
    "norm_affine": "norm_affine",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}
LAYER_DEFAULTS = {"window_size": 256, "norm_type": "layernorm", "prenorm": True}
MODEL_NAMES = SHARED_NAMES | {
    "d_input": "input_dim",
    "d_output": "num_classes",
    "d_model": "dim",
    "n_layers": "depth",
    "d_qk": "qk_dim",
    "d_ema": "ema_dim",
    "mem_size": "window",
}
MODEL_DEFAULTS = {"norm_type": "batchnorm", "prenorm": False}


def _options(given: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    if given["norm_type"] not in NORMS:
        raise ParityError(f"norm_type {given['norm_type']!r} is not supported; supported: {', '.join(NORMS)}")
    options = translate(given | {"norm_type": NORMS[given["norm_type"]]}, names)
    return options | {"compression": "auto"}


@torch.no_grad()
def layer(fixture: Fixture) -> dict[str, Any]:
    """`SeqBoatLayer`, whose time axis comes first; also what the average gives, and where attention is called."""
    given = LAYER_DEFAULTS | fixture.kwargs
    local = given.pop("local_pos", False)
    options = _options(given, LAYER_NAMES)
    if local and options.get("position", "simple") == "simple":
        options["position"] = "local"
    ours = SeqBoat(**options).eval()
    fixture.check_parameters(ours)
    ours.load_state_dict(layer_from_published(fixture.state_dict()), strict=True)
    x, *masks = fixture.inputs()
    x = x.transpose(0, 1)
    padding = masks[0].bool() if masks else None
    y, _ = ours(x, padding=padding)
    ema, _ = ours.ema(ours.norm(x) if ours.prenorm else x, padding=padding)
    active, _, _ = ours.route(torch.nn.functional.silu(ema), padding)
    return {"y": y.transpose(0, 1), "ema": ema.transpose(0, 1), "active": active.float()}


@torch.no_grad()
def classifier(fixture: Fixture) -> dict[str, Any]:
    """`SeqBoatModel`."""
    model = build_model("seqboat", _options(MODEL_DEFAULTS | fixture.kwargs, MODEL_NAMES)).eval()
    fixture.check_parameters(model)
    load_published(model, fixture.state_dict(), constants=fixture.data.get("constants", ()))
    (x,) = fixture.inputs()
    return {"logits": model(x)}


ADAPTERS = {
    "standalone_seqboat.SeqBoatLayer": layer,
    "standalone_seqboat.SeqBoatModel": classifier,
}
