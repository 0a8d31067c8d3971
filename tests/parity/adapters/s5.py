"""lindermanlab/S5: the discretised scan, the classifier and the retrieval model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan import ops
from statescan.models import load_published
from statescan.models.s5 import S5Classifier, S5Config
from statescan.ssm import discretize_diagonal
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

_NAMES = {
    name: name
    for name in ("input_dim", "dim", "state_dim", "blocks", "depth", "activation", "bidirectional")
    + ("prenorm", "norm", "discretization", "step_rescale", "dt_min", "dt_max", "dropout")
} | {
    "num_classes": "classes",
    "C_init": "output_init",
    "conj_sym": "conjugate_symmetry",
    "clip_eigs": "clip_eigenvalues",
    "pool": "pool",
    "mode": "pool",
    "bn_momentum": "norm_momentum",
}


def arguments(fixture: Fixture) -> dict[str, Any]:
    """The published arguments, which these fixtures write down under ``ours``."""
    given = {**fixture.data.get("ours", {}).get("kwargs", {}), **fixture.kwargs}
    given.pop("see", None)
    return given


def classifier(fixture: Fixture, *, retrieval: bool = False) -> dict[str, Any]:
    """`BatchClassificationModel`: log probabilities, with lengths where they are given."""
    given = arguments(fixture)
    lengths = given.pop("lengths", None)
    options = translate(given, _NAMES, ignored=("training", "padded"))
    options["pool"] = {"pool": "mean"}.get(options.get("pool", "pool"), options.get("pool"))
    model = S5Classifier(S5Config(**options, retrieval=retrieval)).eval()
    fixture.check_parameters(model)
    load_published(model, fixture.state_dict(), constants=[name for name, *_ in fixture.data["constants"]])
    (x, *rest) = fixture.inputs()
    if lengths is None and rest:
        lengths = rest[0].tolist()
    with torch.no_grad():
        logits = model(x, lengths=None if lengths is None else torch.tensor(lengths))
    return {"log_probs": logits.log_softmax(-1), "logits": logits}


def retrieval(fixture: Fixture) -> dict[str, Any]:
    """`RetrievalModel`: the same with pairs."""
    return classifier(fixture, retrieval=True)


def as_rows(real: Tensor, imag: Tensor) -> Tensor:
    """Complex from two parts."""
    return torch.complex(real.contiguous(), imag.contiguous())


def scan(fixture: Fixture) -> dict[str, Any]:
    """`apply_ssm` after either discretisation, in one direction and both."""
    x, a, b, B_parts, C_parts, s = fixture.inputs()
    Lambda = torch.complex(-a.abs() - 0.1, 3 * b)
    step = torch.exp(s - 3)
    B, C = as_rows(*B_parts.unbind(-1)), as_rows(*C_parts.unbind(-1))
    states = len(Lambda)
    outputs: dict[str, Any] = {}
    for method in ("zoh", "bilinear"):
        decay, B_bar = discretize_diagonal(Lambda[:, None], B, step[:, None], method)
        decay = decay[:, 0]
        driven = (x.to(B_bar.dtype) @ B_bar.T)[None]
        forward = ops.linear_scan(decay, driven)
        backward = ops.linear_scan(decay, driven, reverse=True)
        if not (isinstance(forward, Tensor) and isinstance(backward, Tensor)):
            raise ParityError("linear_scan returned no tensor")
        one = (forward[0] @ C[:, :states].T).real
        both = (torch.cat([forward[0], backward[0]], dim=-1) @ C.T).real
        outputs |= {
            f"y_{method}_conj1": 2 * one,
            f"y_{method}_conj0": one,
            f"y_{method}_bidirectional": 2 * both,
            f"LambdaB_{method}": torch.cat([decay.real[None], decay.imag[None], B_bar.real.T, B_bar.imag.T]),
        }
    return outputs


ADAPTERS = {
    "s5.seq_model.BatchClassificationModel": classifier,
    "s5.seq_model.RetrievalModel": retrieval,
    "s5.ssm.apply_ssm, discretize_zoh, discretize_bilinear": scan,
}
