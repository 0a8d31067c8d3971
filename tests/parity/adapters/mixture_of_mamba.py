"""Weixin-Liang/Mixture-of-Mamba: the block and its dense baseline."""

from __future__ import annotations

from typing import Any

import torch

from statescan.layers import Mamba, MixtureOfMamba
from statescan.models._modality_names import modality_mixer_from_published
from statescan.models._published import mixer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity.adapters.mamba import BOOKKEEPING, MAMBA_NAMES

PROJECTIONS = {"in": "input", "x": "selection", "dt": "delta", "out": "output"}


@torch.no_grad()
def mixture_of_mamba(fixture: Fixture) -> dict[str, Any]:
    """`MixtureOfMamba`; the modality of each token is an input."""
    given = dict(fixture.kwargs)
    split = tuple(ours for part, ours in PROJECTIONS.items() if not given.pop(f"do_not_split_{part}_proj", False))
    split = tuple(ours for part, ours in PROJECTIONS.items() if ours in split and given.pop(f"split_{part}_proj", True))
    names = MAMBA_NAMES | {"n_modalities": "modalities"}
    # The published code never uses a shared delta projection's bias; here that has to be asked for.
    mixer = MixtureOfMamba(**translate(given, names, ignored=BOOKKEEPING), split=split, ignore_shared_delta_bias=True)
    fixture.check_parameters(mixer)
    mixer.load_state_dict(modality_mixer_from_published(fixture.state_dict()), strict=True)
    inputs = fixture.named_inputs()
    y, _ = mixer.eval()(inputs["x"], modality=inputs["modality"])
    return dict.fromkeys(("y", "out", "full"), y)


@torch.no_grad()
def dense(fixture: Fixture) -> dict[str, Any]:
    """`BaselineDenseMamba`, a Mamba block that looks at no modality."""
    ignored = (*BOOKKEEPING, "n_modalities", *(f"do_not_split_{part}_proj" for part in PROJECTIONS))
    mixer = Mamba(**translate(fixture.kwargs, MAMBA_NAMES, ignored=ignored)).eval()
    fixture.check_parameters(mixer)
    mixer.load_state_dict(mixer_from_published(fixture.state_dict()), strict=True)
    y, _ = mixer(fixture.inputs()[0])
    return dict.fromkeys(("y", "out", "full"), y)


ADAPTERS = {
    "MixtureOfMamba.MixtureOfMamba": mixture_of_mamba,
    "BaselineDenseMamba.BaselineDenseMamba": dense,
}
