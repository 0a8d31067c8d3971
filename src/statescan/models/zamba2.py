"""Zamba2: Mamba-2 layers with shared transformer blocks. Glorioso et al. 2024, arXiv 2411.15242, figure 2.

One or two transformer blocks are called in turn before some of the Mamba layers. They read the residual stream
beside the word embeddings, twice as wide, and every call has low-rank adapters and an output projection of its own.
Peculiar: no residual inside the shared block; attention scores are scaled by (head_dim / 2)^-1/2; step sizes are at
least 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statescan.layers import RMSNorm
from statescan.models._huggingface_parts import OUTER, fuse, rename, split, swap_halves
from statescan.models._language_model import LanguageModel
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models._shared_blocks import SHARED_NAMES, Adapter, SharedBlock, SharedCall, SharedLayer, SharedStack
from statescan.models.mamba2 import Mamba2Config, build_mixer


@dataclass(frozen=True)
class Zamba2Config(Mamba2Config):
    """A Zamba2 language model; the mixer's fields are those of `layers.Mamba2`.

    Arguments:
        hybrid_layers: numbers of the layers before whose mixer a shared block is called.
        shared_blocks: how many there are, called in turn.
        heads, kv_heads: of the shared attention, on 2 dim channels.
        shared_mlp_dim: hidden channels of the shared gated MLP.
        adapter_rank: rank of each call's adapters.
        attention_adapters: whether queries, keys and values have adapters (the MLP always has).
        rotary, rotary_base: rotary positions in the shared attention.
        shared_bias: biases in the shared MLP (and, in the published code, of the mixers' projections: `bias`).
    """

    dim: int = 2560
    depth: int = 54
    vocab_size: int = 32000
    pad_vocab_size_multiple: int = 1
    residual_in_float32: bool = False
    state_dim: int = 64
    dt_limit: tuple[float, float] = (1e-3, float("inf"))
    gated_norm_eps: float | None = 1e-5
    hybrid_layers: tuple[int, ...] = (6, 12, 18, 24, 30, 36, 42, 47, 51)
    shared_blocks: int = 2
    heads: int = 32
    kv_heads: int | None = None
    shared_mlp_dim: int = 10240
    adapter_rank: int = 128
    attention_adapters: bool = False
    rotary: bool = False
    rotary_base: float = 10000.0
    shared_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        beyond = [i for i in self.hybrid_layers if not 0 <= i < self.depth]
        if beyond:
            raise ValueError(f"hybrid_layers: {beyond} are not layers of a model of depth {self.depth}")
        if self.attention_adapters and (self.kv_heads or self.heads) != self.heads:
            raise ValueError("kv_heads: adapters on keys and values need as many key heads as query heads")

    @property
    def attention_dim(self) -> int:
        """Channels that the shared attention reads: the stream beside the embeddings."""
        return 2 * self.dim


def _stack(config: Zamba2Config) -> SharedStack:
    head_dim = config.attention_dim // config.heads
    shared = [
        SharedBlock(
            config.dim,
            config.heads,
            kv_heads=config.kv_heads,
            head_dim=head_dim,
            rotary_dim=head_dim if config.rotary else 0,
            rotary_base=config.rotary_base,
            mlp_dim=config.shared_mlp_dim,
            mlp_bias=config.shared_bias,
            norm_eps=config.norm_eps,
        )
        for _ in range(config.shared_blocks)
    ]
    layers = []
    for index in range(config.depth):
        call = None
        if index in config.hybrid_layers:
            wide = config.attention_dim
            call = SharedCall(
                config.dim,
                Adapter(wide, config.adapter_rank, (wide, wide, wide)) if config.attention_adapters else None,
                Adapter(config.dim, config.adapter_rank, (2 * config.shared_mlp_dim,)),
            )
        layers.append(SharedLayer(RMSNorm(config.dim, config.norm_eps), build_mixer(config), call))
    return SharedStack(shared, layers)


class Zamba2LanguageModel(LanguageModel):
    """embedding -> Mamba-2 layers and what they share -> norm -> head."""

    family = "zamba2"

    def __init__(self, config: Zamba2Config):
        super().__init__(config, _stack(config))


# ---- published names -------------------------------------------------------------------------------------------------

_SHARED = (*SHARED_NAMES, ("feed_forward.gate_up_proj.", "channel_mixer.input_projection."))
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ADAPTERS = {
    "self_attn.linear_q_adapter_list": ("attention_adapter", 0),
    "self_attn.linear_k_adapter_list": ("attention_adapter", 1),
    "self_attn.linear_v_adapter_list": ("attention_adapter", 2),
    "feed_forward.gate_up_proj_adapter_list": ("mlp_adapter", 0),
}


def _swaps(name: str) -> bool:
    return name.startswith("channel_mixer.input_projection.") or name == "mlp_adapter.parts.0.1.weight"


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours. A shared block is listed under every layer that calls it: the last is in force."""
    calls = sorted(config.hybrid_layers)
    ours: Tensors = {}
    shared: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        if not name.startswith("model.layers."):
            ours.update(rename({name: tensor}, OUTER))
            continue
        index, rest = name.removeprefix("model.layers.").split(".", 1)
        rest = rest.removeprefix("mamba_decoder.")
        prefix = f"stack.blocks.{index}."
        if rest.startswith("mamba."):
            mixer = mixer_from_published({rest.removeprefix("mamba."): tensor})
            ours.update(add_prefix(mixer, f"{prefix}mixer."))
        elif rest.startswith("shared_transformer.") and int(index) in calls:
            rest = rest.removeprefix("shared_transformer.")
            module, _, place = rest.partition("_list.")
            adapter = _ADAPTERS.get(f"{module}_list")
            if adapter is not None:
                call, leaf = place.split(".", 1)
                kind, part = adapter
                own = f"{kind}.parts.{part}.{leaf}"
                target = f"stack.blocks.{calls[int(call)]}.call.{own}"
                ours[target] = swap_halves(tensor) if _swaps(own) else tensor
            else:
                shared.setdefault(calls.index(int(index)) % config.shared_blocks, {})[rest] = tensor
        else:
            ours.update(
                rename(
                    {rest: tensor}, (("linear.", f"{prefix}call.projection."), ("input_layernorm.", f"{prefix}norm."))
                )
            )
    for number, block in shared.items():
        block = rename(fuse(block, _QKV, "mixer.input_projection"), _SHARED)
        block = {name: swap_halves(t) if _swaps(name) else t for name, t in block.items()}
        ours.update(add_prefix(block, f"stack.shared.{number}."))
    return ours


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's, a shared block repeated under every layer that calls it."""
    calls = sorted(config.hybrid_layers)
    head_dim = config.attention_dim // config.heads
    kv = head_dim * (config.kv_heads or config.heads)
    shared: dict[int, Tensors] = {}
    for number in range(config.shared_blocks):
        block = split_prefix(tensors, f"stack.shared.{number}.")[0]
        block = {name: swap_halves(t) if _swaps(name) else t for name, t in block.items()}
        block = split(block, "mixer.input_projection", _QKV, (head_dim * config.heads, kv, kv))
        shared[number] = rename(block, _SHARED, back=True)
    for call, index in enumerate(calls):
        own = split_prefix(tensors, f"stack.blocks.{index}.call.")[0]
        for module, (kind, part) in _ADAPTERS.items():
            for name, tensor in split_prefix(own, f"{kind}.parts.{part}.")[0].items():
                tensor = swap_halves(tensor) if _swaps(f"{kind}.parts.{part}.{name}") else tensor
                shared[call % config.shared_blocks][f"{module}.{call}.{name}"] = tensor
    published: Tensors = {}
    for layer in range(config.depth):
        block = split_prefix(tensors, f"stack.blocks.{layer}.")[0]
        mixer, others = split_prefix(block, "mixer.")
        prefix = f"model.layers.{layer}."
        inner = prefix + ("mamba_decoder." if layer in calls else "")
        published.update(add_prefix(mixer_to_published(mixer), f"{inner}mamba."))
        published.update(add_prefix(split_prefix(others, "norm.")[0], f"{inner}input_layernorm."))
        if layer in calls:
            published.update(add_prefix(split_prefix(others, "call.projection.")[0], f"{prefix}linear."))
            number = calls.index(layer) % config.shared_blocks
            published.update(add_prefix(shared[number], f"{prefix}shared_transformer."))
    outer = {name: t for name, t in tensors.items() if not name.startswith("stack.")}
    return published | rename(outer, OUTER, back=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "zamba2_tiny": dict(
        dim=128,
        depth=4,
        vocab_size=256,
        state_dim=32,
        head_dim=32,
        hybrid_layers=(1, 3),
        shared_blocks=2,
        heads=4,
        shared_mlp_dim=256,
        adapter_rank=8,
    ),
    "zamba2_1.2b": dict(
        dim=2048,
        depth=38,
        state_dim=128,
        hybrid_layers=(5, 11, 17, 23, 29, 35),
        shared_blocks=1,
        shared_mlp_dim=8192,
        attention_adapters=True,
        rotary=True,
    ),
    "zamba2_2.7b": {},
    "zamba2_7b": dict(
        dim=3584,
        depth=81,
        groups=2,
        hybrid_layers=(6, 12, 18, 24, 30, 36, 42, 47, 51, 57, 63, 69, 75),
        shared_mlp_dim=14336,
        rotary=True,
    ),
}

FAMILY = Family("zamba2", Zamba2Config, Zamba2LanguageModel, VARIANTS, from_published, to_published)
