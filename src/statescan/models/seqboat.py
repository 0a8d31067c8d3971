"""SeqBoat: classifiers of sequences that call attention where they need it. Ren et al. 2023, arXiv 2306.11197.

A linear encoder, layers of `layers.SeqBoat` without feed-forward layers, the mean over time, a linear decoder. Peculiar: the
layers end in a silu behind the residual sum; batch norm over batch and time is usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.layers import SeqBoat, SequenceNorm
from statescan.models._model import Model
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class SeqBoatConfig:
    """A SeqBoat classifier; the layers' fields are those of `layers.SeqBoat`.

    Arguments:
        input_dim: channels of the input; not used with tokens.
        vocab_size: the input is token ids below it; 0: the input is numbers.
        num_classes: outputs.
        dim: channels of the residual stream; attention has values of twice as many.
        depth: layers.
        prenorm: norm before the average, and one after the last layer; else after every layer.
    """

    input_dim: int = 3
    vocab_size: int = 0
    num_classes: int = 10
    dim: int = 512
    depth: int = 6
    qk_dim: int = 96
    ema_dim: int = 16
    window: int = 128
    bidirectional: bool = True
    truncation: int | None = None
    attention: Literal["relu2", "softmax"] = "relu2"
    position: Literal["simple", "local", "rotary"] = "simple"
    max_length: int = 1024
    norm: Literal["layer", "batch"] = "batch"
    prenorm: bool = True
    temperature: float = 1.0
    compression: Literal["always", "auto", "never"] = "always"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input_dim", "num_classes", "dim", "depth", "qk_dim", "ema_dim", "window", "max_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")


class SeqBoatClassifier(Model):
    """Encoder, `depth` of `layers.SeqBoat`, mean over time, decoder."""

    family = "seqboat"
    undecayed = ("ema.", "query_key_", "log_temperature", "position_bias")

    def __init__(self, config: SeqBoatConfig):
        super().__init__(config)
        self.encoder: nn.Module
        if config.vocab_size:
            self.encoder = nn.Embedding(config.vocab_size, config.dim)
        else:
            self.encoder = nn.Linear(config.input_dim, config.dim)
        self.layers = nn.ModuleList(
            SeqBoat(
                config.dim,
                qk_dim=config.qk_dim,
                ema_dim=config.ema_dim,
                window=config.window,
                bidirectional=config.bidirectional,
                truncation=config.truncation,
                attention=config.attention,
                position=config.position,
                max_length=config.max_length,
                norm=config.norm,
                prenorm=config.prenorm,
                temperature=config.temperature,
                compression=config.compression,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.norm = SequenceNorm(config.norm, config.dim) if config.prenorm else None
        self.decoder = nn.Linear(config.dim, config.num_classes)
        for module in (self.encoder, self.decoder):
            nn.init.trunc_normal_(module.weight, 0.0, 0.02, -0.04, 0.04)  # type: ignore[arg-type]
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Logits (batch, num_classes) of x (batch, length, input_dim), or token ids (batch, length).

        Arguments:
            x: the sequences, padded at their ends.
            lengths: (batch,) whole numbers, where they end: nothing behind is averaged, attended to or pooled. (In
                training, batch norm takes its statistics from the padding too.)

        Raises:
            TypeError, ValueError: an input or lengths that do not fit.
        """
        self._check(x, lengths)
        hidden = self.encoder(x)
        padding = None
        if lengths is not None:
            padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        for layer in self.layers:
            hidden, _ = layer(hidden, padding=padding)
        if self.norm is not None:
            hidden = self.norm(hidden)
        if padding is None or lengths is None:
            return self.decoder(hidden.mean(dim=1))
        pooled = hidden.masked_fill(padding[..., None], 0.0).sum(dim=1) / lengths[:, None].to(hidden.dtype)
        return self.decoder(pooled)

    def _check(self, x: Tensor, lengths: Tensor | None) -> None:
        if self.config.vocab_size:
            if x.ndim != 2 or x.is_floating_point():
                raise ValueError(f"x: token ids (batch, length), got {x.dtype} of shape {tuple(x.shape)}")
        elif x.ndim != 3 or x.shape[-1] != self.config.input_dim:
            raise ValueError(f"x: expected (batch, length, {self.config.input_dim}), got {tuple(x.shape)}")
        if x.shape[1] == 0:
            raise ValueError("x: a sequence to classify has at least one position")
        if lengths is None:
            return
        if lengths.is_floating_point() or lengths.shape != x.shape[:1]:
            raise ValueError(f"lengths: expected whole numbers ({x.shape[0]},), got {tuple(lengths.shape)}")
        if lengths.device.type == "cpu" and lengths.numel():
            low, high = torch.aminmax(lengths)
            if low < 1 or high > x.shape[1]:
                raise ValueError(f"lengths: from 1 to {x.shape[1]}, got {int(low)} to {int(high)}")


_LAYER = (
    ("gamma", "query_key_scale"),
    ("beta", "query_key_shift"),
    ("ssm.", "ema."),
    ("move.", "ema."),  # the name in the authors' fairseq code
    ("rel_pos_bias.rel_pos_bias", "position_bias"),
    ("q_router.temp", "log_temperature"),
    ("mx_proj.", "attention_projection."),
    ("hx_proj.", "input_projection."),
    ("h_proj.", "output_projection."),
)
#: Stored with a last axis of one.
_COLUMNS = ("ema.delta", "ema.alpha", "ema.beta")


def layer_from_published(tensors: Tensors) -> Tensors:
    """A layer's tensors under our names."""
    ours = {}
    for name, tensor in tensors.items():
        name = next((mine + name.removeprefix(theirs) for theirs, mine in _LAYER if name.startswith(theirs)), name)
        ours[name] = tensor.squeeze(-1) if name in _COLUMNS and tensor.ndim == 3 else tensor
    return ours


def layer_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `layer_from_published`."""
    published = {}
    for name, tensor in tensors.items():
        tensor = tensor.unsqueeze(-1) if name in _COLUMNS else tensor
        found = (theirs + name.removeprefix(mine) for theirs, mine in _LAYER if name.startswith(mine))
        published[next(found, name)] = tensor
    return published


def _split(name: str, prefix: str) -> tuple[str, str] | None:
    if not name.startswith(prefix):
        return None
    index, rest = name.removeprefix(prefix).split(".", 1)
    return index, rest


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Published names to ours."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        parts = _split(name, "seq_layers.")
        if parts is None:
            ours[name.replace("final_norm.", "norm.")] = tensor
        else:
            for rest, value in layer_from_published({parts[1]: tensor}).items():
                ours[f"layers.{parts[0]}.{rest}"] = value
    return ours


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to the published ones."""
    published: Tensors = {}
    for name, tensor in tensors.items():
        parts = _split(name, "layers.")
        if parts is None:
            published[f"final_{name}" if name.startswith("norm.") else name] = tensor
        else:
            for rest, value in layer_to_published({parts[1]: tensor}).items():
                published[f"seq_layers.{parts[0]}.{rest}"] = value
    return published


VARIANTS: dict[str, dict[str, Any]] = {
    "seqboat_tiny": dict(dim=32, depth=2, qk_dim=16, ema_dim=4, window=16, max_length=256),
    "seqboat_cifar": dict(),
}

FAMILY = Family("seqboat", SeqBoatConfig, SeqBoatClassifier, VARIANTS, from_published, to_published)
