"""mahmad000/MorpMamba: the notebook's model."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models import build_model, load_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture

_NAMES = {
    "bands": "bands",
    "width": "window",
    "window": "window",
    "dim": "dim",
    "out_channels": "dim",
    "heads": "heads",
    "num_heads": "heads",
    "state_dim": "state_dim",
    "hidden": "hidden",
    "num_classes": "num_classes",
    "kernel": "size",
    "kernel_size": "size",
    "dropout": "dropout",
}


@torch.no_grad()
def classifier(fixture: Fixture) -> dict[str, Any]:
    """`SSMambaModel`; also its tokens before the gates, the attention's answer and the last state."""
    options = dict(morphology="conv", mixer="linear", size=5) | translate(fixture.kwargs, _NAMES)
    model = build_model("morp_mamba", options).eval()
    fixture.check_parameters(model)
    load_published(model, fixture.state_dict(), constants=fixture.data["constants"])
    (windows,) = fixture.inputs()
    spatial, spectral = model.tokens(windows)
    asking, asked = model.enhance(spatial, spectral)
    attention = model.reader.attention(asking.flatten(1, 2), asked.flatten(1, 2))
    logits = model(windows)
    return {
        "spatial_tokens": spatial,
        "spectral_tokens": spectral,
        "attention": attention,
        "state": model.reader.recur(attention),
        "logits": logits,
        "probabilities": logits.softmax(-1),
    }


ADAPTERS = {"Spatial-Spectral MorpMamba.ipynb:SSMambaModel (from its definition)": classifier}
