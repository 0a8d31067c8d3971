"""Smaller models of a family: width and depth shrunk until the model costs a given fraction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from statescan import inspect, models

_WIDTHS, _DEPTHS = ("dim", "dims", "widths"), ("depth", "depths")

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Student:
    """A smaller model of a family.

    Fields:
        config: of the model.
        fields: those of width and depth, which differ from the large model's.
        flops: of one image: convolutions, matrix products (two operations a multiply-add) and scans.
        fraction: of the large model's.
    """

    config: Any
    fields: dict[str, Any]
    flops: int
    fraction: float


def image_flops(family: str, config: Any, *, size: int | tuple[int, int] | None = None) -> int:
    """Operations for one image: two a multiply-add of convolutions and matrix products, and those of scans.

    Norms, activations and sums are not counted, as publications do not.

    Arguments:
        family: its name in the registry.
        config: of the model.
        size: side, or (height, width), of the image; that of the config unless given.
    """
    with torch.device("meta"):
        model = models.build_model(family, config)
    cost = inspect.image_cost(model, size=size)
    return 2 * cost.multiply_adds + cost.scan_operations


def shrink(
    family: str, config: Any, fraction: float, *, size: int | tuple[int, int] | None = None, step: int = 2
) -> Student:
    """The model of a family that costs at most a fraction of a given one and comes near it, narrower and shallower.

    Of models that use three quarters of what is allowed or more, that is taken whose width and depth are shrunk most
    alike; else the one that costs most.

    Arguments:
        family: its name in the registry.
        config: of the large model; the smaller one keeps all but width and depth.
        fraction: of its operations, above 0, below 1.
        size: side, or (height, width), of the images; that of the config unless given.
        step: widths are multiples of it.

    Raises:
        ValueError: a fraction out of range, a model without width and depth, or with none that is small enough.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: between 0 and 1, got {fraction}")
    width, depth = (next((n for n in names if hasattr(config, n)), None) for names in (_WIDTHS, _DEPTHS))
    if width is None or depth is None or not hasattr(config, "image_shape"):
        raise ValueError(f"model: {family!r} is no family of image models with a width and a depth to shrink")
    whole = image_flops(family, config, size=size)
    full_width, full_depth = getattr(config, width), getattr(config, depth)
    costs: dict[tuple[Size, Size], int | None] = {}

    def cost(narrow: Size, shallow: Size) -> int | None:
        """None where the family has no such model."""
        if (narrow, shallow) not in costs:
            try:
                smaller = dataclasses.replace(config, **{width: narrow, depth: shallow})
                costs[narrow, shallow] = image_flops(family, smaller, size=size)
            except (ValueError, TypeError, ArithmeticError, RuntimeError):
                costs[narrow, shallow] = None
        return costs[narrow, shallow]

    found: list[tuple[int, float, Size, Size]] = []
    cheapest: float = math.inf
    for shallow in _depths(full_depth):
        widths = _widths(full_width, step)
        narrow = _largest(widths, lambda w: cost(w, shallow), fraction * whole)  # noqa: B023
        cheapest = min([cheapest, *(c for (_, s), c in costs.items() if s == shallow and c is not None)])
        if narrow is None:
            continue
        price = costs[narrow, shallow]
        assert price is not None
        uneven = abs(math.log(_total(narrow) / _total(full_width) / (_total(shallow) / _total(full_depth))))
        found.append((price, uneven, narrow, shallow))
    if not found:
        least = f"the cheapest costs {cheapest / whole:.2%}" if costs and cheapest < math.inf else "none could be built"
        raise ValueError(f"fraction: no {family!r} model costs {fraction:.2%} of the large one; {least}")
    near = [entry for entry in found if entry[0] >= 0.75 * fraction * whole]
    price, _, narrow, shallow = (
        min(near, key=lambda entry: entry[1]) if near else max(found, key=lambda entry: entry[0])
    )
    fields = {width: narrow, depth: shallow}
    return Student(dataclasses.replace(config, **fields), fields, price, price / whole)


def _depths(full: Size) -> list[Size]:
    """Depths from one block (a stage) to all, those of stages shrunk alike."""
    most = full if isinstance(full, int) else max(full)
    scaled: list[Size] = []
    for blocks in range(1, most + 1):
        one: Size = blocks if isinstance(full, int) else tuple(max(1, round(n * blocks / most)) for n in full)
        if one not in scaled:
            scaled.append(one)
    return scaled


def _widths(full: Size, step: int) -> list[Size]:
    """Widths from one step to the whole, those of stages shrunk alike."""
    first = full if isinstance(full, int) else full[0]
    scaled: list[Size] = []
    for channels in range(step, first + 1, step):
        one: Size = channels
        if not isinstance(full, int):
            one = tuple(max(step, round(n * channels / first / step) * step) for n in full)
        if one not in scaled:
            scaled.append(one)
    return scaled


def _largest(widths: list[Size], cost: Callable[[Size], int | None], most: float) -> Size | None:
    """The largest width that costs `most` or less; cost rises with width, and is None where there is no such model."""
    low, high, found = 0, len(widths) - 1, None
    while low <= high:
        middle = (low + high) // 2
        place = middle
        while place >= low and cost(widths[place]) is None:
            place -= 1
        if place < low:  # none of this half can be built
            low = middle + 1
            continue
        price = cost(widths[place])
        assert price is not None
        if price <= most:
            found, low = widths[place], middle + 1
        else:
            high = place - 1
    return found


def _total(size: Size) -> int:
    return size if isinstance(size, int) else sum(size)


def check_vision(name: str) -> None:
    """Raise unless a name is that of an image model.

    Raises:
        ValueError: it is another model's, or not known.
    """
    from statescan.models._vision import VisionConfig

    if not isinstance(models.model_info(name).config, VisionConfig):
        raise ValueError(f"model: {name!r} reads no images; try --model vim_tiny, `statescan models` lists all")
