"""Sizes of a model, found on torch's meta device: shapes only, no memory, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from statescan import models
from statescan.inspect._flops import counter
from statescan.layers._recompute import observed


@dataclass(frozen=True)
class ModelCost:
    """What a model costs for a batch of sequences of one length.

    Arguments:
        parameters: trainable numbers; a tied tensor counts once.
        length, batch: what it was measured for.
        flops_forward: floating-point operations of a forward pass, a multiplication and an addition counting as two.
        flops_per_token: of that, for one token.
        state_bytes: of the state after `length` tokens, for the whole batch.
        state_bytes_start: of the state before the first token; equal for models whose state does not grow.
        activation_bytes: what a forward pass keeps for the backward pass, weights not counted.
        parameter_bytes: of the weights in float32.
    """

    parameters: int
    length: int
    batch: int
    flops_forward: int
    flops_per_token: int
    state_bytes: int
    state_bytes_start: int
    activation_bytes: int
    parameter_bytes: int


def build_without_memory(name: str, **overrides: Any) -> Any:
    """A named model on the meta device: its shapes without its weights."""
    with torch.device("meta"):
        return models.create_model(name, **overrides)


def reads_tokens(model: Any) -> bool:
    """Whether a model reads tokens and steps, as language models do."""
    return getattr(model.config, "vocab_size", None) is not None and hasattr(model, "step")


def refuse_other_models(name: str, model: Any) -> None:
    """Raise unless a model reads tokens and steps."""
    if not reads_tokens(model):
        raise ValueError(
            f"{name!r} is no language model: costs are measured of those alone; "
            f"it has {count_parameters(model):,} parameters"
        )


def width_and_depth(config: Any) -> tuple[Any, Any]:
    """A config's channels and blocks: a number each, or a list with one a stage."""

    def first(*names: str) -> Any:
        values = (getattr(config, name, None) for name in names)
        found = next((value for value in values if value is not None), None)
        return list(found) if isinstance(found, tuple) else found

    return first("dim", "dims", "widths", "channels"), first("depth", "depths")


def count_parameters(model: Any) -> int:
    """Trainable numbers of a model, or of a named one; a tied tensor counts once."""
    if isinstance(model, str):
        model = build_without_memory(model)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def measure_cost(name: str, *, length: int = 2048, batch: int = 1, **overrides: Any) -> ModelCost:
    """Costs of a named language model for `batch` sequences of `length` tokens.

    Arguments:
        name: one of `models.list_models()`.
        length: tokens a sequence.
        batch: sequences.
        overrides: fields of the model's config.
    """
    if length < 1 or batch < 1:
        raise ValueError(f"length, batch: at least 1, got {length} and {batch}")
    model = build_without_memory(name, **overrides)
    refuse_other_models(name, model)
    tokens = torch.zeros(batch, length, dtype=torch.int64, device="meta")
    weights = {id(p) for p in model.parameters()} | {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # a storage's address is its own only while it lives

    alive: list[Tensor] = []
    with counter() as count, observed(keep):
        _, state = model(tokens)
    flops = count.get_total_flops()
    return ModelCost(
        parameters=count_parameters(model),
        length=length,
        batch=batch,
        flops_forward=flops,
        flops_per_token=flops // (batch * length),
        state_bytes=state.nbytes,
        state_bytes_start=model.initial_state(batch).nbytes,
        activation_bytes=sum(kept.values()),
        parameter_bytes=4 * count_parameters(model),
    )
