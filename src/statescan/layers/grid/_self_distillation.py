"""Self-distillation from the model's own average."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mesa_loss(logits: Tensor, average_logits: Tensor, *, weight: float = 1.0) -> Tensor:
    """weight times the cross-entropy of scores with the softmax of those of the averaged model; added to the training
    loss from a quarter of the epochs on. Du et al. 2022, "Sharpness-Aware Training for Free", arXiv 2205.14083.

    Arguments:
        logits: (batch, classes), of the model in training.
        average_logits: (batch, classes), of its exponential moving average; no gradient goes there.
        weight: 1.0, 1.5 and 2.0 for the tiny, small and base models of VSSD and Spatial-Mamba.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != average_logits.shape or logits.ndim != 2:
        raise ValueError(
            f"logits, average_logits: (batch, classes) both, got {tuple(logits.shape)} and {tuple(average_logits.shape)}"
        )
    return weight * F.cross_entropy(logits, average_logits.detach().softmax(-1))
