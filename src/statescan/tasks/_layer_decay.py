"""Learning rates that fall from the head to the stem, as pretrained image models are fine-tuned (Bao et al. 2022, BEiT)."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

_BLOCK = re.compile(r"^(.*?(?:blocks|layers|bottlenecks|branches)\.\d+)\.")


def layer_numbers(model: Any) -> dict[str, int]:
    """The layer of each parameter, by name: 0 before the first block, then one a block, and the last for what follows.

    What stands between blocks, such as a downsampling, belongs to the block before it.
    """
    numbers: dict[str, int] = {}
    blocks: dict[str, int] = {}
    names = [name for name, _ in model.named_parameters()]
    last = max((index for index, name in enumerate(names) if _BLOCK.match(name)), default=-1)
    current = 0
    for index, name in enumerate(names):
        found = _BLOCK.match(name)
        if found:
            current = blocks.setdefault(found[1], len(blocks) + 1)
        numbers[name] = current if index <= last else len(blocks) + 1
    # A model may name its position or class token after its blocks.
    for name in names:
        if not _BLOCK.match(name) and re.match(r"(tokens|stem|position|class_token|patch)", name):
            numbers[name] = 0
    return numbers


def layer_groups(
    model: Any, groups: list[dict[str, Any]], *, decay: float, learning_rate: float
) -> list[dict[str, Any]]:
    """The groups of an optimiser, divided by layer: the last has the learning rate, each one before `decay` of it.

    Arguments:
        model: whose parameters they are.
        groups: from its `parameter_groups`.
        decay: up to 1.
        learning_rate: of the last layer.
    """
    numbers = layer_numbers(model)
    deepest = max(numbers.values())
    names = {parameter: name for name, parameter in model.named_parameters()}
    divided = []
    for group in groups:
        by_layer: dict[int, list[Tensor]] = {}
        for parameter in group["params"]:
            by_layer.setdefault(numbers[names[parameter]], []).append(parameter)
        for number, parameters in sorted(by_layer.items()):
            divided.append(group | {"params": parameters, "lr": learning_rate * decay ** (deepest - number)})
    return divided
