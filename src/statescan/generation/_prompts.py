"""What a user may hand over as prompts and stops, checked and turned into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from statescan.generation._text import Tokenizer

#: Text, tokens, or several of either.
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor | Sequence[Tensor]
Stop = str | int | Sequence[str | int] | None


def encode_prompts(prompts: Any, tokenizer: Tokenizer | None, vocabulary: int) -> list[list[int]]:
    """One list of tokens a prompt; a single text or a single sequence of tokens counts as one prompt."""
    if isinstance(prompts, Tensor):
        if prompts.dim() not in (1, 2) or prompts.is_floating_point():
            raise ValueError(
                "prompts: expected integer tokens of shape (length,) or (batch, length), "
                f"got {prompts.dtype} of shape {tuple(prompts.shape)}"
            )
        prompts = prompts.tolist()
    if isinstance(prompts, str) or (isinstance(prompts, Sequence) and prompts and _is_token(prompts[0])):
        prompts = [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts: expected text, tokens or a list of either, got {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts: the list is empty; expected at least one prompt")
    return [_encode(prompt, index, tokenizer, vocabulary) for index, prompt in enumerate(prompts)]


def split_stops(stop: Any, tokenizer: Tokenizer | None, vocabulary: int) -> tuple[tuple[str, ...], frozenset[int]]:
    """Stop strings and stop tokens."""
    items = [] if stop is None else [stop] if isinstance(stop, str) or _is_token(stop) else stop
    if not isinstance(items, Sequence | set | frozenset):
        raise TypeError(f"stop: expected strings or token ids, got {stop!r} ({type(stop).__name__})")
    strings, tokens = [], []
    for item in items:
        if isinstance(item, str):
            if not item:
                raise ValueError("stop: an empty string would stop before the first character")
            if tokenizer is None:
                raise ValueError(f"stop: the string {item!r} needs a tokenizer; pass tokenizer=, or stop by token ids")
            strings.append(item)
        elif _is_token(item):
            if not 0 <= item < vocabulary:
                raise ValueError(f"stop: token {item} is outside the model's vocabulary of {vocabulary}")
            tokens.append(int(item))
        else:
            raise TypeError(f"stop: expected strings or token ids, got {item!r} ({type(item).__name__})")
    return tuple(strings), frozenset(tokens)


def spread_seeds(seed: int | Sequence[int] | None, sequences: int) -> list[int]:
    """A seed a sequence: sequence i of an int seed has seed + i; None draws from torch's global generator."""
    if seed is None:
        import torch

        seed = int(torch.randint(2**62, ()))
    if isinstance(seed, Sequence):
        if len(seed) != sequences:
            raise ValueError(f"seed: expected an int or one for each of {sequences} prompts, got {len(seed)}")
        seeds = list(seed)
    else:
        seeds = [seed + index for index in range(sequences)] if _is_token(seed) else [seed]
    for value in seeds:
        if not _is_token(value) or not 0 <= value < 2**63:
            raise ValueError(f"seed: expected an int in [0, 2**63), got {value!r}")
    return seeds


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encode(prompt: Any, index: int, tokenizer: Tokenizer | None, vocabulary: int) -> list[int]:
    name = f"prompts[{index}]"
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(f"{name}: a text prompt needs a tokenizer; pass tokenizer=, or tokens")
        tokens = tokenizer.encode(prompt)
    else:
        tokens = prompt.tolist() if isinstance(prompt, Tensor) else prompt
    if not isinstance(tokens, Sequence) or not all(_is_token(token) for token in tokens):
        raise TypeError(f"{name}: expected text or a sequence of integer tokens, got {prompt!r:.80}")
    if not tokens:
        raise ValueError(f"{name}: empty prompt; a continuation starts from at least one token")
    for position, token in enumerate(tokens):
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"{name}: token {token} at position {position} is outside the model's vocabulary of {vocabulary}"
            )
    return list(tokens)
