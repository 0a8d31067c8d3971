"""How well a language model predicts a text: bits per byte and perplexity.

`evaluate_language` reads a text in one pass with the state carried on (``"stateful"``, constant memory for a
state-space model), or in overlapping windows (``"strided"``), for models that lose their way beyond the length they
were trained on.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from statescan.checkpoints import check_tokenizer
from statescan.generation import LongContext, Tokenizer, progress_bar
from statescan.tasks._likelihood import likelihoods, token_log_probabilities

Mode = Literal["stateful", "strided"]
MODES: tuple[Mode, ...] = ("stateful", "strided")


@dataclass(frozen=True)
class LanguageScore:
    """What `evaluate_language` measures.

    Fields:
        bits_per_byte: bits needed for a byte of the text; comparable between tokenizers, and with compressors.
        perplexity: exponential of the mean negative log-likelihood of a token; comparable for one tokenizer only.
        log_likelihood: natural logarithm of the probability of all scored tokens.
        tokens: tokens scored.
        bytes: bytes of the scored part of the text (UTF-8).
        seconds: duration.
    """

    bits_per_byte: float
    perplexity: float
    log_likelihood: float
    tokens: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, float | int]:
        """The fields by name."""
        return asdict(self)


def evaluate_language(
    model: Any,
    text: str,
    *,
    tokenizer: Tokenizer,
    mode: Mode = "stateful",
    window: int = 1024,
    stride: int | None = None,
    chunk: int = 2048,
    batch_size: int = 8,
    begin_token: int | None = None,
    long_context: LongContext | None = None,
    progress: bool = False,
) -> LanguageScore:
    """Bits per byte and perplexity of a text under a language model.

    The first token is not scored, having nothing before it, unless `begin_token` is put there.

    Arguments:
        model: a language model, with or without attention.
        text: at least two tokens of it.
        tokenizer: has ``encode(text)``, ``decode(tokens)`` and ``vocab_size``.
        mode: ``"stateful"``: one pass, each token predicted from all before it; the memory of attention layers grows.
            ``"strided"``: windows of `window` tokens, each token predicted from at least ``window - stride`` tokens
            before it (as many as there are at the beginning).
        window, stride: of the strided mode, in tokens; stride None is half the window.
        chunk: tokens read at a time in the stateful mode; changes memory, not the result.
        batch_size: windows read at a time in the strided mode.
        begin_token: a token put before the text, so that its first token is scored too.
        long_context: have channels of long memory pass unimportant tokens by, as for a prompt of the length of the text,
            or of a window.
        progress: show a progress bar, if the error output is a terminal.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if not text:
        raise ValueError("text: it is empty; there is nothing to evaluate")
    check_tokenizer(tokenizer, model)
    tokens = tokenizer.encode(text)
    spelled = len(text.encode())
    if begin_token is None:
        spelled -= len(tokenizer.decode(tokens[:1]).encode()) if len(tokens) > 1 else 0
    else:
        tokens = [begin_token, *tokens]
    if len(tokens) < 2:
        raise ValueError(
            f"text: {text!r:.40} is a single token, and a first token is not scored; give more text or a begin_token"
        )
    began = time.perf_counter()
    filtered: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if long_context is not None:
        filtered = long_context.applied(model, [len(tokens) if mode == "stateful" else min(window, len(tokens))])
    with progress_bar("evaluating", len(tokens) - 1, shown=progress) as advance, filtered:
        if mode == "stateful":
            (result,) = likelihoods(model, [tokens], chunk=chunk, advance=advance)
            total = result.log_likelihood
        else:
            total = _strided(model, tokens, window, stride, batch_size, advance)
    scored = len(tokens) - 1
    return LanguageScore(
        bits_per_byte=-total / math.log(2) / spelled,
        perplexity=math.exp(min(-total / scored, 700.0)),
        log_likelihood=total,
        tokens=scored,
        bytes=spelled,
        seconds=time.perf_counter() - began,
    )


def _strided(
    model: Any,
    tokens: Sequence[int],
    window: int,
    stride: int | None,
    batch_size: int,
    advance: Callable[[int], None],
) -> float:
    """Log-likelihood of all tokens but the first, each from its window."""
    if window < 1:
        raise ValueError(f"window: expected at least 1 token, got {window}")
    stride = max(window // 2, 1) if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride: expected 1 to {window} (the window), got {stride}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    device = next(model.parameters()).device
    text = torch.tensor(tokens)
    count = len(tokens) - 1
    # (first input, one past the last input, how many of its last predictions count); the first window counts whole.
    windows = [(0, min(window, count), min(window, count))]
    while windows[-1][1] < count:
        end = min(windows[-1][1] + stride, count)
        windows.append((max(end - window, 0), end, end - windows[-1][1]))
    total = 0.0
    for group in _alike(windows, batch_size):
        scored = group[0][2]
        inputs = torch.stack([text[begin:end] for begin, end, _ in group]).to(device)
        targets = torch.stack([text[end - scored + 1 : end + 1] for _, end, _ in group]).to(device)
        with torch.inference_mode():
            logits, _ = model(inputs, last=scored)
            total += float(token_log_probabilities(logits, targets).double().sum())
        advance(scored * len(group))
    return total


def _alike(windows: list[tuple[int, int, int]], batch_size: int) -> list[list[tuple[int, int, int]]]:
    """Neighbouring windows of one shape, at most `batch_size` together."""
    groups: list[list[tuple[int, int, int]]] = []
    for window in windows:
        shape = (window[1] - window[0], window[2])
        last = groups[-1] if groups else []
        if last and len(last) < batch_size and (last[0][1] - last[0][0], last[0][2]) == shape:
            last.append(window)
        else:
            groups.append([window])
    return groups
