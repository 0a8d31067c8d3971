"""How fast a model runs on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from statescan import models
from statescan.inspect._sizes import refuse_other_models


@dataclass(frozen=True)
class ModelSpeed:
    """Medians over repeats.

    Arguments:
        length, batch: what was run.
        prefill_tokens_per_second: forward passes that give the last position's logits.
        training_tokens_per_second: forward and backward passes of the next-token loss.
        generation_tokens_per_second: steps after `length` tokens, all sequences counted.
        state_bytes: of the state then.
    """

    length: int
    batch: int
    prefill_tokens_per_second: float
    training_tokens_per_second: float
    generation_tokens_per_second: float
    state_bytes: int


def measure_speed(name: str, *, length: int = 1024, batch: int = 1, repeats: int = 3, **overrides: Any) -> ModelSpeed:
    """Time a named language model with random weights.

    Arguments:
        name: one of `models.list_models()`.
        length: tokens a sequence.
        batch: sequences.
        repeats: how often each is run; medians are given.
        overrides: fields of the model's config.
    """
    if length < 2 or batch < 1 or repeats < 1:
        raise ValueError(f"length, batch, repeats: at least 2, 1 and 1, got {length}, {batch} and {repeats}")
    model = models.create_model(name, **overrides)
    refuse_other_models(name, model)
    tokens = torch.randint(0, model.config.vocab_size, (batch, length))

    def train() -> None:
        logits, _ = model(tokens)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        model.zero_grad(set_to_none=True)

    training = _median(train, repeats)
    with torch.inference_mode():
        prefill = _median(lambda: model(tokens, last=1), repeats)
        _, state = model(tokens, last=1)
        step = _median(lambda: model.step(tokens[:, 0], state), 8 * repeats)
    return ModelSpeed(
        length=length,
        batch=batch,
        prefill_tokens_per_second=batch * length / prefill,
        training_tokens_per_second=batch * length / training,
        generation_tokens_per_second=batch / step,
        state_bytes=state.nbytes,
    )


def _median(function: Callable[[], Any], repeats: int) -> float:
    function()  # first times load libraries and fill caches
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
