"""The noise of diffusion models: how much of it a step holds, and how a sample is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Offset of the cosine schedule: it keeps the first steps from being without noise.
_OFFSET = 0.008


def signal_fraction(times: Tensor, steps: int) -> Tensor:
    """Share of signal in the variance at each time: the cosine schedule. Nichol and Dhariwal 2021, arXiv 2102.09672.

    `times` are whole or not, from 0 (nearly all signal) to steps - 1 (nearly all noise).
    """
    angle = ((times.float() + 1) / steps + _OFFSET) / (1 + _OFFSET) * (math.pi / 2)
    start = math.cos(_OFFSET / (1 + _OFFSET) * math.pi / 2) ** 2
    return (angle.cos().square() / start).clamp(1e-5, 1.0)


def add_noise(clean: Tensor, noise: Tensor, times: Tensor, steps: int) -> Tensor:
    """sqrt(s) clean + sqrt(1 - s) noise, where s is the signal's share: clean (..., channels), times (...)."""
    share = signal_fraction(times, steps)[..., None].to(clean.dtype)
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    *,
    steps: int,
    evaluations: int,
    generator: torch.Generator | None = None,
    stochastic: bool = False,
) -> Tensor:
    """A sample from noise. Song et al. 2021 (DDIM), arXiv 2010.02502, equation 12; `stochastic` is DDPM's sampling.

    Arguments:
        predict: (noised (batch, tokens, channels), times (batch, tokens)) -> the noise in it.
        noise: to begin with.
        steps: of the schedule.
        evaluations: of `predict`, evenly spread over the schedule.
        generator: of the fresh noise of stochastic sampling.
        stochastic: add fresh noise at every step.
    """
    x = noise
    times = torch.linspace(steps - 1, 0, evaluations).round()
    for index, time in enumerate(times.tolist()):
        here = torch.full(x.shape[:2], time, device=x.device)
        share = signal_fraction(here[:1, :1], steps).item()
        last = index == evaluations - 1
        after = 1.0 if last else signal_fraction(times[index + 1 : index + 2], steps).item()
        found = predict(x, here)
        clean = (x - (1 - share) ** 0.5 * found) / share**0.5
        spread = ((1 - after) / (1 - share) * (1 - share / after)) ** 0.5 if stochastic and not last else 0.0
        x = after**0.5 * clean + max(0.0, 1 - after - spread**2) ** 0.5 * found
        if spread:
            x = x + spread * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time at many rates, through a small MLP: (...) -> (..., dim)."""

    def __init__(self, dim: int, *, waves: int = 128):
        super().__init__()
        self.waves = waves
        self.input_projection = nn.Linear(waves, dim)
        self.output_projection = nn.Linear(dim, dim)

    def forward(self, times: Tensor) -> Tensor:
        half = self.waves // 2
        rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(10000.0) / half))
        angles = times.float()[..., None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.input_projection.weight.dtype)
        return self.output_projection(nn.functional.silu(self.input_projection(waves)))
