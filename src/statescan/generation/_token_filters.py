"""Which tokens a channel of long memory is to take in: rules on step sizes. LongMamba, arXiv 2504.16053.

Where the step of a token is set to 0 in a channel, its state neither decays nor takes the token in. All rules read step
sizes after bias and softplus, (batch, length, channels), and give a mask of that shape, True where a token stays, unless
they say otherwise. `keep_tail` tokens at the end stay whatever the rule says.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_above(steps: Tensor, thresholds: Tensor, *, keep_tail: int = 0) -> Tensor:
    """Steps above their channel's threshold: LongMamba's rule. thresholds (channels,) or (batch, channels)."""
    limits = thresholds if thresholds.ndim == 1 else thresholds[:, None]
    return _with_tail(steps > limits, keep_tail)


def keep_top_k_channelwise(steps: Tensor, k: int, *, keep_tail: int = 0) -> Tensor:
    """Steps above their channel's quantile at 1 - k / length."""
    head = steps[:, : steps.shape[1] - keep_tail]
    length = head.shape[1]
    share = 1 - min(k, length) / length
    limits = torch.quantile(head, share, dim=1, keepdim=True)
    return _with_tail(steps > limits, keep_tail)


def keep_top_share(steps: Tensor, shares: Tensor, *, keep_tail: int = 0) -> Tensor:
    """The share of a channel's tokens with the largest steps: those of a rank below length x shares (channels,)."""
    length = steps.shape[1] - keep_tail
    order = steps[:, :length].argsort(dim=1, descending=True)
    kept = torch.arange(length, device=steps.device)[:, None] < (length * shares).clamp(max=length)
    mask = torch.zeros(steps.shape, dtype=torch.bool, device=steps.device)
    mask.scatter_(1, order, kept.expand(steps.shape[0], -1, -1).contiguous())
    return _with_tail(mask, keep_tail)


def keep_within_budget(steps: Tensor, budgets: Tensor, *, keep_tail: int = 0) -> Tensor:
    """A channel's largest steps as long as their sum is within its budget (channels,)."""
    ordered, order = steps.sort(dim=1, descending=True)
    count = (ordered.cumsum(dim=1) <= budgets).sum(dim=1, keepdim=True)
    kept = torch.arange(steps.shape[1], device=steps.device)[:, None] < count
    return _with_tail(torch.zeros_like(kept).scatter(1, order, kept), keep_tail)


def keep_from_rank(steps: Tensor, shares: Tensor, *, keep_tail: int = 0) -> tuple[Tensor, Tensor]:
    """Steps of at least the value at rank length x shares of their channel; the mask, and those values (batch, channels)."""
    length = steps.shape[1]
    ranks = ((length - keep_tail) * shares).clamp(max=length - keep_tail).long().clamp(max=length - 1)
    ordered = steps.sort(dim=1, descending=True).values
    limits = ordered.gather(1, ranks.expand(steps.shape[0], 1, -1))
    return _with_tail(steps >= limits, keep_tail), limits[:, 0]


def scale_to_budget(steps: Tensor, budgets: Tensor, *, keep_tail: int = 0) -> Tensor:
    """All steps of a channel times one factor, so that their sum is its budget (channels,): steps, not a mask."""
    factor = (budgets / steps.sum(dim=1))[:, None].expand(steps.shape)
    tail = torch.arange(steps.shape[1], device=steps.device) >= steps.shape[1] - keep_tail
    return torch.where(tail[:, None], steps, steps * factor)


def top_tokens_by_norm(steps: Tensor, k: int, *, keep_tail: int = 0) -> Tensor:
    """The k tokens whose steps have the largest norm over all channels, and the tail: indices (batch, kept), rising."""
    length = steps.shape[1] - keep_tail
    chosen = steps[:, :length].norm(dim=2).topk(min(k, length), dim=1).indices.sort(dim=1).values
    tail = torch.arange(length, steps.shape[1], device=steps.device).expand(steps.shape[0], -1)
    return torch.cat([chosen, tail], dim=1)


def _with_tail(mask: Tensor, keep_tail: int) -> Tensor:
    if keep_tail:
        mask = mask.clone()
        mask[:, mask.shape[1] - keep_tail :] = True
    return mask
