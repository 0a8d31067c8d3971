"""The shell that classifiers share: encoder, residual blocks before or after their norms, mean over positions, head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from statescan.layers import Attention, SequenceDropout
from statescan.layers._residual import without_state
from statescan.models._model import Model

#: Norms by name; see `PositionNorm`.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
    "instance": nn.InstanceNorm1d,
    "group": lambda dim: nn.GroupNorm(1, dim),
}


@dataclass(frozen=True)
class ClassifierConfig:
    """What classifiers have in common.

    Arguments:
        input_dim: numbers at each position; not used with `vocab_size`.
        vocab_size: tokens, for inputs of token ids.
        classes: outputs.
        dim: channels of the residual stream.
        depth: blocks.
        norm: a kind of `PositionNorm`.
        prenorm: norms before the mixers; otherwise after the sums.
        dropout: of the mixers and of what they add.
        tied_dropout: one mask for all positions.
        retrieval: classify pairs: the batch's first half holds the first sequences, its second half the second.
        layout: names of published files: ``backbone`` (the training repository; with `prenorm` it has a norm after the
            last block) or ``example`` (its one-file example, which has none).
    """

    input_dim: int = 1
    vocab_size: int | None = None
    classes: int = 10
    dim: int = 128
    depth: int = 4
    norm: str = "layer"
    prenorm: bool = True
    dropout: float = 0.0
    tied_dropout: bool = False
    retrieval: bool = False
    layout: str = "backbone"

    def __post_init__(self) -> None:
        for name in ("input_dim", "classes", "dim", "depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        if self.norm not in NORMS:
            raise ValueError(f"norm: unknown {self.norm!r}; known: {', '.join(NORMS)}")
        if self.layout not in ("backbone", "example"):
            raise ValueError(f"layout: unknown {self.layout!r}; known: backbone, example")

    @property
    def final_norm(self) -> bool:
        """Whether a norm follows the last block."""
        return self.prenorm and self.layout == "backbone"


class PositionNorm(nn.Module):
    """A norm of (batch, positions…, dim) that leaves padded positions out.

    Arguments:
        kind: ``layer`` (over channels), ``batch`` (over batch and positions, a channel by itself), ``instance`` (over
            positions, a channel by itself, without weights) or ``group`` (over positions and channels).
        dim: channels, the last axis.
    """

    def __init__(self, kind: str, dim: int):
        super().__init__()
        self.norm: nn.Module = NORMS[kind](dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (batch, positions…, dim) and which positions count (batch, positions…), to the shape of x."""
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)
        normed = torch.zeros_like(x)
        if isinstance(self.norm, (nn.InstanceNorm1d, nn.GroupNorm)):
            if valid is None:
                return self.norm(x.flatten(1, -2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
            for row, counts in enumerate(valid):
                normed[row, counts] = self.norm(x[row, counts].transpose(0, 1)[None])[0].transpose(0, 1)
            return normed
        if valid is None or not self.training:
            return self.norm(x.flatten(0, -2)).view(x.shape)
        normed[valid] = self.norm(x[valid])
        return normed


class ClassifierBlock(nn.Module):
    """x += dropout(mixer(norm(x))), or x = norm(x + dropout(mixer(x))).

    Arguments:
        mixer: from (batch, positions…, dim) to the same shape, or that and a state.
        norm: a `PositionNorm`.
        prenorm: the first form.
        dropout: a module.
    """

    def __init__(self, mixer: nn.Module, norm: nn.Module, dropout: nn.Module, *, prenorm: bool):
        super().__init__()
        self.mixer, self.norm, self.dropout, self.prenorm = mixer, norm, dropout, prenorm

    def forward(self, x: Tensor, valid: Tensor | None, **options: Any) -> Tensor:
        """x (batch, positions…, dim); positions that do not count reach no others."""
        mixed = self.norm(x, valid) if self.prenorm else x
        if valid is not None:
            mixed = mixed * valid[..., None]
            if isinstance(self.mixer, Attention) and not self.mixer.causal:
                options["valid"] = valid
        out = self.mixer(mixed, **(without_state(self.mixer, False) | options))
        x = x + self.dropout(out[0] if isinstance(out, tuple) else out)
        return x if self.prenorm else self.norm(x, valid)


class Classifier(Model):
    """Encoder, blocks, mean over the positions, linear head.

    Arguments:
        config: a `ClassifierConfig`.
        mixers: one a block.
    """

    #: Keywords that every mixer is called with.
    mixer_options: ClassVar[dict[str, Any]] = {}
    #: Whether the mixers take a `rate`.
    resamples: ClassVar[bool] = False

    def __init__(self, config: Any, mixers: list[nn.Module]):
        super().__init__(config)
        self.encoder: nn.Module = (
            nn.Linear(config.input_dim, config.dim)
            if config.vocab_size is None
            else nn.Embedding(config.vocab_size, config.dim)
        )
        self.blocks = nn.ModuleList(
            ClassifierBlock(
                mixer,
                PositionNorm(config.norm, config.dim),
                SequenceDropout(config.dropout, tied=config.tied_dropout),
                prenorm=config.prenorm,
            )
            for mixer in mixers
        )
        self.norm = PositionNorm(config.norm, config.dim) if config.final_norm else None
        # Pairs are compared by their vectors, the difference and the product.
        self.comparison = nn.Linear(4 * config.dim, config.dim) if getattr(config, "retrieval", False) else None
        self.decoder = nn.Linear(config.dim, config.classes)

    def hidden(self, x: Tensor, *, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """The stream after the last block (batch, positions…, dim); arguments as `forward`."""
        valid = self._valid(x, lengths)
        if rate != 1.0 and not self.resamples:
            raise ValueError(f"rate: this model's mixers take inputs at one rate only, got {rate}")
        options = self.mixer_options | ({} if rate == 1.0 else {"rate": rate})
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x, valid, **options)
        return x if self.norm is None else self.norm(x, valid)

    def forward(self, x: Tensor, *, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Scores of the classes (batch, classes); of pairs (batch / 2, classes).

        Arguments:
            x: (batch, length, input_dim), or token ids (batch, length) where the config has a `vocab_size`.
            lengths: (batch,), where sequences are padded at the end: outputs are those of each without its padding.
            rate: step sizes are multiplied by it: 2 for inputs sampled half as often as in training.
        """
        hidden = self.hidden(x, lengths=lengths, rate=rate)
        if lengths is None:
            return self.answer(hidden.flatten(1, -2).mean(1))
        counted = hidden * self._valid(x, lengths)[..., None]  # type: ignore[index]
        return self.answer(counted.sum(1) / lengths[:, None].to(counted))

    def answer(self, pooled: Tensor) -> Tensor:
        """Scores of pooled vectors (batch, dim)."""
        if self.comparison is None:
            return self.decoder(pooled)
        if pooled.shape[0] % 2:
            raise ValueError(f"x: retrieval compares halves of the batch, got an odd batch of {pooled.shape[0]}")
        one, two = pooled.chunk(2)
        features = torch.cat([one, two, one - two, one * two], dim=-1)
        return self.decoder(nn.functional.gelu(self.comparison(features)))

    def _valid(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        tokens = self.config.vocab_size is not None
        if tokens and (x.ndim != 2 or x.is_floating_point()):
            raise ValueError(f"x: token ids (batch, length), got {x.dtype} of shape {tuple(x.shape)}")
        if not tokens and (x.ndim < 3 or x.shape[-1] != self.config.input_dim):
            raise ValueError(f"x: (batch, length, {self.config.input_dim}), got {tuple(x.shape)}")
        if lengths is None:
            return None
        if not tokens and x.ndim != 3:
            raise ValueError("lengths: only sequences are padded; inputs of several axes are not")
        if lengths.shape != x.shape[:1]:
            raise ValueError(f"lengths: one for each of {x.shape[0]} sequences, got {tuple(lengths.shape)}")
        least, most = (int(v) for v in lengths.aminmax()) if lengths.numel() else (1, 1)
        if least < 1 or most > x.shape[1]:
            raise ValueError(f"lengths: between 1 and {x.shape[1]}, got {least} to {most}")
        return torch.arange(x.shape[1], device=x.device) < lengths[:, None].to(x.device)
