"""What every model of the library is: a module with a config, that saves itself and says what decays."""

from __future__ import annotations

import dataclasses
import importlib
import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from statescan._names import nearest


class Model(nn.Module):
    """Base of all models.

    Arguments:
        config: a frozen dataclass that alone determines the architecture; kept as `config`.
    """

    #: The family's name in the registry.
    family: ClassVar[str]
    #: Substrings of names of parameters that weight decay would harm: rates of decay, step sizes, direct weights.
    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "delta_bias", ".D", "learned_state")

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder with ``config.json`` and ``model.safetensors``, atomically."""
        # The room of file formats stands above this one and is reached by name.
        importlib.import_module("statescan.checkpoints").save(self, path)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: matrices decay; vectors (norms, biases), A_log, D and step sizes do not."""
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            harmed = any(part in f".{name}" for part in self.undecayed)
            (others if parameter.ndim < 2 or harmed else decayed).append(parameter)
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


def build_config(kind: type, values: dict[str, Any], *, name: str) -> Any:
    """A config from keywords; unknown ones are named with the nearest field.

    Nested configs may be given as dictionaries, tuples as lists, as files have them.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            hint = nearest(key, fields)
            raise ValueError(f"{name}: unknown option {key!r}{hint}; known: {', '.join(fields)}")
    ready = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**ready)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
