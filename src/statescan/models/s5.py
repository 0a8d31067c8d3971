"""S5: classifiers of sequences, and of pairs of documents. Smith et al. 2023, arXiv 2208.04933.

Encoder (one linear layer), residual layers of one system each with many inputs and outputs, mean over time, linear
decoder. Peculiar: batch norm over batch and time; GELU in its tanh form; dropout masks that are the same at all times;
the state matrix, step sizes and B train without weight decay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statescan.layers import S5, S5Block
from statescan.layers._s5 import Discretization, OutputInit, S5Activation, initialise_dense
from statescan.models._model import Model
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class S5Config:
    """An S5 classifier; the system's fields are those of `layers.S5`, the layer's those of `layers.S5Block`.

    Arguments:
        input_dim: channels of the input; with tokens it is not used.
        vocab_size: the input is token ids below it, taken in as one-hot vectors; None: the input is numbers.
        classes: outputs.
        dim: channels of the residual stream.
        depth: layers.
        prenorm: norm before the system; else after the residual sum.
        pool: ``mean`` over time, or the ``last`` position.
        retrieval: classify pairs: the batch's first half holds the first documents, its second half the second.
        separate_padding: with lengths, nothing of the padding enters a sequence's states. The published code, which
            scans the padding from the end too, has False.
    """

    input_dim: int = 1
    vocab_size: int | None = None
    classes: int = 10
    dim: int = 128
    depth: int = 6
    state_dim: int = 64
    blocks: int = 1
    activation: S5Activation = "half_glu1"
    norm: Literal["batch", "layer"] = "batch"
    prenorm: bool = True
    norm_momentum: float = 0.95
    dropout: float = 0.0
    bidirectional: bool = True
    discretization: Discretization = "zoh"
    conjugate_symmetry: bool = True
    clip_eigenvalues: bool = False
    output_init: OutputInit = "lecun_normal"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    step_rescale: float = 1.0
    pool: Literal["mean", "last"] = "mean"
    retrieval: bool = False
    separate_padding: bool = False

    def __post_init__(self) -> None:
        for name in ("input_dim", "classes", "dim", "depth", "state_dim", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        if self.pool not in ("mean", "last"):
            raise ValueError(f"pool: unknown {self.pool!r}; known: mean, last")


def build_system(config: Any) -> S5:
    """The system of one layer of a config."""
    return S5(
        config.dim,
        state_dim=config.state_dim,
        blocks=config.blocks,
        discretization=config.discretization,
        bidirectional=config.bidirectional,
        conjugate_symmetry=config.conjugate_symmetry,
        clip_eigenvalues=config.clip_eigenvalues,
        output_init=config.output_init,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        step_rescale=config.step_rescale,
    )


class S5Classifier(Model):
    """Encoder, `depth` of `layers.S5Block`, pooling and decoder."""

    family = "s5"
    undecayed = ("Lambda_", "log_step", ".D", "mixer.B")

    def __init__(self, config: S5Config):
        super().__init__(config)
        dim = config.dim
        self.encoder = initialise_dense(nn.Linear(config.vocab_size or config.input_dim, dim))
        self.layers = nn.ModuleList(
            S5Block(
                build_system(config),
                activation=config.activation,
                norm=config.norm,
                norm_at=("before",) if config.prenorm else ("after",),
                norm_momentum=config.norm_momentum,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        # Documents are compared by their vectors, the difference and the product.
        self.comparison = initialise_dense(nn.Linear(4 * dim, dim)) if config.retrieval else None
        self.decoder = initialise_dense(nn.Linear(dim, config.classes))

    def forward(self, x: Tensor, *, lengths: Tensor | None = None, intervals: Tensor | None = None) -> Tensor:
        """Logits (batch, classes) of x (batch, length, input_dim), or token ids (batch, length).

        With `retrieval`, x has the first documents in its first half and the logits are (batch / 2, classes).

        Arguments:
            x: the sequences, padded at their ends.
            lengths: (batch,) whole numbers, where they end; the mean is taken, or the last position found, before it.
            intervals: (batch, length), time since the observation before; see `layers.S5`.

        Raises:
            ValueError: shapes or lengths that do not fit.
        """
        hidden = self.encode(x, lengths=lengths, intervals=intervals)
        pooled = _pool(hidden, lengths, self.config.pool)
        if self.comparison is not None:
            if pooled.shape[0] % 2:
                raise ValueError(f"x: retrieval compares halves of the batch, got an odd batch of {pooled.shape[0]}")
            one, two = pooled.chunk(2)
            features = torch.cat([one, two, one - two, one * two], dim=-1)
            pooled = F.gelu(self.comparison(features), approximate="tanh")
        return self.decoder(pooled)

    def encode(self, x: Tensor, *, lengths: Tensor | None = None, intervals: Tensor | None = None) -> Tensor:
        """The residual stream after the last layer, (batch, length, dim); arguments as of `forward`."""
        hidden = self.encoder(self._take_in(x))
        resets = None
        if lengths is not None:
            _check_lengths(lengths, x)
            if self.config.separate_padding:
                resets = torch.arange(x.shape[1], device=x.device) == lengths[:, None]
        for layer in self.layers:
            hidden, _ = layer(hidden, resets=resets, intervals=intervals)
        return hidden

    def rescale_steps(self, factor: float) -> None:
        """Multiply all step sizes: 2 for input at half the rate of training, without retraining (section 6.2)."""
        if factor <= 0:
            raise ValueError(f"factor: above 0, got {factor}")
        for layer in self.layers:
            layer.mixer.step_rescale *= factor  # type: ignore[union-attr, operator]

    def _take_in(self, x: Tensor) -> Tensor:
        config = self.config
        if config.vocab_size:
            if x.ndim != 2 or x.is_floating_point():
                raise ValueError(f"x: expected token ids (batch, length), got {x.dtype} {tuple(x.shape)}")
            return F.one_hot(x, config.vocab_size).to(self.decoder.weight.dtype)
        if x.ndim != 3 or x.shape[2] != config.input_dim:
            raise ValueError(f"x: expected (batch, length, {config.input_dim}), got {tuple(x.shape)}")
        return x


def _check_lengths(lengths: Tensor, x: Tensor) -> None:
    if lengths.shape != x.shape[:1] or lengths.is_floating_point():
        raise ValueError(f"lengths: expected {x.shape[0]} whole numbers, got {lengths.dtype} {tuple(lengths.shape)}")
    if lengths.numel() and not (int(lengths.min()) >= 1 and int(lengths.max()) <= x.shape[1]):
        raise ValueError(f"lengths: between 1 and {x.shape[1]}, got {int(lengths.min())} to {int(lengths.max())}")


def _pool(hidden: Tensor, lengths: Tensor | None, how: str) -> Tensor:
    if lengths is None:
        return hidden.mean(dim=1) if how == "mean" else hidden[:, -1]
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return hidden.masked_fill(~inside[..., None], 0).sum(dim=1) / lengths[:, None].to(hidden.dtype)


#: Parts of published names, to ours, in a layer.
_LAYER_NAMES = (("seq.", "mixer."), ("out1.", "output_projection."), ("out2.", "gate_projection."), ("norm.", "norm."))


def layer_from_published(tensors: Tensors) -> Tensors:
    """A layer's tensors under our names: (in, out) kernels are turned, C1 and C2 joined, the step's last axis dropped."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        for theirs, mine in _LAYER_NAMES:
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        if name == "mixer.log_step":
            tensor = tensor[:, 0]
        name, tensor = dense_from_published(name, tensor)
        ours[name.replace("norm.scale", "norm.weight")] = tensor
    one, two = ours.pop("mixer.C1", None), ours.pop("mixer.C2", None)
    if one is not None and two is not None:
        ours["mixer.C"] = torch.cat([one, two], dim=1)
    return ours


