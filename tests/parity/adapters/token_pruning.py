"""Token pruning: the selection of ZLKong/ToP-ViM by its definition, the aligned scan, and hustvl/Vim pruned with them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from statescan import layers, ops
from statescan.models.token_pruning import prune_tokens
from statescan.models.vim import Vim, VimConfig
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters import vim


@torch.no_grad()
def selection(fixture: Fixture) -> dict[str, Any]:
    """Importance, that of the class token written as zero, and the indices of what is kept."""
    importance = layers.token_importance(fixture.inputs()[0].transpose(1, 2))
    place = fixture.kwargs["class_position"]
    classes = None
    if place is not None:
        importance[:, place] = 0
        classes = torch.full((len(importance), 1), place)
    kept = layers.select_tokens(importance, fixture.kwargs["ratio"], classes, middle=place is not None)
    return {"importance": importance, "kept": kept}


@torch.no_grad()
def aligned_scan(fixture: Fixture) -> dict[str, Any]:
    """The scan of what is left: states held, aging over gaps, and aging with the sequence read backwards."""
    u, dt, a_log, b, c, d, bias, r = fixture.inputs()
    positions = r.argsort(1)[:, : u.shape[2]].sort(1).values

    def scan(places: Tensor | None, flipped: bool = False) -> Tensor:
        rows = [part.float().transpose(1, 2) for part in (u, dt, b, c)]
        rows = [part.flip(1) for part in rows] if flipped else rows
        x, delta, B, C = rows
        y = ops.aligned_scan(
            x,
            delta,
            -torch.exp(a_log.float()),
            B,
            C,
            d.float(),
            positions=places,
            delta_bias=bias.float(),
            delta_softplus=True,
        )
        return (y.flip(1) if flipped else y).transpose(1, 2)

    return {
        "positions": positions,
        "y_hold": scan(None),
        "y_decay": scan(positions),
        "y_decay_reversed": scan(positions.flip(1), flipped=True),
    }


@torch.no_grad()
def pruned_vim(fixture: Fixture) -> dict[str, Any]:
    """`VisionMamba` of hustvl, its tokens dropped after the blocks that the notes name."""
    model = vim.load(fixture, Vim(VimConfig(**vim.options(fixture.kwargs))))
    ours = fixture.data["ours"]
    alignment = fixture.note(r"\('(hold|decay)'\)") or "hold"
    places = ours.get("prune_after")
    if places is None:
        found = fixture.note(r"after layers \[([0-9, ]+)\]")
        if found is None:
            raise ParityError("the notes do not say after which layers tokens are dropped")
        places = [int(number) for number in re.findall(r"\d+", found)]
    ratio = ours.get("ratio") or float(fixture.note(r"keep ratio ([0-9.]+)") or 0.8)
    middle = model.config.class_token == "middle" and alignment == "hold"
    pruned = prune_tokens(model, places, ratio, alignment=alignment, middle=middle).eval()  # type: ignore[arg-type]
    features, log = pruned.run_kept(fixture.inputs()[0])
    kept = {f"kept_{place}": positions for place, positions in zip(places, log, strict=True)}
    return {
        **kept,
        "features": pruned.forward_head(features, pre_logits=True),
        "logits": pruned.forward_head(features),
    }


ADAPTERS = {
    "vim/models_mamba.py:VisionMamba.forward_features (the selection, from its definition)": selection,
    "token_pruning:from the definition in the sheet": aligned_scan,
    "token_pruning:vim/models_mamba.py:VisionMamba": pruned_vim,
}
