"""How published state-space language models draw their first weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def inverse_softplus(value: Tensor) -> Tensor:
    """x with softplus(x) = value > 0."""
    return value + torch.log(-torch.expm1(-value))


def delta_bias(channels: int, *, minimum: float, maximum: float, floor: float) -> Tensor:
    """Biases whose softplus is log-uniform in [minimum, maximum], at least `floor`: (channels,)."""
    spread = torch.rand(channels) * (math.log(maximum) - math.log(minimum)) + math.log(minimum)
    return inverse_softplus(torch.exp(spread).clamp(min=floor))


@torch.no_grad()
def initialise_language_model(
    module: nn.Module, *, depth: int, residuals_per_layer: int = 1, embedding_std: float = 0.02
) -> None:
    """Embeddings N(0, std), projection biases zero, and residual outputs shrunk by sqrt(depth x residuals a layer).

    The last follows GPT-2: what is added to the residual stream `depth` times keeps its variance. Modules whose weight
    ends a residual branch are named ``output_projection``. Scan parameters keep what their mixer gave them.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=embedding_std)
        elif isinstance(child, nn.Linear):
            if child.bias is not None:
                nn.init.zeros_(child.bias)
            if name.endswith("output_projection"):
                nn.init.kaiming_uniform_(child.weight, a=math.sqrt(5))
                child.weight /= math.sqrt(residuals_per_layer * depth)
