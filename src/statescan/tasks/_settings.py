"""What every kind of training can be told, and models built from it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from statescan.layers import check_mixer
from statescan.models import create_model, model_info


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run that do not depend on what is learnt."""

    #: Folder of the run: model, checkpoints, metrics and picture.
    out: Path = Path("runs/latest")
    #: Name of a model (`statescan models` lists all).
    model: str = "mamba_tiny"
    #: Another sequence mixer in every block (mamba, mamba2, s4, s4d, s5, …), at the model's width and depth.
    mixer: str | None = None
    #: Fields of the model's config to change, for instance: --set dim=128 depth=4
    set: tuple[str, ...] = ()
    #: Optimiser steps.
    steps: int = 1000
    #: Sequences of a batch, on each device.
    batch_size: int = 16
    #: Batches whose gradients make one step.
    accumulate: int = 1
    #: Highest learning rate.
    learning_rate: float = 2e-3
    #: Other highest learning rates, of parameters whose names hold a part: --learning-rates A_real=0.001 inverse_dt=0.001
    learning_rates: tuple[str, ...] = ()
    #: Learning rate at the end, as a fraction of the highest.
    final_learning_rate: float = 0.1
    #: Steps of linear warm-up; a cosine follows.
    warmup: int = 100
    #: Weight decay of matrices; rates of decay, step sizes, norms and biases have none.
    weight_decay: float = 0.1
    #: AdamW's decay rates of the running mean and of the mean square.
    betas: tuple[float, float] = (0.9, 0.95)
    #: Largest norm of the gradient; longer ones are shortened to it.
    gradient_clip: float = 1.0
    #: float32, or bfloat16 where it is safe with weights kept in float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    #: Recompute each block in the backward pass: less memory, more time.
    gradient_checkpointing: bool = False
    #: Compile the model with torch.compile.
    compile: bool = False
    #: Seed of weights, order of the data and everything else.
    seed: int = 0
    #: Steps between lines of metrics.
    log_every: int = 10
    #: Steps between validations; None: a tenth of all steps.
    validate_every: int | None = None
    #: Steps between checkpoints; None: a tenth of all steps.
    checkpoint_every: int | None = None
    #: Continue the run in the out folder, if there is one.
    resume: bool = False
    #: Replace the run in the out folder.
    overwrite: bool = False
    #: Kind of device: auto, cpu, cuda, mps.
    accelerator: str = "auto"
    #: Devices (processes) on each machine.
    devices: int = 1
    #: Machines.
    nodes: int = 1
    #: One process, or many: copies of the model (ddp), shards of it (fsdp), or parts of every sequence (sequence).
    strategy: Literal["auto", "ddp", "fsdp", "sequence"] = "auto"
    #: Show a progress bar, if the error output is a terminal.
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        for name in ("steps", "batch_size", "accumulate", "log_every", "devices", "nodes"):
            _positive(name, getattr(self, name))
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, max(1, self.steps // 10))
            _positive(name, getattr(self, name))
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "final_learning_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.strategy == "sequence" and self.compile:
            raise ValueError("compile: not with strategy='sequence', whose messages torch.compile does not follow")
        overrides(self.set)
        rates_of(self.learning_rates)
        if self.mixer is not None:
            check_mixer(self.mixer, {})

    @property
    def world_size(self) -> int:
        """Processes over all machines."""
        return self.devices * self.nodes

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data."""
        plain = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


#: Settings that a resumed run may change: they alter neither weights nor metrics.
FREE = frozenset(
    {
        "out",
        "resume",
        "overwrite",
        "progress",
        "minutes",
        "checkpoint_every",
        "accelerator",
        "devices",
        "nodes",
        "strategy",
        "workers",
    }
)


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Config fields written ``name=value``, a dot going into a nested config: ``attention.heads=4``.

    A value is read as Python writes it (``8``, ``0.5``, ``True``, ``(1, 3)``, ``None``), or else is a string.
    """
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise ValueError(f"set: expected name=value, got {pair!r}")
        *outer, last = name.split(".")
        place = fields
        for part in outer:
            place = place.setdefault(part, {})
        try:
            place[last] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            place[last] = text
    return fields


def rates_of(pairs: Sequence[str]) -> dict[str, float]:
    """Learning rates written ``part=rate``.

    Raises:
        ValueError: for anything else, or a rate that is not positive.
    """
    rates = {}
    for pair in pairs:
        part, _, text = pair.partition("=")
        try:
            rates[part] = float(text)
        except ValueError:
            rates[part] = 0.0
        if not (part and rates[part] > 0):
            raise ValueError(f"learning_rates: expected part=rate with a positive rate, got {pair!r}")
    return rates


def demand(settings: TrainingSettings, field: str, kind: str, instead: str) -> None:
    """Raise unless the named model's config has the field that makes it of this kind.

    Raises:
        ValueError: for a model of another kind; `instead` names one to begin with. Also for a name that is not known.
    """
    if not hasattr(model_info(settings.model).config, field):
        raise ValueError(f"model: {settings.model!r} is no {kind}; try --model {instead}, `statescan models` lists all")


def build(settings: TrainingSettings, name: str | None = None, /, **defaults: Any) -> Any:
    """The model with fresh weights, which depend on the seed alone; `set` goes before `defaults`.

    Arguments:
        settings: of the run.
        name: of the model; None: as in the settings.
        defaults: fields of its config.

    Raises:
        ValueError: for a name, a field or a mixer that does not exist, or a model whose mixer cannot be exchanged.
    """
    import torch

    name = name or settings.model
    torch.manual_seed(settings.seed)
    fields = defaults | overrides(settings.set)
    if settings.mixer is None:
        return create_model(name, **fields)
    config = model_info(name).config
    if hasattr(config, "mixer"):
        return create_model(name, **(fields | {"mixer": settings.mixer, "options": fields.get("options", {})}))
    if hasattr(config, "classes"):
        kept = {name: getattr(config, name) for name in ("dim", "depth", "norm", "prenorm", "dropout")}
        return create_model("classifier_tiny", **(kept | {"mixer": settings.mixer} | fields))
    if not hasattr(config, "padded_vocab_size"):
        raise ValueError(f"mixer: {name!r} has parts of its own in place of one; leave --mixer out")
    kept = {name: getattr(config, name) for name in ("dim", "depth", "vocab_size")}
    dim = fields.get("dim", kept["dim"])
    heads = max(1, dim // 64)
    attention = {"heads": heads, "rotary_dim": dim // heads // 2 * 2}
    kept |= {"layout": (settings.mixer,), "mixers": {}, "attention": attention}
    return create_model("hybrid_tiny", **(kept | fields))


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
