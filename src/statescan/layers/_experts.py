"""Mixtures of experts as channel mixers: a router sends every token through a few of many MLPs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Routing = Literal["softmax", "softmax_of_chosen", "sigmoid"]


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2. So et al. 2021, "Primer", arXiv 2109.08668."""
    return F.relu(x).square()


class Experts(nn.Module):
    """A bank of MLPs without biases, gated or plain, of which every token passes those that it is sent to.

    Gated experts compute W_out (value(x) activation(gate(x))), the value first in `input_weight`; plain ones
    W_out activation(W_in x).

    Arguments:
        dim: channels of input and output.
        hidden_dim: channels between.
        experts: how many there are.
        gated: which of the two forms.
        activation: of the gate, or of the hidden channels.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        experts: int,
        *,
        gated: bool = True,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ):
        super().__init__()
        self.experts, self.gated, self.activation = experts, gated, activation
        wide = 2 * hidden_dim if gated else hidden_dim
        self.input_weight = nn.Parameter(torch.empty(experts, wide, dim).uniform_(-(dim**-0.5), dim**-0.5))
        bound = 1 / math.sqrt(hidden_dim)
        self.output_weight = nn.Parameter(torch.empty(experts, dim, hidden_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, each times its weight.

        Arguments:
            x: (tokens, dim).
            chosen: (tokens, active) int64, numbers of experts.
            weights: (tokens, active).

        Returns:
            (tokens, dim).
        """
        active = chosen.shape[1]
        if x.is_meta:  # shapes alone: as if every expert had the same share
            order = chosen.flatten()
            total = order.numel()
            counts = [total // self.experts + (e < total % self.experts) for e in range(self.experts)]
        else:
            order = chosen.flatten().argsort(stable=True)  # tokens of one expert next to each other
            counts = torch.bincount(chosen.flatten(), minlength=self.experts).tolist()
        tokens = order // active
        groups = zip(x[tokens].split(counts), self.input_weight, self.output_weight, strict=True)
        mixed = torch.cat([self._expert(group, first, second) for group, first, second in groups])
        mixed = mixed * weights.flatten()[order, None].to(mixed.dtype)
        return torch.zeros_like(x).index_add(0, tokens, mixed)

    def _expert(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        hidden = F.linear(x, first)
        if self.gated:
            value, gate = hidden.chunk(2, dim=-1)
            hidden = value * self.activation(gate)
        else:
            hidden = self.activation(hidden)
        return F.linear(hidden, second)


class Router(nn.Module):
    """Which experts a token is sent to, and with what weights.

    ``softmax``: the `active` largest of softmax(W x), as they are (Jamba). ``softmax_of_chosen``: softmax over the
    `active` largest of W x, so that they sum to one (Granite). ``sigmoid``: the `active` largest of sigmoid(W x) + b,
    within the `open_groups` best groups, weights without b (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; Nemotron-H).

    Arguments:
        dim: channels of a token.
        experts: how many there are.
        active: how many a token is sent to.
        routing: one of the three rules.
        normalised: weights of ``sigmoid`` are divided by their sum.
        scale: weights of ``sigmoid`` are multiplied by it.
        groups, open_groups: ``sigmoid`` chooses experts from the best `open_groups` of `groups` sets of neighbours, by
            the sum of each set's two best.

    Raises:
        ValueError: numbers that do not go together.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        active: int,
        *,
        routing: Routing = "softmax",
        normalised: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        open_groups: int = 1,
    ):
        super().__init__()
        if routing not in get_args(Routing):
            raise ValueError(f"routing: unknown {routing!r}; known: {', '.join(get_args(Routing))}")
        if not 1 <= active <= experts:
            raise ValueError(f"active: between 1 and the {experts} experts, got {active}")
        if experts % groups or not 1 <= open_groups <= groups:
            raise ValueError(f"groups: {groups} groups of which {open_groups} are open do not fit {experts} experts")
        if groups > 1 and (experts // groups < 2 or active > open_groups * (experts // groups)):
            raise ValueError(f"groups: {open_groups} groups of {experts // groups} experts are too few for {active}")
        self.active, self.routing, self.normalised, self.scale = active, routing, normalised, scale
        self.groups, self.open_groups = groups, open_groups
        self.weight = nn.Parameter(torch.empty(experts, dim).uniform_(-(dim**-0.5), dim**-0.5))
        if routing == "sigmoid":
            self.register_buffer("correction", torch.zeros(experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (tokens, dim) -> numbers of the chosen experts (tokens, active) and their weights, float32."""
        if self.routing == "sigmoid":
            return self._sigmoid(F.linear(x.float(), self.weight.float()))
        logits = F.linear(x, self.weight).float()
        if self.routing == "softmax":
            weights, chosen = logits.softmax(dim=-1).topk(self.active, dim=-1)
            return chosen, weights
        best, chosen = logits.topk(self.active, dim=-1)
        return chosen, best.softmax(dim=-1)

    def _sigmoid(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.sigmoid()
        ranked = scores + self.correction
        if self.groups > 1:
            grouped = ranked.unflatten(-1, (self.groups, -1))
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.open_groups, dim=-1).indices
            closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
            ranked = grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)
        chosen = ranked.topk(self.active, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return chosen, weights * self.scale


class MixtureOfExperts(nn.Module):
    """experts(x) weighed by a router, plus a shared expert that every token passes.

    Arguments:
        router: see `Router`.
        experts: see `Experts`.
        shared: a channel mixer beside them, or None.
        latent: (down, up): projections around the experts, which then work in fewer channels; None: they work in dim.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        shared: nn.Module | None = None,
        latent: tuple[nn.Linear, nn.Linear] | None = None,
    ):
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.latent_down, self.latent_up = latent if latent is not None else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        tokens = x.reshape(-1, x.shape[-1])
        chosen, weights = self.router(tokens)
        reduced = tokens if self.latent_down is None else self.latent_down(tokens)
        mixed = self.experts(reduced, chosen, weights)
        if self.latent_up is not None:
            mixed = self.latent_up(mixed)
        mixed = mixed.view(x.shape)
        return mixed if self.shared is None else mixed + self.shared(x)
