"""state-spaces/s4: HiPPO matrices, their normal form and discretisations, and the memory of all the past.

These are formulas without weights. The measures and sizes are in the names of the outputs, options in the notes.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from statescan import ssm
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

#: Published names of methods; a notes' `gbt alpha=` gives the weight of the generalised transform.
_METHODS = {"backward_diff": "backward", "forward": "euler"}


def _measure_options(fixture: Fixture, measure: str) -> dict[str, float]:
    """``tlagt uses beta=0.5, glagt alpha=0.25 beta=0.1`` in the notes."""
    told = fixture.note(rf"\b{measure}(?: uses)? ((?:\w+=[\d.]*\d\s?)+)") or ""
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]*\d)", told)}


def _named(fixture: Fixture, pattern: str) -> list[tuple[str, tuple[str, ...]]]:
    """The outputs' names with their parts."""
    found = []
    for name in fixture.outputs:
        match = re.fullmatch(pattern, name)
        if match is None:
            raise ParityError(f"{name}: no output of this kind is known")
        found.append((name, match.groups()))
    return found


def _with_column(A: Tensor, B: Tensor) -> Tensor:
    return torch.cat([A, B[:, None]], dim=1)


def transitions(fixture: Fixture) -> dict[str, Any]:
    """A with B as its last column."""
    translate(fixture.kwargs, {})
    return {
        name: _with_column(*ssm.transition(measure, int(size), **_measure_options(fixture, measure)))
        for name, (measure, size) in _named(fixture, r"AB_(\w+?)_(\d+)")
    }


def normal_forms(fixture: Fixture) -> dict[str, Any]:
    """What the normal-plus-low-rank form says whatever the phases of its eigenvectors, and the matrix rebuilt."""
    translate(fixture.kwargs, {}, only={"B_clip": (None,), "dtype": ("double",)})
    outputs = {}
    for name, (kind, measure, size) in _named(fixture, r"(inv|A)_(\w+?)_(\d+)"):
        rank = 2 if measure == "legt" else 1
        w, P, B, V = ssm.nplr(measure, int(size), rank, clip=None)
        if kind == "inv":
            products = B * P.conj()
            outputs[name] = torch.cat(
                [w.real[None], w.imag[None], B.abs()[None], P.abs(), products.real, products.imag]
            )
        else:
            correction = ssm.low_rank_correction(measure, int(size), rank)
            outputs[name] = 2 * ((V * w) @ V.conj().T).real - correction.T @ correction
    return outputs


def discretisations(fixture: Fixture) -> dict[str, Any]:
    """dA with dB as its last column."""
    translate(fixture.kwargs, {})
    told = [m.split("alpha=")[1] for m in fixture.data["ours"]["kwargs"].get("methods", ()) if "alpha=" in m]
    alpha = float(told[0]) if told else 0.5
    outputs = {}
    for name, (measure, size, method, dt) in _named(fixture, r"dAB_(\w+?)_(\d+)_(\w+)_([\d.e-]+)"):
        A, B = ssm.transition(measure, int(size))
        dA, dB = ssm.discretize(A, B, float(dt), _METHODS.get(method, method), alpha=alpha)
        outputs[name] = _with_column(dA, dB)
    return outputs


def scaled_memory(fixture: Fixture) -> dict[str, Any]:
    """LegS over all the past: states on the way, and the signal read back from the last."""
    options = translate(fixture.kwargs, {"N": "state_dim", "max_length": "length"}, only={"measure": ("legs",)})
    length, size = options["length"], options["state_dim"]
    k = torch.arange(length, dtype=torch.float64) / length
    signal = torch.sin(2 * math.pi * 3 * k) + 0.5 * torch.cos(2 * math.pi * 7 * k)
    points = torch.linspace(0, 1, length, dtype=torch.float64)
    outputs = {}
    for name, (kind, method) in _named(fixture, r"(coef|recon)_(last_forward_early|backward|bilinear|zoh)"):
        if method == "last_forward_early":
            outputs[name] = ssm.ScaledLegendreMemory(size, method="forward")(signal[: fixture.outputs[name][0]])
            continue
        memory = ssm.ScaledLegendreMemory(size, method=method)
        states = memory(signal)
        outputs[name] = states[:: max(1, length // 16)] if kind == "coef" else memory.reconstruct(states[-1], points)
    return outputs


ADAPTERS = {
    "src.models.hippo.hippo.transition": transitions,
    "src.models.hippo.hippo.nplr": normal_forms,
    "src.models.hippo.hippo.transition, discretised as src.models.hippo.visualizations.HiPPO does "
    "(scipy.signal.cont2discrete)": discretisations,
    "src.models.hippo.visualizations.HiPPOScale": scaled_memory,
}
