"""PixDeep/MHS-VM: the U-Net, its block, and the attention over routes."""

from __future__ import annotations

from typing import Any

import torch

from statescan import routes
from statescan.layers.grid import HEADS, GatedMultiHeadScan
from statescan.models._names import Names
from statescan.models.mhs_vm import BLOCK_RULES, MHSVM, MHSVMConfig, from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

_HEADS = {"head_num": "num_heads", "gfu_t": "threshold", "with_proj": "head_projection"}


def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    module.load_state_dict(tensors, strict=True)
    module.eval()


@torch.no_grad()
def unet(fixture: Fixture) -> dict[str, Any]:
    """`VSSM`."""
    given = {"dims": [96, 192, 384, 768], "depths": [2, 2, 9, 2], "num_classes": 1000} | fixture.kwargs
    heads = translate(given.pop("para_dict"), _HEADS, ignored=("route_dict_path",))
    decoder_dims = given.pop("dims_decoder", given["dims"][::-1])
    if list(decoder_dims) != list(given["dims"])[::-1]:
        raise ParityError(f"argument dims_decoder={decoder_dims}: the encoder's, backwards, are supported")
    names = {
        "patch_size": "patch_size",
        "in_chans": "in_channels",
        "num_classes": "num_classes",
        "depths": "depths",
        "depths_decoder": "decoder_depths",
        "dims": "dims",
        "d_state": "state_dim",
        "drop_path_rate": "drop_path_rate",
    }
    options = translate(
        given,
        names,
        ignored=("use_checkpoint", "drop_rate", "attn_drop_rate"),
        only={"patch_norm": (True,), "d_conv": (3,)},
    )
    ours = MHSVM(MHSVMConfig(**options, **heads))
    fixture.check_parameters(ours)
    _load(ours, from_published(fixture.state_dict()))
    return {"logits": ours(*fixture.inputs())}


@torch.no_grad()
def block(fixture: Fixture, *, gated: bool = True) -> dict[str, Any]:
    """`VSSGate` and `VSSUnGated`, on grids."""
    given = fixture.kwargs
    heads = translate(given.pop("para_dict"), _HEADS, ignored=("route_dict_path",))
    options = translate(
        given, {"d_model": "dim", "d_state": "state_dim", "d_conv": "conv_kernel"}, ignored=("dropout",)
    )
    used = tuple(HEADS.values())[: heads.pop("num_heads", 4)]
    ours = GatedMultiHeadScan(options.pop("dim"), used, **options, **heads, gated=gated)
    fixture.check_parameters(ours)
    _load(ours, Names(BLOCK_RULES).from_published(fixture.state_dict()))
    return {"y": ours(*fixture.inputs())}


def ungated_block(fixture: Fixture) -> dict[str, Any]:
    """`VSSUnGated`."""
    return block(fixture, gated=False)


def attention(fixture: Fixture) -> dict[str, Any]:
    """`GFU`: (batch, routes, channels, length) -> (batch, channels, length)."""
    (y,) = fixture.inputs()
    threshold = fixture.kwargs.get("t", 0.0)
    return {"y": routes.route_attention(y.movedim(1, -1).unsqueeze(-1), threshold=threshold).squeeze(-1)}


_FILE = "models/vmunet/mhsm.py"
ADAPTERS = {
    "models/vmunet/vmamba.py:VSSM": unet,
    f"{_FILE}:VSSGate": block,
    f"{_FILE}:VSSUnGated": ungated_block,
    f"{_FILE}:GFU": attention,
}
