"""samblouir/birdie: the gated SSM, and the arithmetic of the controller of objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan.layers import GatedSSMBlock
from statescan.tasks import ExplorationSchedule, normalise_actions, objective_reward
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture

BLOCK_NAMES = {
    "norm.scale": "norm.scale",
    "norm.norm.scale": "norm.inner_scale",
    "K_proj.weight": "mixer.decay_projection.weight",
    "ugg_proj.weight": "mixer.input_projection.weight",
    "out_proj.weight": "mixer.output_projection.weight",
}


def gated_ssm(fixture: Fixture) -> dict[str, Tensor]:
    """`GatedSSM`; it has a dropout and never calls it."""
    given = translate(fixture.kwargs, {"dims": "dim", "state_size_mult": "multiple"}, ignored=("dropout_rate",))
    block = GatedSSMBlock(given["dim"], state_dim=given["dim"] * given.get("multiple", 2))
    fixture.check_parameters(block)
    block.load_state_dict({BLOCK_NAMES[name]: tensor for name, tensor in fixture.state_dict().items()})
    with torch.no_grad():
        return {"y": block.eval()(fixture.inputs()[0])[0]}


def reward(fixture: Fixture) -> dict[str, Any]:
    """`calculate_reward`, `make_cosine_decay_schedule` and `scale_actions_batch`; arguments stand under "ours"."""
    names = {
        "decay_steps": "decay_steps",
        "total_steps": "decay_steps",
        "warmup_steps": "warmup_steps",
        "cook_steps": "forced_steps",
        "rate_min": "lowest",
        "min_val": "lowest",
        "rate_max": "highest",
        "max_val": "highest",
        "cook_val": "forced_rate",
    }
    given = translate(fixture.data["ours"]["kwargs"] | fixture.kwargs, names, only={"decay_factor": (1, 1.0)})
    schedule = ExplorationSchedule(**given)
    first, second, actions = fixture.inputs()
    old = 6 * first + 0.05
    new = old * (1 + 0.3 * second)
    return {
        "old_loss": old,
        "new_loss": new,
        "reward": objective_reward(old, new),
        "exploration_rate": np.array([schedule(step) for step in range(fixture.outputs["exploration_rate"][0])]),
        "normalised_actions": normalise_actions(actions),
    }


ADAPTERS: dict[str, Callable[[Fixture], dict[str, Any]]] = {
    "gated_ssm_agent.GatedSSM": gated_ssm,
    "agent_bird.AgentBird.calculate_reward, make_cosine_decay_schedule": reward,
}
