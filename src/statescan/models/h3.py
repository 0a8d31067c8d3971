"""H3: a language model of shift and diagonal state-space systems. Fu et al. 2023, arXiv 2212.14052.

Blocks of `layers.H3`, two or three of them softmax attention instead, each followed by an MLP; there are no position
embeddings. Peculiar: what the systems remember is the product of two projections, and no activation follows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import H3, MLP, ResidualBlock, ResidualStack, build_norm
from statescan.models._language_model import AttentionConfig, LanguageModel, LanguageModelConfig, build_attention
from statescan.models._published import add_prefix, split_prefix
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class H3Config(LanguageModelConfig):
    """An H3 language model; the mixer's fields are those of `layers.H3` and its diagonal system.

    Arguments:
        mlp_dim: hidden channels of the MLP (GELU in its tanh form) after every mixer; 0: none.
        state_dim: of both systems.
        head_dim: channels a head of the products.
        max_length: bound on the length of the kernels; None for kernels as long as the input.
        chunk_length: longer inputs are convolved in chunks of it; None: at once.
        initialisation, discretization, copies, dt_min, dt_max, real_transform, bandlimit: of the diagonal system.
    """

    depth: int = 12
    vocab_size: int = 50257
    attention: AttentionConfig = field(
        default_factory=lambda: AttentionConfig(heads=12, qkv_bias=True, output_bias=True)
    )
    mlp_dim: int = 3072
    mlp_multiple_of: int = 1
    mlp_bias: bool = True
    norm: str = "layer"
    state_dim: int = 64
    head_dim: int = 1
    max_length: int | None = None
    chunk_length: int | None = None
    initialisation: str = "diag-lin"
    discretization: str = "bilinear"
    copies: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 0.1
    real_transform: str = "exp"
    bandlimit: float | None = None


#: Fields of a config that `layers.H3` takes, under the same names.
LAYER_FIELDS = (
    *("state_dim", "head_dim", "max_length", "chunk_length", "initialisation", "discretization", "copies"),
    *("dt_min", "dt_max", "real_transform", "bandlimit"),
)


class H3LanguageModel(LanguageModel):
    """Depth blocks of `layers.H3` (attention at `attention_layers`) with an MLP after each.

    Arguments:
        config: an `H3Config`.
    """

    family = "h3"
    undecayed = (".D", "shift_D", "shift_kernel.B", ".A_real", ".A_imag", ".inverse_dt", "kernel.B")

    def __init__(self, config: H3Config):
        blocks = []
        for index in range(config.depth):
            mixer: nn.Module
            if index in config.attention_layers:
                mixer = build_attention(config)
            else:
                mixer = H3(config.dim, **{name: getattr(config, name) for name in LAYER_FIELDS})
            mlp = norm = None
            if config.mlp_dim:
                hidden = math.ceil(config.mlp_dim / config.mlp_multiple_of) * config.mlp_multiple_of
                mlp, norm = MLP(config.dim, hidden, bias=config.mlp_bias), self._norm(config)
            blocks.append(ResidualBlock(mixer, self._norm(config), mlp, norm))
        super().__init__(config, ResidualStack(blocks, residual_in_float32=config.residual_in_float32))
        self._initialise()

    @staticmethod
    def _norm(config: H3Config) -> nn.Module:
        return build_norm(config.norm, config.dim, config.norm_eps)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Projections N(0, 0.02); those that end attention and MLP smaller by sqrt(2 depth), as published."""
        shrunk = 0.02 / math.sqrt(2 * max(1, self.config.depth))
        for block in self.stack.blocks:
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    ends = name.endswith("output_projection") and not (
                        name == "mixer.output_projection" and isinstance(block.mixer, H3)
                    )
                    nn.init.normal_(module.weight, std=shrunk if ends else 0.02)


_OUTER = (
    ("backbone.embeddings.word_embeddings.", "embedding."),
    ("backbone.ln_f.", "norm."),
    ("lm_head.", "head."),
)
_BLOCK = (
    ("norm1.", "norm."),
    ("norm2.", "channel_norm."),
    ("mlp.fc1.", "channel_mixer.input_projection."),
    ("mlp.fc2.", "channel_mixer.output_projection."),
)
_ATTENTION = (("Wqkv.", "input_projection."), ("out_proj.", "output_projection."))
_MIXER = (
    ("q_proj.", "query_projection."),
    ("k_proj.", "key_projection."),
    ("v_proj.", "value_projection."),
    ("output_linear.", "output_projection."),
    ("ssm_k_D", "shift_D"),
    ("ssm_k_kernel.kernel.", "shift_kernel."),
    ("kernel.kernel.log_dt", "kernel.inverse_dt"),
    ("kernel.kernel.inv_A_real", "kernel.A_real"),
    ("kernel.kernel.", "kernel."),
)


def _renamed(name: str, table: Any) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _inverted(table: Any) -> Any:
    return tuple((new, old) for old, new in table)


def _conjugate(pair: Tensor) -> Tensor:
    return torch.stack([pair[..., 0], -pair[..., 1]], dim=-1)


