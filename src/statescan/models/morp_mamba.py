"""MorpMamba: a pixel of a hyperspectral cube classified from the window around it. Ahmad et al. 2025, arXiv 2408.01372.

Peculiar: erosion and dilation of the window, over its cells and along its spectra, make the tokens; a gate from the
window's centre weights them. The published code has convolutions in place of both and a plain linear recurrence in place of
Mamba; it is here under ``morphology="conv", mixer="linear"``. What the paper describes is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import BidirectionalMamba, RMSNorm, initialise_language_model
from statescan.layers.grid import ConvolvedMorphology, Morphology
from statescan.models._model import Model
from statescan.models._names import POINTWISE, Names, Rule
from statescan.models._registry import Family


@dataclass(frozen=True)
class MorpMambaConfig:
    """A MorpMamba.

    Arguments:
        bands: channels of a cell, after a reduction if there is one.
        window: side of the square window; its pixel stands in row and column window // 2.
        num_classes: scores.
        dim: channels of the tokens.
        morphology: ``max``: greatest and smallest values; ``conv``: the convolutions of the published code.
        size: side of the structuring element, odd.
        mixer: ``mamba``: blocks of bidirectional Mamba over the tokens; ``linear``: the published code's attention of the
            spatial to the spectral tokens and its recurrence h = W_a h + W_b x + b.
        spectral: whether there are tokens along the spectrum beside those over the window (the paper's SSMM; else SMM).
        heads: of that attention.
        state_dim: of the recurrence (``linear``), or of each inner channel of Mamba.
        depth: blocks of Mamba.
        conv_kernel, expand: of Mamba.
        hidden: channels of the layer before the scores.
        dropout: of the attention's answer, or of the tokens.
    """

    bands: int = 15
    window: int = 9
    num_classes: int = 15
    dim: int = 64
    morphology: Literal["max", "conv"] = "max"
    size: int = 3
    mixer: Literal["mamba", "linear"] = "mamba"
    spectral: bool = True
    heads: int = 4
    state_dim: int = 16
    depth: int = 2
    conv_kernel: int = 4
    expand: float = 2
    hidden: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("bands", "window", "num_classes", "dim", "heads", "state_dim", "depth", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        for name, known in (("morphology", ("max", "conv")), ("mixer", ("mamba", "linear"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: unknown {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.mixer == "linear" and self.heads > self.dim:
            raise ValueError(f"heads: at most dim={self.dim}, got {self.heads}")
        if self.mixer == "linear" and not self.spectral:
            raise ValueError("spectral: mixer='linear' has the spatial tokens attend to the spectral ones, got False")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a fraction from 0 to below 1, got {self.dropout}")


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(head)) v of as many heads, without an output projection."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, inner = heads, dim // heads * heads
        self.query = nn.Linear(dim, inner)
        self.key = nn.Linear(dim, inner)
        self.value = nn.Linear(dim, inner)
        self.dropout = nn.Dropout(dropout)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Tokens that ask and tokens that are asked (batch, length, dim) -> (batch, length, heads x (dim // heads))."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(asking), self.key(asked), self.value(asked))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.dropout(mixed.transpose(1, 2).flatten(2))


class LinearReader(nn.Module):
    """Attention, then the published "state space model", h_t = W_a h_{t-1} + b_a + W_b x_t + b_b; gives the last h."""

    def __init__(self, config: MorpMambaConfig):
        super().__init__()
        self.attention = CrossAttention(config.dim, config.heads, config.dropout)
        self.transition = nn.Linear(config.state_dim, config.state_dim)
        self.update = nn.Linear(config.dim // config.heads * config.heads, config.state_dim)
        self.width = config.state_dim

    def recur(self, x: Tensor) -> Tensor:
        """x (batch, length, dim) -> the last state (batch, state_dim)."""
        added = self.update(x)
        state = added.new_zeros(added.shape[0], added.shape[2])
        for position in added.unbind(1):
            state = self.transition(state) + position
        return state

    def forward(self, spatial: Tensor, spectral: Tensor) -> Tensor:
        """Tokens (batch, window, window, dim) of both kinds -> (batch, state_dim)."""
        return self.recur(self.attention(spatial.flatten(1, 2), spectral.flatten(1, 2)))


class MambaReader(nn.Module):
    """Spatial tokens and then spectral ones through blocks of bidirectional Mamba; gives the centre's beside the mean."""

    def __init__(self, config: MorpMambaConfig):
        super().__init__()
        cells, kinds = config.window**2, 1 + config.spectral
        self.position = nn.Parameter(torch.empty(1, kinds * cells, config.dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.norms = nn.ModuleList(RMSNorm(config.dim, 1e-5) for _ in range(config.depth))
        self.mixers = nn.ModuleList(
            BidirectionalMamba(
                config.dim, state_dim=config.state_dim, conv_kernel=config.conv_kernel, expand=config.expand
            )
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(config.dim, 1e-5)
        centre = config.window // 2 * (config.window + 1)
        self.centres = [centre + kind * cells for kind in range(kinds)]
        self.width = 2 * config.dim
        self.gradient_checkpointing = False
        initialise_language_model(self, depth=config.depth)

    def forward(self, spatial: Tensor, spectral: Tensor | None) -> Tensor:
        """Tokens (batch, window, window, dim) of one kind or both -> (batch, 2 dim)."""
        kinds = [tokens.flatten(1, 2) for tokens in (spatial, spectral) if tokens is not None]
        x = self.dropout(torch.cat(kinds, 1) + self.position)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = x + checkpoint(lambda x, n=norm, m=mixer: m(n(x))[0], x, use_reentrant=False)
            else:
                x = x + mixer(norm(x))[0]
        x = self.norm(x)
        return torch.cat([x[:, self.centres].mean(1), x.mean(1)], -1)


class MorpMamba(Model):
    """Windows of a cube (batch, window, window, bands) -> scores of the classes of their pixels (batch, num_classes).

    Arguments:
        config: a `MorpMambaConfig`.
    """

    family = "morp_mamba"
    undecayed = (*Model.undecayed, ".position")

    def __init__(self, config: MorpMambaConfig):
        super().__init__(config)
        convolved = config.morphology == "conv"
        self.over_cells: nn.Module = (
            ConvolvedMorphology(config.bands, config.size) if convolved else Morphology(config.size)
        )
        self.along_bands: nn.Module | None = None
        if config.spectral:
            self.along_bands = (
                ConvolvedMorphology(config.window, config.size, spectral=True)
                if convolved
                else Morphology(config.size, spectral=True)
            )
        self.token = nn.Linear(2 * config.bands, config.dim)
        self.spatial_gate = nn.Linear(config.dim, config.dim)
        self.spectral_gate = nn.Linear(config.dim, config.dim) if config.spectral else None
        self.reader: Any = MambaReader(config) if config.mixer == "mamba" else LinearReader(config)
        self.dense = nn.Linear(self.reader.width, config.hidden)
        self.head = nn.Linear(config.hidden, config.num_classes)

    def tokens(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Spatial and spectral tokens, each (batch, window, window, dim), of windows (batch, window, window, bands)."""
        config = self.config
        if windows.ndim != 4 or tuple(windows.shape[1:]) != (config.window, config.window, config.bands):
            raise ValueError(
                f"windows: expected (batch, {config.window}, {config.window}, {config.bands}), got "
                f"{tuple(windows.shape)}"
            )
        spatial = self.token(self.over_cells(windows))
        return spatial, None if self.along_bands is None else self.token(self.along_bands(windows))

    def enhance(self, spatial: Tensor, spectral: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens times a gate from the spatial ones at the window's centre.

        With mixer ``linear`` as published: the gates come from the centre's whole row. That of its column j multiplies
        row j of the spatial tokens and column j of the spectral ones.
        """
        middle = self.config.window // 2
        if self.config.mixer == "linear":
            row = spatial[:, middle]
            spatial_gate, centre = torch.sigmoid(self.spatial_gate(row))[:, :, None], row[:, :, None]
        else:
            centre = spatial[:, middle, middle][:, None, None]
            spatial_gate = torch.sigmoid(self.spatial_gate(centre))
        if spectral is not None and self.spectral_gate is not None:
            spectral = spectral * torch.sigmoid(self.spectral_gate(centre))
        return spatial * spatial_gate, spectral

    def forward_features(self, windows: Tensor) -> Tensor:
        """windows (batch, window, window, bands) -> what the last two layers read (batch, channels)."""
        return self.reader(*self.enhance(*self.tokens(windows)))

    def forward_head(self, features: Tensor) -> Tensor:
        """Those -> scores (batch, num_classes)."""
        return self.head(torch.relu(self.dense(features)))

    def forward(self, windows: Tensor) -> Tensor:
        """windows (batch, window, window, bands) -> scores before the softmax (batch, num_classes)."""
        return self.forward_head(self.forward_features(windows))

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block of Mamba in the backward pass; nothing to do with mixer ``linear``."""
        if isinstance(self.reader, MambaReader):
            self.reader.gradient_checkpointing = enabled


#: The notebook names no tensors in a file; these are the names of its layers.
_NAMES: list[Rule] = [
    ("erosion_spatial.weight", "over_cells.erosion"),
    ("dilation_spatial.weight", "over_cells.dilation"),
    ("erosion_spectral.weight", "along_bands.erosion"),
    ("dilation_spectral.weight", "along_bands.dilation"),
    ("token.weight", "token.weight", POINTWISE),
    ("query.*", "reader.attention.query.*"),
    ("key.*", "reader.attention.key.*"),
    ("value.*", "reader.attention.value.*"),
    ("state_transition.*", "reader.transition.*"),
    ("state_update.*", "reader.update.*"),
    ("classifier.*", "head.*"),
]
_TABLE = Names(_NAMES)

#: The notebook's settings.
_PUBLISHED: dict[str, Any] = dict(window=4, morphology="conv", size=5, mixer="linear", state_dim=128)

VARIANTS: dict[str, dict[str, Any]] = {
    "morp_mamba_tiny": dict(bands=8, window=7, dim=32, hidden=64, depth=1, state_dim=8),
    "morp_mamba": dict(),
    "morp_mamba_spatial": dict(spectral=False),
    "morp_mamba_published": _PUBLISHED,
}

FAMILY = Family("morp_mamba", MorpMambaConfig, MorpMamba, VARIANTS, _TABLE.from_published, _TABLE.to_published)
