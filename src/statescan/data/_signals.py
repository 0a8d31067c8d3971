"""Tasks on real numbers: remember a signal (delay), add two marked numbers (adding)."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.data._synthetic import at_least


def delay(
    batch_size: int,
    *,
    length: int = 4000,
    lag: int = 1000,
    lags: int = 1,
    step: float = 2.5e-4,
    cutoff: float = 1000.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Band-limited white noise, and the same some time ago (Gu et al. 2023, How to Train Your HiPPO, section 5).

    Arguments:
        lag: samples from one delay to the next.
        lags: how many delays are asked, ``lag, 2 lag, ...``.
        step: seconds between samples.
        cutoff: highest frequency of the noise, in hertz.

    Returns:
        x (batch, length, 1), of standard deviation about 0.5, and its delays (batch, length, lags), zero before the
        signal begins.
    """
    at_least("length", length, 2)
    at_least("lag", lag, 0)
    at_least("lags", lags, 1)
    if cutoff <= 0 or step <= 0:
        raise ValueError(f"cutoff, step: expected positive numbers, got {cutoff} and {step}")
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.fft.rfftfreq(length, step)
    spectrum = torch.randn(batch_size, len(frequencies), dtype=torch.complex64, generator=generator)
    spectrum = spectrum * ((frequencies > 0) & (frequencies <= cutoff))
    signal = torch.fft.irfft(spectrum, length)
    x = signal * (0.5 / signal.std(dim=1, keepdim=True).clamp_min(1e-12))
    delayed = [torch.nn.functional.pad(x, (k * lag, 0))[:, :length] for k in range(1, lags + 1)]
    return x.unsqueeze(-1), torch.stack(delayed, dim=-1)


def adding(batch_size: int, *, length: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The adding problem: numbers, two of them marked, one in each half (Hochreiter and Schmidhuber 1997).

    Returns:
        x (batch, length, 2), numbers in [0, 1) and marks, and the sum of the marked numbers (batch, 1).
    """
    at_least("length", length, 2)
    generator = torch.Generator().manual_seed(seed)
    middle = length // 2
    first = torch.randint(0, middle, (batch_size, 1), generator=generator)
    second = torch.randint(middle, length, (batch_size, 1), generator=generator)
    numbers = torch.rand(batch_size, length, generator=generator)
    marks = torch.zeros(batch_size, length).scatter_(1, torch.cat([first, second], 1), 1.0)
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(1, keepdim=True)
