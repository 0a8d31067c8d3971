"""S4 and S4D classifiers: residual blocks of long state-space convolutions. Gu, Goel and Re 2022, arXiv 2111.00396.

S4D (Gu et al. 2022, arXiv 2206.11893) is the same model with a diagonal state matrix. Peculiar: kernels read both
directions; A, B, P and step sizes take no weight decay, and want a learning rate of at most 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from statescan.layers import S4
from statescan.models._classifier import Classifier, ClassifierConfig
from statescan.models._published import add_prefix, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models._s4_names import (
    block_from_published,
    block_to_published,
    minimal_from_published,
    minimal_to_published,
)


@dataclass(frozen=True)
class S4Config(ClassifierConfig):
    """An S4 classifier; the layer's fields are those of `layers.S4` and its kernel."""

    state_dim: int = 64
    kernel: str = "dplr"
    channels: int = 1
    bidirectional: bool = False
    max_length: int | None = None
    activation: str = "gelu"
    output: str = "glu"
    copies: int | None = None
    initialisation: str = "legs"
    discretization: str = "bilinear"
    rank: int = 1
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_tie: bool = True
    dt_transform: str = "exp"
    real_transform: str = "exp"
    imaginary_transform: str = "none"
    bandlimit: float | None = None
    trainable_B: bool = True


@dataclass(frozen=True)
class S4DConfig(S4Config):
    """An S4D classifier: `S4Config` with a diagonal kernel, S4D-Lin, zero-order hold."""

    kernel: str = "diagonal"
    initialisation: str = "diag-lin"
    discretization: str = "zoh"


#: Fields of a config that the layers take, under the same names.
LAYER_FIELDS = (
    *("state_dim", "kernel", "channels", "bidirectional", "max_length", "activation", "output", "dropout"),
    *("tied_dropout", "copies", "initialisation", "discretization", "rank", "dt_min", "dt_max", "dt_tie"),
    *("dt_transform", "real_transform", "imaginary_transform", "bandlimit", "trainable_B"),
)
#: Rates of decay, step sizes and low-rank parts, which weight decay would harm.
UNDECAYED = (".D", ".A_real", ".A_imag", ".inverse_dt", ".B", ".P")


def build_layer(config: Any) -> S4:
    """The layer of a config."""
    return S4(config.dim, **{name: getattr(config, name) for name in LAYER_FIELDS})


class S4Classifier(Classifier):
    """Depth blocks of `layers.S4` between an encoder and a linear head on the mean over positions.

    Arguments:
        config: an `S4Config`.
    """

    family = "s4"
    undecayed = UNDECAYED
    mixer_options: ClassVar[dict[str, Any]] = {"return_state": False}
    resamples = True

    def __init__(self, config: S4Config):
        super().__init__(config, [build_layer(config) for _ in range(config.depth)])


class S4DClassifier(S4Classifier):
    """`S4Classifier` with a diagonal state matrix."""

    family = "s4d"


def _minimal(config: Any) -> bool:
    return config.kernel == "diagonal" and not config.trainable_B


def layer_from_published(tensors: Tensors, config: Any) -> Tensors:
    """One layer's tensors: those of `S4Block`, or of the minimal `S4D`."""
    return (minimal_from_published if _minimal(config) else block_from_published)(tensors)


def layer_to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `layer_from_published`."""
    return (minimal_to_published if _minimal(config) else block_to_published)(tensors)


def _outer(config: Any) -> tuple[tuple[str, str], ...]:
    """Beginnings of the names of encoder and head: ours, the published ones."""
    head = "decoder.0.retrieval.classifier."
    if getattr(config, "retrieval", False):
        return ("encoder.", "encoder.0."), ("comparison.", f"{head}0."), ("decoder.", f"{head}2.")
    return ("encoder.", "encoder.0."), ("decoder.", "decoder.0.output_transform.")


def from_published(tensors: Tensors, config: Any, layer: Any = layer_from_published) -> Tensors:
    """A classifier's tensors under our names, from either layout."""
    ours: Tensors = {}
    blocks: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        head, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        if head == "s4_layers":
            blocks.setdefault(number, {})[part] = tensor
        elif head == "norms":
            ours[f"blocks.{number}.norm.norm.{part}"] = tensor
        elif head == "layers" and part.startswith("layer."):
            blocks.setdefault(number, {})[part.removeprefix("layer.")] = tensor
        elif head == "layers":
            ours[f"blocks.{number}.{part}"] = tensor
        else:
            for mine, theirs in _outer(config):
                if name.startswith(theirs):
                    name = mine + name.removeprefix(theirs)
                    break
            ours[name] = tensor
    for number, inner in blocks.items():
        ours |= add_prefix(layer(inner, config), f"blocks.{number}.mixer.")
    return ours


def to_published(tensors: Tensors, config: Any, layer: Any = layer_to_published) -> Tensors:
    """The inverse of `from_published`, in the config's layout."""
    example = config.layout == "example"
    published: Tensors = {}
    rest = tensors
    for index in range(config.depth):
        inner, rest = split_prefix(rest, f"blocks.{index}.")
        mixer, norm = split_prefix(inner, "mixer.")
        prefix = f"s4_layers.{index}." if example else f"model.layers.{index}.layer."
        published |= add_prefix(layer(mixer, config), prefix)
        for name, tensor in norm.items():
            name = f"norms.{index}.{name.removeprefix('norm.norm.')}" if example else f"model.layers.{index}.{name}"
            published[name] = tensor
    for name, tensor in rest.items():
        if not example:
            for mine, theirs in (*_outer(config), ("norm.", "model.norm.")):
                if name.startswith(mine):
                    name = theirs + name.removeprefix(mine)
                    break
        published[name] = tensor
    return published


_LRA: dict[str, Any] = dict(depth=6, dim=256, norm="batch", bidirectional=True, tied_dropout=True)
_SMALL: dict[str, Any] = dict(_LRA, state_dim=4, copies=1)
_IMAGE: dict[str, Any] = dict(_LRA, dim=512, copies=1, prenorm=False, dropout=0.1)
_PATH: dict[str, Any] = dict(_LRA, classes=2)

#: The published configurations of the Long Range Arena.
_ARENA: dict[str, dict[str, Any]] = {
    "listops": dict(_SMALL, vocab_size=18, prenorm=False),
    "text": dict(_SMALL, vocab_size=135, classes=2),
    "retrieval": dict(_SMALL, vocab_size=98, classes=2, retrieval=True),
    "image": _IMAGE,
    "pathfinder": _PATH,
    "pathx": dict(_PATH, dt_min=1e-4),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "s4_tiny": dict(dim=64, depth=2, state_dim=16),
    "s4_small": dict(dim=128, depth=4, bidirectional=True),
    "s4_speech": dict(_LRA, dim=128, copies=2, classes=35),
    **{f"s4_lra_{task}": options for task, options in _ARENA.items()},
}

VARIANTS_DIAGONAL: dict[str, dict[str, Any]] = {
    "s4d_tiny": dict(dim=64, depth=2, state_dim=16),
    "s4d_example": dict(input_dim=3, dropout=0.1, prenorm=False, layout="example", trainable_B=False),
    **{f"s4d_lra_{task}": dict(options, initialisation="diag-legs") for task, options in _ARENA.items()},
}

FAMILY = Family("s4", S4Config, S4Classifier, VARIANTS, from_published, to_published)
FAMILY_DIAGONAL = Family("s4d", S4DConfig, S4DClassifier, VARIANTS_DIAGONAL, from_published, to_published)
