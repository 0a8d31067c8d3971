"""Published settings of the Long Range Arena, one table for each publication: data, no code.

Sources: for S4 and S4D github.com/state-spaces/s4 at e757cef, configs/experiment/lra/s4-TASK.yaml and
configs/model/layer/s4.yaml; for S5 github.com/lindermanlab/S5 at 3c18fdb, bin/run_experiments/run_lra_TASK.sh; for long
convolutions github.com/HazyResearch/safari at 02220c6, configs/experiment/lra/long-conv-lra-TASK.yaml. What the models' own
fields are, the named models say (``s4_lra_listops``, …); all anneal by a cosine to zero and shorten no gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a model is trained on one task.

    Fields:
        model: its name.
        fields: of its config, beyond those of the named model.
        settings: of the training.
    """

    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def _settings(
    batch_size: int,
    steps: int,
    warmup: int,
    learning_rate: float,
    weight_decay: float,
    learning_rates: tuple[str, ...],
    accumulate: int = 1,
) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "steps": steps,
        "warmup": warmup,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "learning_rates": learning_rates,
        "accumulate": accumulate,
    }


_STATE = ("A_real=0.001", "A_imag=0.001", "kernel.B=0.001")
_STEP = ("inverse_dt=0.001",)  # where the published files do not say `dt: null`
_LOW_RANK = (".P=0.001",)
#: Batch, steps, warm-up, learning rate, weight decay, rates of their own.
_S4 = {
    "listops": (32, 120_000, 12_000, 0.01, 0.05, _STATE),
    "text": (16, 50_000, 5_000, 0.01, 0.05, _STATE),
    "retrieval": (64, 50_000, 5_000, 0.01, 0.05, _STATE),
    "image": (50, 180_000, 18_000, 0.01, 0.05, _STATE + _STEP),
    "pathfinder": (64, 500_000, 50_000, 0.004, 0.05, _STATE + _STEP),
    "pathx": (16, 500_000, 50_000, 0.001, 0.05, _STATE + _STEP),
}
_SOFTPLUS = {"dt_transform": "softplus"}


def _s5(
    batch: int, epochs: int, examples: int, rate: float, factor: float, decay: float, slow: str, warm: int = 1
) -> Any:
    """Epochs as steps; `slow` are the parameters that have the lower rate, the others have it times the factor."""
    steps = examples // batch
    return batch, epochs * steps, warm * steps, rate * factor, decay, tuple(f"{part}={rate:g}" for part in slow.split())


_S5 = {
    # Batch, epochs, sequences, rate of the system's parameters, factor of all others, decay, the system's parameters.
    "listops": _s5(50, 40, 96_000, 0.001, 3, 0.04, "Lambda_ log_step"),
    "text": _s5(50, 35, 25_000, 0.001, 4, 0.07, "Lambda_ mixer.B", warm=0),
    "retrieval": _s5(32, 20, 147_086, 0.001, 2, 0.05, "Lambda_ mixer.B"),
    "image": _s5(50, 250, 45_000, 0.001, 4.5, 0.07, "Lambda_ log_step"),
    "pathfinder": _s5(64, 200, 160_000, 0.0009, 5, 0.03, "Lambda_ log_step mixer.B"),
    "pathx": _s5(32, 75, 160_000, 0.0006, 3, 0.06, "Lambda_ log_step mixer.B"),
}
_LONG = {
    "listops": (50, 80_000, 10_000, 0.01, 0.05, ("kernel.taps=0.0005",)),
    "text": (16, 50_000, 5_000, 0.01, 0.05, ("kernel.taps=0.001",)),
    "retrieval": (32, 50_000, 2_500, 0.01, 0.05, ("kernel.taps=0.0001",), 2),
    "image": (50, 200_000, 1_000, 0.01, 0.05, ("kernel.taps=0.001",)),
    "pathfinder": (64, 500_000, 2_500, 0.004, 0.03, ("kernel.taps=0.001",)),
    "pathx": (16, 500_000, 10_000, 0.0005, 0.05, ("kernel.taps=0.0005",)),
}


def _all(family: str, rows: dict[str, Any], **fields: Any) -> dict[str, Recipe]:
    return {task: Recipe(f"{family}_lra_{task}", fields, _settings(*row)) for task, row in rows.items()}


_S4_DENSE = {task: (*row[:5], row[5] + _LOW_RANK) for task, row in _S4.items()}
#: By name of the recipe, then of the task.
RECIPES: dict[str, dict[str, Recipe]] = {
    "s4": _all("s4", _S4_DENSE, **_SOFTPLUS),
    "s4_fout": _all("s4", _S4_DENSE, initialisation="fout", **_SOFTPLUS),
    "s4d": _all("s4d", _S4, **_SOFTPLUS),
    "s4d_inv": _all("s4d", _S4, initialisation="diag-inv", **_SOFTPLUS),
    "s4d_lin": _all("s4d", _S4, initialisation="diag-lin", **_SOFTPLUS),
    "s5": _all("s5", _S5),
    "long_conv": _all("long_conv", _LONG),
}
#: Models by a short name, each with the recipe it has unless another is asked for; a recipe belongs to one of them.
SHORT = ("s4", "s4d", "s5", "long_conv")


def family_of(recipe: str) -> str:
    """Which short name a recipe belongs to."""
    return next(iter(RECIPES[recipe].values())).model.partition("_lra_")[0]
