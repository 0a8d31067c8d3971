"""Ways to train that add to a task: what changes the model while it learns, the images, or the loss.

A method is a class derived from `TrainingMethod`, made known by `register_method`; ``--methods NAME`` or
``--methods NAME=VALUE`` then turns it on in image classification, several one after the other. Two places call it:

* before training, `wrap` may change the model in place (hooks, other forward passes) or give another one to be trained;
  after it `unwrap` gives back what is to be saved, a plain model of the library;
* at each batch, `begin` says how far training is, `prepare` sees images and targets, and `loss` sees the model's answers and
  may add to the loss or put another in its place.

For instance, a penalty on large scores:

    class Penalty(TrainingMethod):
        def __init__(self, value: str = "0.01") -> None:
            self.weight = float(value)

        def loss(self, loss, *, model, images, outputs, targets):
            return loss + self.weight * outputs.square().sum()

    register_method("penalty", Penalty)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from statescan._names import nearest


class TrainingMethod:
    """What a method does; each part may be left as it is, and is then nothing.

    A registered class is made with the text after ``=`` as its only argument, or with none.
    """

    def wrap(self, model: Any) -> Any:
        """The model to be trained, from the model with its first weights."""
        return model

    def unwrap(self, model: Any) -> Any:
        """The model to be saved, from the trained one."""
        return model

    def begin(self, step: int, steps: int) -> None:
        """Told before each training batch: optimiser steps made, of how many."""

    def prepare(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, channels, height, width), augmented and normalised, and targets (batch, classes), as they are
        learnt from."""
        return images, targets

    def loss(self, loss: Tensor, *, model: Any, images: Tensor, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of a training batch, summed over its images.

        Arguments:
            loss: so far.
            model: in training.
            images: that it read, (batch, channels, height, width).
            outputs: what it gave: scores (batch, classes), or a pair of them where it has a second head for a teacher.
            targets: (batch, classes), probabilities.
        """
        return loss


#: Methods by name: a class, or "module:class", imported on use.
_METHODS: dict[str, Callable[..., TrainingMethod] | str] = {
    "shuffle": "statescan.tasks._plain_methods:Shuffle",
    "prune": "statescan.tasks._plain_methods:Prune",
}


def register_method(name: str, method: Callable[..., TrainingMethod] | str) -> None:
    """Make a method known: a class, or ``"module:class"``, which is imported on use."""
    _METHODS[name] = method


def method_names() -> list[str]:
    """The known methods."""
    return sorted(_METHODS)


def make_methods(texts: Sequence[str]) -> list[TrainingMethod]:
    """Methods from ``NAME`` or ``NAME=VALUE``.

    Raises:
        ValueError: an unknown name, or what the method says of its value.
    """
    made = []
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in _METHODS:
            hint = nearest(name, _METHODS)
            raise ValueError(f"methods: unknown {name!r}{hint}; known: {', '.join(method_names())}")
        method = _METHODS[name]
        if isinstance(method, str):
            module, _, attribute = method.partition(":")
            method = getattr(importlib.import_module(module), attribute)
        made.append(method(value) if equals else method())
    return made
