"""n8thantran/mambamixer-replication: TSM2. The authors of MambaMixer released no code."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models.tsm2 import FAMILY, TSM2, TSM2Config
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture

_NAMES = {
    "num_variates": "channels",
    "seq_len": "history",
    "pred_len": "horizon",
    "patch_len": "patch_size",
    "stride": "stride",
    "d_model": "dim",
    "d_state": "state_dim",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "num_layers": "depth",
    "dropout": "dropout",
}


@torch.no_grad()
def tsm2(fixture: Fixture) -> dict[str, Any]:
    """`TSM2` of the replication."""
    ours = TSM2(TSM2Config(**translate(fixture.kwargs, _NAMES), mixing="softmax")).eval()
    fixture.check_parameters(ours)
    ours.load_state_dict(FAMILY.from_published(fixture.state_dict(), None), strict=True)
    return {"forecast": ours(*fixture.inputs())}


ADAPTERS = {"tsm2_model.TSM2": tsm2}
