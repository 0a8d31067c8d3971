"""What a plain image backbone costs whole, and with tokens dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from statescan.inspect._images import ImageCost, image_cost
from statescan.inspect._sizes import build_without_memory


@dataclass(frozen=True)
class PrunedCost:
    """Costs of one image.

    Arguments:
        tokens: patches that each block reads.
        cost: of the whole model.
    """

    tokens: tuple[int, ...]
    cost: ImageCost


def pruning_costs(
    name: str,
    prune_after: Sequence[int] | None = None,
    keep_ratios: Sequence[float] | float = 0.8,
    *,
    size: int | None = None,
    **overrides: Any,
) -> tuple[PrunedCost, PrunedCost]:
    """Costs of a named backbone of one resolution, and of the same with tokens dropped; without memory.

    Arguments:
        name: of the backbone.
        prune_after, keep_ratios: as in `models.token_pruning.prune_tokens`.
        size: side of the image in pixels; that of the config unless given.
        overrides: fields of the backbone's config.
    """
    from statescan.models.token_pruning import prune_tokens  # which imports every backbone that can be pruned

    if size is not None:
        overrides["image_size"] = size
    model = build_without_memory(name, **overrides)
    pruned = prune_tokens(model, prune_after, keep_ratios, alignment="hold")
    whole = image_cost(model)
    rows, columns = model.config.grid
    depth = len(pruned.blocks)
    return (
        PrunedCost((rows * columns,) * depth, whole),
        PrunedCost(tuple(pruned.config.token_counts(rows * columns, depth)), image_cost(pruned)),
    )
