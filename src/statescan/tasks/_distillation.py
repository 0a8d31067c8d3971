"""What distillation computes: the loss against a teacher, weights of samples, and a student's weight in a sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_loss(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """tau² KL(softmax(teacher / tau) || softmax(student / tau)) of each sample: (batch,).

    Arguments:
        teacher, student: scores (batch, classes).
        tau: temperature.
    """
    soft, ours = F.log_softmax(teacher / tau, -1), F.log_softmax(student / tau, -1)
    return tau**2 * (soft.exp() * (soft - ours)).sum(-1)


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, tau: float = 4.0, alpha: float = 0.5
) -> Tensor:
    """alpha x cross-entropy with the targets + (1 - alpha) x `soft_loss`, of each sample: (batch,).

    Arguments:
        student, teacher: scores (batch, classes).
        targets: classes (batch,).
        tau: temperature; higher ones show more of what the teacher holds possible.
        alpha: 1 for plain training, 0 for the teacher's word alone.

    Raises:
        ValueError: a temperature that is not positive, or an alpha outside [0, 1].
    """
    if not tau > 0 or not 0 <= alpha <= 1:
        raise ValueError(f"tau, alpha: positive, and from 0 to 1, got {tau} and {alpha}")
    hard = F.cross_entropy(student, targets, reduction="none")
    return alpha * hard + (1 - alpha) * soft_loss(teacher, student, tau)


def sample_weights(teacher: Tensor, ensemble: Tensor, *, eta: float, limit: float = 10.0) -> Tensor:
    """Weights of samples, of mean 1: proportional to exp(eta KL(teacher || ensemble so far)), (samples,).

    Arguments:
        teacher, ensemble: scores (samples, classes); an ensemble of nothing has zeros.
        eta: how much more the next student looks at what the ensemble gets wrong; 0: at everything alike.
        limit: how many times a sample may weigh more than one that the ensemble gets right.
    """
    if eta < 0 or limit < 1:
        raise ValueError(f"eta, limit: at least 0 and 1, got {eta} and {limit}")
    weights = (eta * soft_loss(teacher, ensemble, 1.0)).clamp(max=math.log(limit)).exp()
    return weights / weights.mean()


def best_weights(so_far: Tensor, scores: Tensor, targets: Tensor) -> tuple[float, float]:
    """a and b with the least cross-entropy of a so_far + b scores: what a student adds, and how the sum before is scaled.

    The loss is convex in both. Without the scale a, a sum that is sure of itself would leave no room for a better student.
    Where there is nothing yet (zeros), a is 1.

    Arguments:
        so_far, scores: (samples, classes) of validation.
        targets: (samples,).
    """
    so_far, scores = so_far.double(), scores.double()

    def loss(a: float, b: float) -> float:
        return float(F.cross_entropy(a * so_far + b * scores, targets))

    def best_b(a: float) -> float:
        return _least(lambda b: loss(a, b), 0.0, 8.0)

    a = _least(lambda a: loss(a, best_b(a)), 0.01, 4.0) if bool(so_far.any()) else 1.0
    b = best_b(a)
    if loss(a, 0.0) <= loss(a, b):  # the search stops short of the ends
        b = 0.0
    return (1.0, 0.0) if loss(1.0, 0.0) <= loss(a, b) else (a, b)


def _least(function: Callable[[float], float], low: float, high: float, *, within: float = 1e-4) -> float:
    """Where a convex function is least between two ends: golden sections."""
    ratio = (math.sqrt(5) - 1) / 2
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    at_inner, at_outer = function(inner), function(outer)
    while high - low > within:
        if at_inner <= at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - ratio * (high - low)
            at_inner = function(inner)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + ratio * (high - low)
            at_outer = function(outer)
    return (low + high) / 2


@torch.no_grad()
def scores_of(model: torch.nn.Module, images: Tensor, *, batch: int = 256) -> Tensor:
    """A classifier's scores of images, in float32 on the CPU: (samples, classes)."""
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).float().cpu() for part in images.split(batch)])