def layer_to_published(tensors: Tensors, *, split_C: bool) -> Tensors:
    """The inverse of `layer_from_published`; `split_C` says whether C is published as C1 and C2."""
    published: Tensors = {}
    for name, tensor in tensors.items():
        if name == "mixer.log_step":
            tensor = tensor[:, None]
        name, tensor = dense_to_published(name.replace("norm.weight", "norm.scale"), tensor)
        for theirs, mine in _LAYER_NAMES:
            if name.startswith(mine):
                name = theirs + name.removeprefix(mine)
                break
        if name == "seq.C" and split_C:
            published["seq.C1"], published["seq.C2"] = tensor.chunk(2, dim=1)
        else:
            published[name] = tensor
    return published


def dense_from_published(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A dense layer's ``kernel`` (in, out) as our ``weight`` (out, in); other tensors as they are."""
    return (name.removesuffix("kernel") + "weight", tensor.T) if name.endswith(".kernel") else (name, tensor)


def dense_to_published(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The inverse of `dense_from_published`; a norm's weight is to be renamed before."""
    return (name.removesuffix("weight") + "kernel", tensor.T) if name.endswith(".weight") else (name, tensor)


def group_layers(tensors: Tensors, prefix: str) -> tuple[dict[str, Tensors], Tensors]:
    """Tensors under ``{prefix}0.``, ``{prefix}1.``, … by the number, and the others."""
    layers: dict[str, Tensors] = {}
    others: Tensors = {}
    for name, tensor in tensors.items():
        number, dot, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and number.isdigit() and dot:
            layers.setdefault(number, {})[rest] = tensor
        else:
            others[name] = tensor
    return layers, others


def splits_C(config: Any) -> bool:
    """Whether published tensors hold a bidirectional system's C as two."""
    return config.bidirectional and config.output_init != "complex_normal"


def _decoder_names(config: S5Config) -> dict[str, str]:
    """Beginnings of published names of the outer parts, to ours."""
    outer = {"encoder.encoder.": "encoder."}
    if config.retrieval:
        return outer | {"decoder.layer1.": "comparison.", "decoder.layer2.": "decoder."}
    return outer | {"decoder.": "decoder."}


def from_published(tensors: Tensors, config: S5Config) -> Tensors:
    """From lindermanlab/S5: flax's tree paths joined by dots, batch statistics among them."""
    layers, others = group_layers(tensors, "encoder.layers_")
    ours: Tensors = {}
    for number, layer in layers.items():
        ours |= {f"layers.{number}.{name}": tensor for name, tensor in layer_from_published(layer).items()}
    for name, tensor in others.items():
        for theirs, mine in _decoder_names(config).items():
            if name.startswith(theirs):
                name, tensor = dense_from_published(mine + name.removeprefix(theirs), tensor)
                break
        ours[name] = tensor
    return ours


def to_published(tensors: Tensors, config: S5Config) -> Tensors:
    """The inverse of `from_published`."""
    layers, others = group_layers(tensors, "layers.")
    published: Tensors = {}
    for name, tensor in others.items():
        for theirs, mine in _decoder_names(config).items():
            if name.startswith(mine):
                name, tensor = dense_to_published(theirs + name.removeprefix(mine), tensor)
                break
        published[name] = tensor
    for number, layer in layers.items():
        found = layer_to_published(layer, split_C=splits_C(config))
        published |= {f"encoder.layers_{number}.{name}": tensor for name, tensor in found.items()}
    return published


VARIANTS: dict[str, dict[str, Any]] = {
    "s5_tiny": dict(dim=32, depth=2, state_dim=16),
    "s5_lra_listops": dict(vocab_size=20, classes=10, dim=128, depth=8, state_dim=16, blocks=8, activation="half_glu2"),
    "s5_lra_text": dict(
        vocab_size=135, classes=2, dim=256, depth=6, state_dim=192, blocks=12, activation="half_glu2", dropout=0.1
    ),
    "s5_lra_retrieval": dict(
        vocab_size=98,
        classes=2,
        dim=128,
        depth=6,
        state_dim=256,
        blocks=16,
        output_init="trunc_standard_normal",
        retrieval=True,
    ),
    "s5_lra_image": dict(classes=10, dim=512, depth=6, state_dim=384, blocks=3, dropout=0.1, clip_eigenvalues=True),
    "s5_lra_pathfinder": dict(
        classes=2,
        dim=192,
        depth=6,
        state_dim=256,
        blocks=8,
        dropout=0.05,
        norm_momentum=0.9,
        output_init="trunc_standard_normal",
    ),
    "s5_lra_pathx": dict(
        classes=2,
        dim=128,
        depth=6,
        state_dim=256,
        blocks=16,
        norm_momentum=0.9,
        dt_min=1e-4,
        output_init="complex_normal",
    ),
    "s5_speech": dict(classes=35, dim=96, depth=6, state_dim=128, blocks=16, dropout=0.1),
}

FAMILY = Family("s5", S5Config, S5Classifier, VARIANTS, from_published, to_published)