def mixer_from_published(tensors: Tensors) -> Tensors:
    """The tensors of the published H3 layer under the names of `layers.H3`, and of attention under those of its own.

    Eigenvalues have the other sign of the imaginary part there: with B and C conjugated the kernel is the same.
    """
    ours = {}
    for name, tensor in tensors.items():
        mine = _renamed(_renamed(name, _ATTENTION), _MIXER)
        if mine == "shift_kernel.C":
            tensor = tensor.squeeze(0)
        elif mine == "kernel.inverse_dt":
            tensor = tensor.unsqueeze(-1)
        elif mine in ("kernel.B", "kernel.C"):
            tensor = _conjugate(tensor)
        ours[mine] = tensor
    return ours


def mixer_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `mixer_from_published`."""
    table = _inverted(_MIXER if "shift_D" in tensors else _ATTENTION)
    published = {}
    for name, tensor in tensors.items():
        if name == "shift_kernel.C":
            tensor = tensor.unsqueeze(0)
        elif name == "kernel.inverse_dt":
            tensor = tensor.squeeze(-1)
        elif name in ("kernel.B", "kernel.C"):
            tensor = _conjugate(tensor)
        published[_renamed(name, table)] = tensor
    return published


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Published names to ours, in file order."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        if not name.startswith("backbone.layers."):
            ours[_renamed(name, _OUTER)] = tensor
            continue
        index, rest = name.removeprefix("backbone.layers.").split(".", 1)
        prefix = f"stack.blocks.{index}."
        if rest.startswith("mixer."):
            ours |= add_prefix(mixer_from_published({rest.removeprefix("mixer."): tensor}), f"{prefix}mixer.")
        else:
            ours[prefix + _renamed(rest, _BLOCK)] = tensor
    return ours


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to the published ones; the head last."""
    published: Tensors = {}
    rest = tensors
    for index in range(config.depth):
        block, rest = split_prefix(rest, f"stack.blocks.{index}.")
        mixer, others = split_prefix(block, "mixer.")
        prefix = f"backbone.layers.{index}."
        published |= add_prefix(mixer_to_published(mixer), f"{prefix}mixer.")
        published |= {prefix + _renamed(name, _inverted(_BLOCK)): tensor for name, tensor in others.items()}
    outer = {_renamed(name, _inverted(_OUTER)): tensor for name, tensor in rest.items()}
    return published | dict(sorted(outer.items(), key=lambda item: item[0].startswith("lm_head.")))


def upgrade(tensors: Tensors) -> Tensors:
    """Names of the first published checkpoints to the later ones.

    Their names begin with ``model.``; the backbone is ``s4seq.encoder``; and where a norm stands before the first block,
    every norm is the one after its layer, not before it.
    """
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name.startswith("embedding."):
            name = "backbone.embeddings.word_embeddings." + name.removeprefix("embedding.")
        renamed[name.replace("s4seq.encoder.", "backbone.", 1) if name.startswith("s4seq.encoder.") else name] = tensor
    if "backbone.norm.weight" not in renamed:
        return renamed
    numbers = [int(name.split(".")[2]) for name in renamed if name.startswith("backbone.layers.")]
    depth = 1 + max(numbers, default=-1)
    moved: dict[str, str] = {}
    for part in ("weight", "bias"):
        moved[f"backbone.norm.{part}"] = f"backbone.layers.0.norm1.{part}" if depth else f"backbone.ln_f.{part}"
        for index in range(depth):
            old, after = f"backbone.layers.{index}", f"backbone.layers.{index + 1}.norm1"
            moved[f"{old}.norm1.{part}"] = f"{old}.norm2.{part}"
            moved[f"{old}.norm2.{part}"] = f"{'backbone.ln_f' if index == depth - 1 else after}.{part}"
    return {moved.get(name, name): tensor for name, tensor in renamed.items()}


def _published(dim: int, depth: int, heads: int, layers: tuple[int, ...], rotary_dim: int = 0) -> dict[str, Any]:
    attention = dict(heads=heads, rotary_dim=rotary_dim, qkv_bias=True, output_bias=True)
    return dict(dim=dim, depth=depth, mlp_dim=4 * dim, attention_layers=layers, attention=attention)


VARIANTS: dict[str, dict[str, Any]] = {
    "h3_tiny": dict(
        dim=128,
        depth=4,
        vocab_size=256,
        mlp_dim=256,
        state_dim=32,
        attention_layers=(2,),
        attention=dict(heads=4, qkv_bias=True, output_bias=True),
    ),
    "h3_125m": _published(768, 12, 12, (6,)),
    "h3_355m": _published(1024, 24, 16, (8, 16)),
    "h3_1.3b": _published(2048, 24, 16, (8, 16)),
    "h3_2.7b": _published(2560, 32, 20, (8, 16, 24)),
    "h3_2.7b_rotary": _published(2560, 32, 20, (10, 21), rotary_dim=64),
}

FAMILY = Family("h3", H3Config, H3LanguageModel, VARIANTS, from_published, to_published, upgrade)
