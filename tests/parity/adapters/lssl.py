"""state-spaces/s4: the linear state-space layer, whose missing extension the fixtures replaced by dense algebra."""

from __future__ import annotations

from typing import Any

import torch

from statescan import ssm
from statescan.layers import LSSL
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

_NAMES = {
    "d": "dim",
    "d_model": "state_dim",
    "measure": "measure",
    "learn": "learn",
    "channels": "outputs",
    "bias": "bias",
    "activation": "activation",
    "ff": "output_projection",
    "dropout": "dropout",
}
_LEARN = ("fixed", "shared", "separate")


def layer(fixture: Fixture) -> dict[str, Any]:
    """`LSSL`. Without learning its system and timescales are buffers, which formulas give."""
    given = dict(d_model=-1, learn=0, measure="legs", dt=None) | fixture.kwargs
    timescales = dict(min=0.001, max=0.1, learn=False, init="random") | (given.pop("dt") or {})
    options = translate(
        given,
        _NAMES,
        ignored=("lr", "init"),
        only={"noise": (0, 0.0), "weight_norm": (False,), "measure_args": ({}, None), "l_max": (-1, 0)},
    )
    options |= translate(
        timescales, {"min": "dt_min", "max": "dt_max", "learn": "learn_dt", "init": "dt_init"}, ignored=("lr",)
    )
    if options["learn"] not in (0, 1, 2):
        raise ParityError(f"argument learn={options['learn']!r} is not supported; supported: 0, 1, 2")
    options["learn"] = _LEARN[options["learn"]]
    options["state_dim"] = options["state_dim"] if options["state_dim"] > 0 else None
    if options.get("activation", "gelu") in ("id", "identity", "linear"):
        options["activation"] = None
    mixer = LSSL(options.pop("dim"), **options).eval()
    fixture.check_parameters(mixer)
    own = mixer.state_dict()
    tensors = {_ours(name): tensor for name, tensor in fixture.state_dict().items()}
    constants = {name: own[name] for name, _ in mixer.named_buffers() if name not in tensors}
    mixer.load_state_dict(tensors | constants)
    (x,) = fixture.inputs()
    with torch.no_grad():
        y, _ = mixer(x)
        stored, B = mixer.system.matrices()
        dA, dB = mixer.discretise()
        if fixture.outputs.get("B", [0])[-1] == B.shape[-1] + 1:
            B = torch.cat([B, torch.zeros_like(B[..., :1])], dim=-1)
        if options["learn"] == "fixed" and options["measure"] == "lagt":
            stored = -stored  # the one published matrix that is stored with its own sign
        return {"y": y, "krylov": ssm.krylov(dA, dB, x.shape[1]), "A_stored": stored, "B": B}


def _ours(name: str) -> str:
    if name == "E":
        return "bias"
    return name.replace("transition.", "system.").replace("output_linear.", "output_projection.")


ADAPTERS = {"src.models.sequence.modules.lssl.LSSL": layer}
