"""Learning from a teacher's scores beside the labels (Hinton et al. 2015; DeiT, Touvron et al. 2021)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from statescan.tasks._distillation import soft_loss
from statescan.tasks.methods import TrainingMethod

Kind = Literal["soft", "hard"]


class Distillation(TrainingMethod):
    """The loss becomes (1 - weight) of what it was and weight of the loss against the teacher.

    A model with a second head for the teacher (``distillation=True`` of MobileMamba) learns the teacher's answers there and
    the labels with the first; others learn both with their one head.

    Arguments:
        teacher: an image model with as many classes; it is put into evaluation mode and not trained.
        kind: ``soft``: the teacher's probabilities at `temperature`, the divergence times its square; ``hard``: the class
            that the teacher finds most probable.
        weight: of the teacher, from 0 to 1.
        temperature: of the probabilities.

    Raises:
        ValueError: a weight or a temperature out of range.
    """

    def __init__(self, teacher: Any, *, kind: Kind = "soft", weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 <= weight <= 1 or not temperature > 0:
            raise ValueError(
                f"distillation_weight, temperature: from 0 to 1, and above 0, got {weight} and {temperature}"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind, self.weight, self.temperature = kind, weight, temperature

    def loss(self, loss: Tensor, *, model: Any, images: Tensor, outputs: Any, targets: Tensor) -> Tensor:
        """See the class."""
        with torch.no_grad():
            self.teacher.to(images.device)
            wanted = self.teacher.config.image_shape
            seen = images
            if tuple(images.shape[2:]) != wanted:
                seen = torch.nn.functional.interpolate(images, size=wanted, mode="bicubic", antialias=True)
            taught = self.teacher(seen).float()
        scores = outputs[1] if isinstance(outputs, tuple) else outputs
        if taught.shape != scores.shape:
            raise ValueError(f"teacher: {taught.shape[1]} classes, the model has {scores.shape[1]}")
        return (1 - self.weight) * loss + self.weight * self.against(scores.float(), taught)

    def against(self, scores: Tensor, taught: Tensor) -> Tensor:
        """The loss of scores (batch, classes) against the teacher's, summed over the batch."""
        if self.kind == "hard":
            return torch.nn.functional.cross_entropy(scores, taught.argmax(-1), reduction="sum")
        return soft_loss(taught, scores, self.temperature).sum()
