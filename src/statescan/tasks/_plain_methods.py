"""Ways to train backbones of one resolution: with shuffled layers, and with tokens dropped.

Methods of image classification: ``--methods shuffle=0.5``, ``--methods prune=0.7@3,9,15``.
"""

from __future__ import annotations

from typing import Any, cast

from statescan.tasks.methods import TrainingMethod


class Shuffle(TrainingMethod):
    """Stochastic layer-wise shuffle; nothing of it is left in the trained model.

    Arguments:
        value: ``RATE`` or ``RATE,constant``: the probability at the last block, linear in depth, or at all blocks.
    """

    def __init__(self, value: str = "0.5"):
        rate, _, schedule = value.partition(",")
        self.rate, self.schedule = _number("shuffle", value, rate), schedule.strip() or "linear"

    def wrap(self, model: Any) -> Any:
        """The same model, its blocks shuffled in training."""
        from statescan.layers import ShuffleSchedule
        from statescan.models.shuffle_mamba import shuffle_layers

        if getattr(model, "layer_shuffle", None) is not None:  # what is asked for goes before the model's own
            self.unwrap(model)
        shuffle_layers(model, self.rate, schedule=cast(ShuffleSchedule, self.schedule))
        return model

    def unwrap(self, model: Any) -> Any:
        """The same model without the shuffle."""
        model.layer_shuffle.remove()
        model.layer_shuffle = None
        return model


class Prune(TrainingMethod):
    """Fine-tune a backbone with tokens dropped; the pruned model is what is saved.

    Arguments:
        value: ``RATIO``, ``RATIO@BLOCK,BLOCK…`` or either with ``:hold`` behind it: the part of the patches kept at each
            place, the blocks after which tokens are dropped, counted from 1 (a quarter, a half and three quarters of the
            depth unless given), and whether states are held over the gaps instead of aging.
    """

    def __init__(self, value: str = "0.8"):
        rest, _, self.alignment = value.partition(":")
        ratio, _, places = rest.partition("@")
        self.ratio = _number("prune", value, ratio)
        self.places = [int(_number("prune", value, place)) for place in places.split(",")] if places else None

    def wrap(self, model: Any) -> Any:
        """The pruned model, which has the given one's parameters."""
        from statescan.models.token_pruning import Alignment, prune_tokens

        alignment = cast(Alignment, self.alignment or "decay")
        return prune_tokens(model, self.places, self.ratio, alignment=alignment)


def _number(name: str, value: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        examples = {"shuffle": "0.5 or 0.5,constant", "prune": "0.8, 0.7@3,9,15 or 0.8:hold"}
        raise ValueError(f"methods: {name}={value}: expected {examples[name]}, got {text!r}") from None
