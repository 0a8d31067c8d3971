"""Reading prompts of unequal lengths into a state, in chunks, so that memory does not grow with the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from statescan.layers import State

Batching = Literal["packed", "left"]
BATCHINGS: tuple[Batching, ...] = ("packed", "left")


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    state: State | None = None,
    *,
    chunk: int = 2048,
    batching: Batching = "packed",
) -> tuple[Tensor, State]:
    """Logits after the last token of each prompt, and the state there.

    Each prompt gives what it gives alone. In chunks of columns the prompts end together: a shorter one joins later,
    by ``"packed"`` (its tokens alone are computed; `offsets`) or ``"left"`` (padding runs before it, and a reset at its
    first token drops what the padding did). Prompts of equal length need neither.

    Arguments:
        prompts: non-empty sequences of tokens.
        state: where the prompts go on from, its first axis one entry a prompt; None is the beginning.
        chunk: tokens a forward call, over all prompts.
        batching: for prompts of unequal lengths.

    A model that reads prompts in both directions (`LanguageModel.reads_prompts_as_prefix`) reads each whole, in one call,
    whatever `chunk` is. What goes on from a state is read forwards.

    Returns logits (prompts, vocabulary) and the state.
    """
    if chunk < 1:
        raise ValueError(f"prefill_chunk: expected at least 1 token, got {chunk}")
    if batching not in BATCHINGS:
        raise ValueError(f"batching: expected one of {', '.join(BATCHINGS)}, got {batching!r}")
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    marked = state is None and getattr(model, "reads_prompts_as_prefix", False)
    columns = width if marked else max(1, chunk // len(prompts))
    ragged = min(lengths) < width
    if ragged and batching == "left" and state is not None:
        raise ValueError("batching: left padding would run through the states given; use batching='packed'")
    device = next(model.parameters()).device
    rows = torch.empty(0)
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        last = 1 if stop == width else 0
        if ragged and batching == "packed":
            rows, state = _forward_packed(model, prompts, state, width, start, stop, last, device, marked)
        else:
            rows, state = _forward_padded(model, prompts, state, width, start, stop, last, device, marked)
    assert state is not None
    return rows.reshape(len(prompts), -1), state


def _forward_padded(
    model: Any,
    prompts: Sequence[Sequence[int]],
    state: State | None,
    width: int,
    start: int,
    stop: int,
    last: int,
    device: torch.device,
    marked: bool,
) -> tuple[Tensor, State]:
    """Columns start to stop of the left-padded prompts."""
    tokens = torch.zeros(len(prompts), stop - start, dtype=torch.int64)
    resets = torch.zeros(len(prompts), stop - start, dtype=torch.bool)
    prefix = torch.zeros(len(prompts), stop - start, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        padding = width - len(prompt)
        part = prompt[max(start - padding, 0) : max(stop - padding, 0)]
        if part:
            tokens[row, -len(part) :] = torch.tensor(part)
            prefix[row, -len(part) :] = True
        if padding and start <= padding < stop:
            resets[row, padding - start] = True
    options = {"prefix": prefix.to(device)} if marked else {}
    begins = resets.to(device) if bool(resets.any()) else None
    return model(tokens.to(device), state, resets=begins, last=last, **options)


def _forward_packed(
    model: Any,
    prompts: Sequence[Sequence[int]],
    state: State | None,
    width: int,
    start: int,
    stop: int,
    last: int,
    device: torch.device,
    marked: bool,
) -> tuple[Tensor, State]:
    """The same columns one after the other, without the padding; a prompt that has not begun has length 0."""
    parts = []
    for prompt in prompts:
        padding = width - len(prompt)
        parts.append(prompt[max(start - padding, 0) : max(stop - padding, 0)])
    offsets = torch.tensor([0] + [len(part) for part in parts]).cumsum(0)
    tokens = torch.tensor([token for part in parts for token in part]).unsqueeze(0)
    options = {"prefix": torch.ones_like(tokens, dtype=torch.bool, device=device)} if marked else {}
    return model(tokens.to(device), state, offsets=offsets.to(device), last=last, **options)
