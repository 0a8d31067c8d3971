"""Which tokens matter, and which are kept. Zhan et al. 2024, "Exploring Token Pruning in Vision State Space Models", arXiv
2409.18962, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

#: How the channels of a token's output become its importance.
ImportanceRule = Literal["clip", "sum", "l1", "l2"]


def token_importance(y: Tensor, rule: ImportanceRule = "clip") -> Tensor:
    """Importance of tokens (batch, length) by a mixer's output y (batch, length, channels) before its last projection.

    ``clip``, the method's: the sum over channels of max(0, y). Its ablations: ``sum``, ``l1`` and ``l2``.

    Raises:
        ValueError: an unknown rule.
    """
    if rule == "clip":
        return y.clamp(min=0).sum(-1)
    if rule == "sum":
        return y.sum(-1)
    if rule == "l1":
        return y.abs().sum(-1)
    if rule == "l2":
        return y.square().sum(-1).sqrt()
    raise ValueError(f"importance: unknown {rule!r}; known: {', '.join(get_args(ImportanceRule))}")


def kept_patches(patches: int, keep_ratio: float, *, middle: bool = False) -> int:
    """How many of so many patches are kept: the ratio of them, rounded up.

    With `middle`, as released: the number of kept patches and one class token is made odd, so that it has a middle.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    if not 0.0 < keep_ratio <= 1.0:
        raise ValueError(f"keep_ratio: in (0, 1], got {keep_ratio}")
    if keep_ratio == 1.0:
        return patches
    count = math.ceil(keep_ratio * patches)
    if middle:
        count += count % 2 == 0
        count -= 1
    return max(1, min(count, patches))


@dataclass(frozen=True)
class KeptTokens:
    """Which tokens of a longer sequence are left.

    Arguments:
        positions: (batch, length) int64, where they stood in it.
        classes: (batch, class tokens) int64, where its class tokens stand among those left.
    """

    positions: Tensor
    classes: Tensor

    @classmethod
    def whole(cls, batch: int, length: int, classes: Sequence[int], device: torch.device | None = None) -> KeptTokens:
        """All of them, class tokens at `classes`."""
        positions = torch.arange(length, device=device)
        indices = torch.tensor(list(classes), dtype=torch.int64, device=device)
        return cls(positions.expand(batch, -1), indices.expand(batch, -1))

    @property
    def length(self) -> int:
        """How many there are, of each image."""
        return self.positions.shape[1]

    def take(self, index: Tensor) -> KeptTokens:
        """Those at `index` (batch, as many or fewer), in its order; class tokens must be among them."""
        classes = (
            (index[:, None] == self.classes[:, :, None]).long().argmax(2) if self.classes.shape[1] else self.classes
        )
        return KeptTokens(self.positions.gather(1, index), classes)

    def flip(self) -> KeptTokens:
        """The same, read backwards."""
        return KeptTokens(self.positions.flip(1), self.length - 1 - self.classes)

    def arranged(self, places: Sequence[int]) -> Tensor:
        """Indices (batch, length) that put class tokens at `places` and leave them and the patches in their order."""
        batch, length = self.positions.shape
        marks = torch.zeros(batch, length, dtype=torch.int64, device=self.positions.device)
        order = marks.scatter(1, self.classes, 1).argsort(dim=1, stable=True)  # patches first
        patches, last = order.split([length - len(places), len(places)], dim=1)
        others = [place for place in range(length) if place not in places]
        target = torch.tensor([*others, *places], device=order.device).argsort()
        return torch.cat([patches, last], 1)[:, target]


def select_tokens(
    importance: Tensor, keep_ratio: float, classes: Tensor | None = None, *, middle: bool = False
) -> Tensor:
    """Indices (batch, kept) of the most important tokens in their order; class tokens are always among them.

    Of tokens of one importance the first ones are kept.

    Arguments:
        importance: (batch, length).
        keep_ratio: part of the patches that is kept, in (0, 1]; their number is rounded up.
        classes: (batch, class tokens) int64, where class tokens stand; None for none.
        middle: there is one class token, and it is put into the middle of those kept; see `kept_patches`.

    Raises:
        ValueError: a ratio outside (0, 1], or `middle` without one class token.
    """
    batch, length = importance.shape
    if classes is None:
        classes = torch.zeros(batch, 0, dtype=torch.int64, device=importance.device)
    count = classes.shape[1]
    if middle and count != 1:
        raise ValueError(f"middle: for sequences with one class token, got {count}")
    kept = kept_patches(length - count, keep_ratio, middle=middle) + count
    ranked = importance.scatter(1, classes, math.inf).argsort(dim=1, descending=True, stable=True)
    best = ranked[:, :kept].sort(1).values
    if not middle:
        return best
    whole = KeptTokens(torch.arange(length, device=best.device).expand(batch, -1), classes)
    return best.gather(1, whole.take(best).arranged([(kept - 1) // 2]))
