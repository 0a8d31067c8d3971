"""Published tensor names and ours as a table of patterns, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from statescan.models._registry import Tensors


@dataclass(frozen=True)
class Reshape:
    """A change of a tensor's form between published and ours, and the way back."""

    from_published: Callable[[Tensor], Tensor]
    to_published: Callable[[Tensor], Tensor]


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)


def _kernel_1x1(tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None]


def _kernel_1(tensor: Tensor) -> Tensor:
    return tensor[:, :, None]


#: A 1 x 1 convolution's kernel (out, in, 1, 1), for us a matrix (out, in); and the same of one axis (out, in, 1).
POINTWISE = Reshape(_matrix, _kernel_1x1)
POINTWISE_1D = Reshape(_matrix, _kernel_1)
#: A causal depthwise convolution's kernel (channels, 1, taps), for us (channels, taps).
CAUSAL = Reshape(lambda tensor: tensor.squeeze(1), lambda tensor: tensor.unsqueeze(1))

#: A published pattern, ours, and how the tensor changes its form if it does. ``{}`` stands for a number between dots,
#: ``*`` at the end for any rest; the same in both.
Rule = tuple[str, str] | tuple[str, str, Reshape]


class Names:
    """A table of rules; the first one that fits a name is applied.

    Arguments:
        rules: pairs of patterns (published, ours), with a `Reshape` third where the tensor's form changes:
            ``("layers.{}.blocks.{}.op.in_proj.weight", "stages.{}.blocks.{}.mixer.input_projection.weight")``.
    """

    def __init__(self, rules: Sequence[Rule]):
        forward, backward = [], []
        for published, ours, *reshape in rules:
            form = reshape[0] if reshape else None
            forward.append((_expression(published), _template(ours), form.from_published if form else None))  # type: ignore[union-attr]
            backward.append((_expression(ours), _template(published), form.to_published if form else None))  # type: ignore[union-attr]
        self._forward, self._backward = forward, backward

    def from_published(self, tensors: Tensors, config: Any = None) -> Tensors:
        """Our names; one that no rule fits keeps its own, and is refused when the tensors are loaded."""
        return _apply(self._forward, tensors)

    def to_published(self, tensors: Tensors, config: Any = None) -> Tensors:
        """The inverse."""
        return _apply(self._backward, tensors)


def prefixed(rules: Sequence[Rule], published: str, ours: str) -> list[Rule]:
    """Rules of a part, for where it stands in a whole."""
    return [(published + rule[0], ours + rule[1], *rule[2:]) for rule in rules]  # type: ignore[misc]


def _apply(table: list[tuple[re.Pattern[str], str, Any]], tensors: Tensors) -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        for expression, template, reshape in table:
            found = expression.fullmatch(name)
            if found is not None:
                name = template.format(*found.groups())
                tensor = tensor if reshape is None else reshape(tensor)
                break
        out[name] = tensor
    return out


def _expression(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(re.escape("{}"), r"(\d+)")
    if escaped.endswith(re.escape("*")):
        escaped = escaped.removesuffix(re.escape("*")) + "(.+)"
    return re.compile(escaped)


def _template(pattern: str) -> str:
    return pattern.removesuffix("*") + "{}" if pattern.endswith("*") else pattern
