"""Small language models of bytes for benchmarks, trained for a budget of processor time on the text of `examples`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import statescan
from statescan.generation import progress_bar

TEXT = Path(__file__).parent.parent / "examples" / "king_james_bible.txt"


@functools.cache
def tokens() -> tuple[Tensor, Tensor]:
    """Bytes to learn from, and the last tenth, held out."""
    text = torch.tensor(list(TEXT.read_bytes()))
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def windows(text: Tensor, count: int, length: int, *, seed: int) -> Tensor:
    """Places of a text, (count, length), drawn anew for every seed."""
    starts = torch.randint(len(text) - length + 1, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text[start : start + length] for start in starts.tolist()])


def text_loss(model: Any, step: int, *, batch: int, length: int) -> Tensor:
    """Mean negative log-likelihood of a byte of the text."""
    rows = windows(tokens()[0], batch, length + 1, seed=step)
    logits, _ = model(rows[:, :-1], return_state=False)
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.inference_mode()
def bits_per_byte(model: Any, *, count: int = 16, length: int = 512) -> float:
    """Of held-out windows."""
    rows = windows(tokens()[1], count, length + 1, seed=1)
    logits, _ = model(rows[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())) / math.log(2)


def train(
    model: Any, loss_of: Callable[[Any, int], Tensor], *, seconds: float, rate: float = 3e-3, show: str = ""
) -> dict[str, float]:
    """AdamW until so much processor time is spent; the rate falls along half a cosine to a fiftieth.

    Arguments:
        loss_of: the loss of the model at a step.
    """
    optimiser = torch.optim.AdamW(model.parameter_groups(0.1), lr=rate, betas=(0.9, 0.95))
    began, spent, step, loss = time.process_time(), 0.0, 0, math.nan
    model.train()
    with progress_bar(show, 100, unit="% of the time", shown=bool(show)) as advance:
        while spent < seconds:
            factor = min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / seconds)))
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            found = loss_of(model, step)
            optimiser.zero_grad()
            found.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step, loss = step + 1, float(found.detach())
            before, spent = spent, time.process_time() - began
            advance(int(100 * min(spent / seconds, 1)) - int(100 * min(before / seconds, 1)))
    model.eval()
    return {"steps": step, "seconds": spent, "loss": loss}


def trained(folder: Path, build: Callable[[], Any], loss_of: Callable[[Any, int], Tensor], *, seconds: float) -> Any:
    """The model of this folder; where there is none, a new one is trained and saved there."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        model = build()
        found = train(model, loss_of, seconds=seconds, show=folder.name)
        print(f"{folder.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {found}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        model.save(folder)
    return statescan.load(folder).eval()
