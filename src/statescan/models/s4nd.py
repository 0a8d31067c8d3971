"""S4ND classifiers of images and video: state-space convolutions over several axes. Nguyen et al. 2022, arXiv 2210.06583.

Peculiar: step sizes of 0.1 to 1, for axes are short; `rate` is the training resolution over the input's, so one model
reads any resolution, without aliasing if it has a `bandlimit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from statescan.layers import S4ND
from statescan.models import s4
from statescan.models._classifier import Classifier
from statescan.models._registry import Family, Tensors
from statescan.models._s4_names import s4nd_from_published, s4nd_to_published


@dataclass(frozen=True)
class S4NDConfig(s4.S4Config):
    """An S4ND classifier; the layer's fields are those of `layers.S4ND` and its kernels."""

    input_dim: int = 3
    axes: int = 2
    bidirectional: bool = True
    max_length: int | tuple[int, ...] | None = None  # type: ignore[assignment]
    tensor_rank: int = 1
    dt_min: float = 0.1
    dt_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size is not None:
            raise ValueError("vocab_size: images have channels, not tokens; give input_dim")


def build_layer(config: Any) -> S4ND:
    """The layer of a config."""
    options = {name: getattr(config, name) for name in (*s4.LAYER_FIELDS, "axes", "tensor_rank")}
    return S4ND(config.dim, linear=False, **options)


class S4NDClassifier(Classifier):
    """Depth blocks of `layers.S4ND` between a linear encoder and a linear head on the mean over positions.

    Arguments:
        config: an `S4NDConfig`.
    """

    family = "s4nd"
    undecayed = s4.UNDECAYED
    resamples = True

    def __init__(self, config: S4NDConfig):
        super().__init__(config, [build_layer(config) for _ in range(config.depth)])

    def forward(self, x: Tensor, *, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Scores of the classes (batch, classes).

        Arguments:
            x: (batch, length of each axis…, input_dim).
            lengths: not supported: images are not padded.
            rate: step sizes are multiplied by it: 0.5 for images of twice the training resolution.
        """
        if lengths is not None:
            raise ValueError("lengths: only sequences are padded; inputs of several axes are not")
        if x.ndim != self.config.axes + 2:
            raise ValueError(f"x: (batch, {self.config.axes} axes, {self.config.input_dim}), got {tuple(x.shape)}")
        return super().forward(x, rate=rate)


def _from_layer(tensors: Tensors, config: Any) -> Tensors:
    return s4nd_from_published(tensors)


def _to_layer(tensors: Tensors, config: Any) -> Tensors:
    return s4nd_to_published(tensors)


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A classifier's tensors under our names."""
    return s4.from_published(tensors, config, _from_layer)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    return s4.to_published(tensors, config, _to_layer)


VARIANTS: dict[str, dict[str, Any]] = {
    "s4nd_tiny": dict(dim=32, depth=2, state_dim=8, kernel="diagonal", initialisation="diag-lin", discretization="zoh"),
    "s4nd_cifar": dict(depth=6, dim=512, copies=1, dropout=0.1, tied_dropout=True, max_length=(32, 32)),
}

FAMILY = Family("s4nd", S4NDConfig, S4NDClassifier, VARIANTS, from_published, to_published)
