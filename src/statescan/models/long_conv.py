"""Classifiers of long convolutions whose kernels are learned tap by tap. Fu et al. 2023, arXiv 2302.06646.

The blocks of S4's classifiers around `layers.LongConv`. Peculiar: kernels are as long as the sequences, so their parameters
grow with the length; a soft threshold keeps them sparse, without which they trail state-space kernels. They take no weight
decay, and want a learning rate of their own, 0.0001 to 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from statescan.layers import LongConv
from statescan.models import s4
from statescan.models._classifier import Classifier, ClassifierConfig
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class LongConvConfig(ClassifierConfig):
    """A long-convolution classifier; the layer's fields are those of `layers.LongConv` and its kernel.

    Arguments:
        pooling: what the head reads: the ``mean`` over positions, or the ``last`` one.
    """

    max_length: int = 1024
    channels: int = 1
    bidirectional: bool = False
    activation: str = "gelu"
    output: str | None = "glu"
    kernel_dropout: float = 0.0
    threshold: float = 0.001
    smoothing: str | None = None
    window: int = 7
    initialisation: str = "random"
    butterfly: str | None = None
    butterfly_dropout: float = 0.0
    pooling: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("mean", "last"):
            raise ValueError(f"pooling: unknown {self.pooling!r}; known: mean, last")


#: Fields of a config that the layer takes, under the same names.
LAYER_FIELDS = (
    *("max_length", "channels", "bidirectional", "activation", "output", "dropout", "tied_dropout"),
    *("kernel_dropout", "threshold", "smoothing", "window", "initialisation", "butterfly", "butterfly_dropout"),
)


class LongConvClassifier(Classifier):
    """Depth blocks of `layers.LongConv` between an encoder and a linear head.

    Arguments:
        config: a `LongConvConfig`.
    """

    family = "long_conv"
    undecayed = (".D", "kernel.taps", "_transform.matrix_")
    resamples = False
    mixer_options: ClassVar[dict[str, Any]] = {"return_state": False}

    def __init__(self, config: LongConvConfig):
        options = {name: getattr(config, name) for name in LAYER_FIELDS}
        super().__init__(config, [LongConv(config.dim, **options) for _ in range(config.depth)])

    def forward(self, x: Tensor, *, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Scores of the classes (batch, classes).

        Arguments:
            x: (batch, length, input_dim), or token ids (batch, length) where the config has a `vocab_size`.
            lengths: (batch,), where sequences are padded at the end: outputs are those of each without its padding.
            rate: 1; a kernel of learned taps has one rate.
        """
        if self.config.pooling == "mean":
            return super().forward(x, lengths=lengths, rate=rate)
        hidden = self.hidden(x, lengths=lengths, rate=rate)
        if lengths is None:
            return self.answer(hidden[:, -1])
        rows = torch.arange(x.shape[0], device=x.device)
        return self.answer(hidden[rows, lengths.to(x.device) - 1])


_LAYER = (
    ("kernel.kernel", "kernel.taps"),
    ("output_linear.0.", "output_projection."),
    ("block_fft_u.mat_", "input_transform.matrix_"),
    ("block_fft_k.mat_", "kernel_transform.matrix_"),
)


def layer_from_published(tensors: Tensors, config: Any = None) -> Tensors:
    """The tensors of the published layer under the names of `layers.LongConv`."""
    ours = {}
    for name, tensor in tensors.items():
        for theirs, mine in (*_LAYER, ("output_linear.", "output_projection.")):
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        ours[name] = tensor
    return ours


def layer_to_published(tensors: Tensors, config: Any = None) -> Tensors:
    """The inverse of `layer_from_published`."""
    published = {}
    for name, tensor in tensors.items():
        for theirs, mine in _LAYER:
            if name.startswith(mine):
                name = theirs + name.removeprefix(mine)
                break
        published[name] = tensor
    return published


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Published names to ours."""
    return s4.from_published(tensors, config, layer_from_published)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    return s4.to_published(tensors, config, layer_to_published)


#: What the published configurations of the Long Range Arena share.
_LRA: dict[str, Any] = dict(depth=6, dim=256, norm="batch", channels=2, kernel_dropout=0.2, tied_dropout=True)
_PATH: dict[str, Any] = dict(_LRA, bidirectional=True, threshold=0.001, kernel_dropout=0.3, classes=2, pooling="last")

VARIANTS: dict[str, dict[str, Any]] = {
    "long_conv_tiny": dict(dim=64, depth=2, max_length=256),
    "long_conv_lra_listops": dict(
        _LRA, depth=8, dim=128, max_length=2048, threshold=0.002, prenorm=False, vocab_size=18
    ),
    "long_conv_lra_text": dict(_LRA, max_length=4096, threshold=0.003, vocab_size=135, classes=2),
    "long_conv_lra_retrieval": dict(
        _LRA, max_length=4000, threshold=0.004, kernel_dropout=0.1, vocab_size=98, classes=2, retrieval=True
    ),
    "long_conv_lra_image": dict(
        _LRA, dim=512, max_length=1024, threshold=0.003, norm="layer", prenorm=False, dropout=0.1
    ),
    "long_conv_lra_pathfinder": dict(_PATH, max_length=1024),
    "long_conv_lra_pathx": dict(_PATH, max_length=16384, pooling="mean"),
}

FAMILY = Family("long_conv", LongConvConfig, LongConvClassifier, VARIANTS, from_published, to_published)
