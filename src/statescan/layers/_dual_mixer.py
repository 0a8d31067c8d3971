"""Mixers of tokens and of channels in turn, each reading weighted averages of all before it. Behrouz et al. 2024,
"MambaMixer", arXiv 2403.19888, equations 8 and 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class WeightedAverage(nn.Module):
    """Sum of earlier outputs, a learned weight each.

    Arguments:
        tokens, channels: how many outputs of token mixers and of channel mixers.
        latest: whose last output has weight 1 at first, all others 0; with `softmax` all begin equal.
        softmax: weights of each kind are positive and sum to one.
    """

    def __init__(
        self, tokens: int, channels: int, *, latest: Literal["tokens", "channels"] = "tokens", softmax: bool = False
    ):
        super().__init__()
        self.softmax = softmax
        self.tokens: Tensor
        self.channels: Tensor
        sizes = {"tokens": tokens, "channels": channels}
        for name, size in sizes.items():
            first = torch.full((size,), 1 / size) if softmax else torch.zeros(size)
            if not softmax and name == latest:
                first[-1] = 1.0
            self.register_parameter(name, nn.Parameter(first))

    def forward(self, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        """Outputs of one shape, as many as there are weights, to their sum."""
        terms = []
        for weights, outputs in ((self.tokens, tokens), (self.channels, channels)):
            weights = weights.softmax(0) if self.softmax else weights
            terms += [weight * output for weight, output in zip(weights.unbind(), outputs, strict=True)]
        return sum(terms[1:], terms[0])


class DualMixer(nn.Module):
    """x_T = sum a y_T + sum b y_C, y_T = token mixer(x_T); x_C = sum t y_T + sum g y_C, y_C = channel mixer(x_C); the
    sums go over all earlier layers, and the input is y_T and y_C of layer 0.

    Arguments:
        token_mixers, channel_mixers: modules from a tensor to one of its shape, as many of each; None is no channel
            mixer: y_C = x_C.
        softmax: see `WeightedAverage`; without it, the weights begin such that each mixer reads the one before it.
    """

    def __init__(
        self,
        token_mixers: Sequence[nn.Module],
        channel_mixers: Sequence[nn.Module | None],
        *,
        softmax: bool = False,
    ):
        super().__init__()
        if len(token_mixers) != len(channel_mixers):
            raise ValueError(
                f"token_mixers, channel_mixers: as many of each, got {len(token_mixers)} and {len(channel_mixers)}"
            )
        self.token_mixers = nn.ModuleList(token_mixers)
        self.channel_mixers = nn.ModuleList(nn.Identity() if mixer is None else mixer for mixer in channel_mixers)
        depth = len(token_mixers)
        self.token_averages = nn.ModuleList(
            WeightedAverage(layer + 1, layer + 1, latest="channels", softmax=softmax) for layer in range(depth)
        )
        self.channel_averages = nn.ModuleList(
            WeightedAverage(layer + 2, layer + 1, latest="tokens", softmax=softmax) for layer in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """What the last channel mixer gives, of the input's shape."""
        tokens, channels = [x], [x]
        for token_average, token_mixer, channel_average, channel_mixer in zip(
            self.token_averages, self.token_mixers, self.channel_averages, self.channel_mixers, strict=True
        ):
            tokens.append(token_mixer(token_average(tokens, channels)))
            channels.append(channel_mixer(channel_average(tokens, channels)))
        return channels[-1]
