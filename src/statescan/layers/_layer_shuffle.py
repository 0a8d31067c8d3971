"""Stochastic layer-wise shuffle: some layers see their tokens in random order, in training alone. Huang et al. 2024,
arXiv 2408.17081, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

#: How the probability of a shuffle goes with depth.
ShuffleSchedule = Literal["linear", "constant"]


def shuffle_rates(rate: float, depth: int, schedule: ShuffleSchedule = "linear") -> list[float]:
    """Probabilities of a shuffle, one a layer: from 0 at the first to `rate` at the last, or `rate` at all.

    Raises:
        ValueError: a rate outside [0, 1], or an unknown schedule.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"shuffle_rate: a probability in [0, 1], got {rate}")
    if schedule not in get_args(ShuffleSchedule):
        raise ValueError(f"shuffle_schedule: unknown {schedule!r}; known: {', '.join(get_args(ShuffleSchedule))}")
    if schedule == "constant":
        return [float(rate)] * depth
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


class LayerShuffle:
    """Layers see their tokens in a random order, now and then, and what they give is put back in place.

    In training, for each layer and step: with the layer's probability one permutation of all tokens is drawn, the same
    for every sample; tokens and residual stream go in permuted, both results come out in the old order. In evaluation
    nothing is done. It has no parameters, and state dicts stay as they are. Checkpointed layers see the same order twice.

    Arguments:
        rates: probabilities, one a layer.
        generator: of torch, on the CPU, from which both draws come; torch's own unless given.
    """

    def __init__(self, rates: Sequence[float], *, generator: torch.Generator | None = None):
        for rate in rates:
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"rates: probabilities in [0, 1], got {rate}")
        self.rates = [float(rate) for rate in rates]
        self.generator = generator
        self._given: list[Tensor | None] | None = None
        self._orders: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self, layers: Iterable[nn.Module]) -> LayerShuffle:
        """Begin to shuffle these layers, as many as there are rates.

        A layer is given tokens (batch, length, dim) or a grid (batch, rows, columns, dim) first, perhaps other tensors of
        the same shape, and gives such tensors back.
        """
        layers = list(layers)
        if len(layers) != len(self.rates):
            raise ValueError(f"layers: one a rate, {len(self.rates)}, got {len(layers)}")
        for index, layer in enumerate(layers):
            self._handles.append(layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(partial(self._after, index)))
        return self

    def remove(self) -> None:
        """Shuffle no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def draw(self, layer: int, length: int, device: torch.device | None = None) -> Tensor | None:
        """The order of one layer in one step, (length,): None for as it is, or a permutation."""
        if self._given is not None:
            given = self._given[layer]
            return None if given is None else given.to(device)
        rate = self.rates[layer]
        if rate == 0.0 or float(torch.rand((), generator=self.generator)) >= rate:
            return None
        if self.generator is not None:
            return torch.randperm(length, generator=self.generator).to(device)
        return torch.randperm(length, device=device)

    @contextmanager
    def fixed(self, orders: Sequence[Tensor | None]) -> Iterator[None]:
        """Within it, layers in training take these orders, one a layer, None for as it is; nothing is drawn."""
        if len(orders) != len(self.rates):
            raise ValueError(f"orders: one a layer, {len(self.rates)}, got {len(orders)}")
        self._given = list(orders)
        try:
            yield
        finally:
            self._given = None

    def _before(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not module.training:
            return None
        tokens = args[0]
        order = self.draw(layer, tokens.shape[1:-1].numel(), tokens.device)
        if order is None:
            return None
        self._orders[layer] = order
        shape = tokens.shape
        moved = tuple(_reorder(part, order) if _alike(part, shape) else part for part in args)
        return moved, {name: _reorder(part, order) if _alike(part, shape) else part for name, part in kwargs.items()}

    def _after(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        order = self._orders.pop(layer, None)
        if order is None:
            return None
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        shape = args[0].shape
        if isinstance(output, tuple):
            return tuple(_reorder(part, back) if _alike(part, shape) else part for part in output)
        return _reorder(output, back)


def _alike(part: Any, shape: torch.Size) -> bool:
    return isinstance(part, Tensor) and part.shape == shape


def _reorder(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens (batch, length, dim), or a grid read row by row, in another order."""
    if tokens.ndim == 3:
        return tokens[:, order]
    return tokens.flatten(1, -2)[:, order].view(tokens.shape)
