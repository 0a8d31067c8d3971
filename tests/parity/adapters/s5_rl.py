"""luchris429/popjaxrl: the scan with resets and the actor-critic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from statescan import ops
from statescan.models import load_published
from statescan.models.s5_rl import S5ActorCritic, S5ActorCriticConfig
from statescan.ssm import discretize_diagonal
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.s5 import arguments

_NAMES = {
    "obs_dim": "observation_dim",
    "gtrxl_norm": "inner_norm",
    "do_norm": "norm",
    "do_gtrxl_norm": "inner_norm",
    "conj_sym": "conjugate_symmetry",
    "clip_eigs": "clip_eigenvalues",
    "C_init": "output_init",
    "no_reset": "ignore_resets",
} | {
    name: name
    for name in ("action_dim", "dim", "state_dim", "depth", "activation", "norm", "prenorm", "continuous")
    + ("discretization", "dt_min", "dt_max", "blocks")
}


def reset_scan(fixture: Fixture) -> dict[str, Any]:
    """`apply_ssm` with a carried state and done flags, after either discretisation."""
    options = arguments(fixture)
    scale = 2.0 if options.pop("conj_sym", True) else 1.0
    translate(options, {})
    re, im, B_re, B_im, C_re, C_im, h_re, h_im, u, done = fixture.inputs()
    Lambda = torch.complex(-re.abs() * 0.5 - 0.05, 2 * im)
    states = len(Lambda)
    step = torch.exp(torch.linspace(math.log(0.05), math.log(0.5), states, dtype=torch.float64)).float()
    B, C = torch.complex(B_re, B_im), torch.complex(C_re, C_im)
    incoming = torch.complex(h_re, h_im)[None]
    outputs: dict[str, Any] = {}
    for method in ("zoh", "bilinear"):
        decay, B_bar = discretize_diagonal(Lambda[:, None], B, step[:, None], method)
        decay = decay[:, 0]
        outputs[f"{method}_lambda_bar"] = torch.stack([decay.real, decay.imag])
        outputs[f"{method}_b_bar"] = torch.stack([B_bar.real, B_bar.imag])
        driven = (u.to(B_bar.dtype) @ B_bar.T)[None]
        for label, resets in (("reset", done.bool()[None]), ("no_reset", None)):
            x, last = ops.linear_scan(decay, driven, initial_state=incoming, resets=resets, return_last_state=True)
            outputs[f"{method}_y_{label}"] = scale * (x[0] @ C.T).real
            outputs[f"{method}_last_{label}"] = torch.stack([last.real, last.imag])
    return outputs


def constants(fixture: Fixture, options: dict[str, Any]) -> dict[str, Tensor]:
    """State matrices and step sizes that the fixture kept from their formulas."""
    found: dict[str, Tensor] = {}
    for name, shape, _ in fixture.data["constants"]:
        if name.endswith(".log_step"):
            low, high = math.log(options.get("dt_min", 1e-3)), math.log(options.get("dt_max", 0.1))
            found[name] = torch.linspace(low, high, shape[0], dtype=torch.float64).float().view(shape)
        elif not name.endswith((".Lambda_re", ".Lambda_im")):
            raise ParityError(f"no formula for the constant {name}")
    return found


def actor_critic(fixture: Fixture) -> dict[str, Any]:
    """`ActorCriticS5`, time first outside."""
    options = translate(arguments(fixture), _NAMES)
    model = S5ActorCritic(S5ActorCriticConfig(**options)).eval()
    fixture.check_parameters(model)
    weights = fixture.state_dict() | constants(fixture, options)
    for name, *_ in fixture.data["constants"]:
        if name not in weights:
            # The eigenvalues are those that every fresh layer has.
            own = name.replace("s5.layers_", "layers.").replace(".seq.", ".mixer.")
            weights[name] = model.get_parameter(own).detach().clone()
    load_published(model, weights)
    observations, done = fixture.inputs()
    length, batch = observations.shape[:2]
    resets = done.reshape(length, batch).T.bool()
    with torch.no_grad():
        policy, value, state = model(observations.transpose(0, 1), resets=resets)
    hidden = torch.stack([layer["ssm"].permute(2, 0, 1)[:, None] for layer in state.values()])
    return {"logits": policy.transpose(0, 1), "mean": policy.transpose(0, 1), "value": value.T, "hidden": hidden}


ADAPTERS = {
    "ppo_s5.ActorCriticS5": actor_critic,
    "s5.apply_ssm, binary_operator_reset, discretize_zoh, discretize_bilinear": reset_scan,
}
