"""Zamba2: Mamba-2 layers with shared transformer blocks. Glorioso et al. 2024, arXiv 2411.15242, figure 2.

One or two transformer blocks are called in turn before some of the Mamba layers. They read the residual stream
beside the word embeddings, twice as wide, and every call has low-rank adapters and an output projection of its own.
Peculiar: no residual inside the shared block; attention scores are scaled by (head_dim / 2)^-1/2; step sizes are at
least 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import Attention, GatedMLP, Mamba2, RMSNorm, State
from statescan.layers._tree import check_path
from statescan.models._huggingface_parts import fuse, rename, split
from statescan.models._language_model import LanguageModel
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
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


class Adapter(nn.Module):
    """A low-rank map; `parts` of them side by side."""

    def __init__(self, input_dim: int, rank: int, output_dims: tuple[int, ...]):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(input_dim, rank, bias=False), nn.Linear(rank, width, bias=False))
            for width in output_dims
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


class SharedBlock(nn.Module):
    """norm -> attention -> norm -> gated MLP on [stream, embedding], without residuals."""

    def __init__(self, config: Zamba2Config):
        super().__init__()
        wide = config.attention_dim
        head_dim = wide // config.heads
        self.norm = RMSNorm(wide, config.norm_eps)
        self.mixer = Attention(
            config.dim,
            config.heads,
            kv_heads=config.kv_heads,
            head_dim=head_dim,
            rotary_dim=head_dim if config.rotary else 0,
            rotary_base=config.rotary_base,
            scale=(head_dim / 2) ** -0.5,
            input_dim=wide,
        )
        self.channel_norm = RMSNorm(config.dim, config.norm_eps)
        self.channel_mixer = GatedMLP(config.dim, config.shared_mlp_dim, bias=config.shared_bias, activation=F.gelu)


class SharedCall(nn.Module):
    """What one call of a shared block has of its own: adapters and an output projection."""

    def __init__(self, config: Zamba2Config):
        super().__init__()
        wide, rank = config.attention_dim, config.adapter_rank
        self.attention_adapter = Adapter(wide, rank, (wide, wide, wide)) if config.attention_adapters else None
        self.mlp_adapter = Adapter(config.dim, rank, (2 * config.shared_mlp_dim,))
        self.projection = nn.Linear(config.dim, config.dim, bias=False)


class Zamba2Layer(nn.Module):
    """stream += mamba2(norm(stream + shared)), where shared is the output of this layer's call, if it has one."""

    def __init__(self, config: Zamba2Config, *, hybrid: bool):
        super().__init__()
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.mixer: Mamba2 = build_mixer(config)
        self.call = SharedCall(config) if hybrid else None

    def forward(
        self,
        x: Tensor,
        embedded: Tensor,
        shared: SharedBlock | None,
        state: State | None,
        resets: Tensor | None,
        offsets: Tensor | None,
        step: bool = False,
        parents: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        after: dict[str, Tensor | State] = {}
        read = x
        if self.call is not None:
            assert shared is not None
            wide = shared.norm(torch.cat([x, embedded], dim=-1))
            adapter = self.call.attention_adapter
            correction = None if adapter is None else adapter(wide)
            before: Any = state["attention"] if state else None
            if parents is not None:
                mixed, after["attention"] = shared.mixer.forward_tree(wide, parents, before, correction=correction)
            elif step:
                mixed, after["attention"] = shared.mixer.step(wide, before, correction=correction)
            else:
                mixed, after["attention"] = shared.mixer(
                    wide, before, resets=resets, offsets=offsets, correction=correction
                )
            mixed = shared.channel_norm(mixed)
            mixed = shared.channel_mixer(mixed, correction=self.call.mlp_adapter(mixed))
            read = x + self.call.projection(mixed)
        before = state["mamba"] if state else None
        if parents is not None:
            y, after["mamba"] = self.mixer.forward_tree(self.norm(read), parents, before)
        elif step:
            y, after["mamba"] = self.mixer.step(self.norm(read), before)
        else:
            y, after["mamba"] = self.mixer(self.norm(read), before, resets=resets, offsets=offsets)
        return x + y, State(after)


class Zamba2Stack(nn.Module):
    """The layers, and the blocks that they share."""

    def __init__(self, config: Zamba2Config):
        super().__init__()
        self.shared: Any = nn.ModuleList(SharedBlock(config) for _ in range(config.shared_blocks))
        self.blocks: Any = nn.ModuleList(
            Zamba2Layer(config, hybrid=index in config.hybrid_layers) for index in range(config.depth)
        )
        calls = [index for index in range(config.depth) if index in config.hybrid_layers]
        self._turn = {index: number % config.shared_blocks for number, index in enumerate(calls)}
        self.gradient_checkpointing = False

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """An entry a layer: ``mamba``, and ``attention`` where a shared block is called."""
        states: dict[str, Tensor | State] = {}
        for index, block in enumerate(self.blocks):
            entries = {"mamba": block.mixer.initial_state(batch_size, **options)}
            if index in self._turn:
                mixer = self.shared[self._turn[index]].mixer
                entries = {"attention": mixer.initial_state(batch_size, **options), **entries}
            states[str(index)] = State(entries)
        return State(states)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        step: bool = False,
        parents: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> the stream after the last layer, and the state."""
        embedded, after = x, {}
        for index, block in enumerate(self.blocks):
            shared = self.shared[self._turn[index]] if index in self._turn else None
            arguments = (x, embedded, shared, state[str(index)] if state else None, resets, offsets, step, parents)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, after[str(index)] = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, after[str(index)] = block(*arguments)
        return x, State(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim)."""
        return self(x, state, step=True)

    def forward_tree(self, x: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree: x (batch, nodes, dim) -> the stream after the last layer, and every layer's trace."""
        return self(x, state, parents=parents)

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes `path` (batch, steps) int64 of the tree, -1 behind the end of a shorter path."""
        check_path(path, 2**62)
        states: dict[str, Tensor | State] = {}
        for index, block in enumerate(self.blocks):
            seen, before = trace[str(index)], state[str(index)]
            entries = {"mamba": block.mixer.replay(seen["mamba"], path, before["mamba"])}
            if index in self._turn:
                mixer = self.shared[self._turn[index]].mixer
                entries = {"attention": mixer.replay(seen["attention"], path, before["attention"]), **entries}
            states[str(index)] = State(entries)
        return State(states)


class Zamba2LanguageModel(LanguageModel):
    """embedding -> `Zamba2Stack` -> norm -> head."""

    family = "zamba2"

    def __init__(self, config: Zamba2Config):
        super().__init__(config, Zamba2Stack(config))


# ---- published names -------------------------------------------------------------------------------------------------

_OUTER = (("model.embed_tokens.", "embedding."), ("model.final_layernorm.", "norm."), ("lm_head.", "head."))
_SHARED = (
    ("self_attn.o_proj.", "mixer.output_projection."),
    ("feed_forward.gate_up_proj.", "channel_mixer.input_projection."),
    ("feed_forward.down_proj.", "channel_mixer.output_projection."),
    ("input_layernorm.", "norm."),
    ("pre_ff_layernorm.", "channel_norm."),
)
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ADAPTERS = {
    "self_attn.linear_q_adapter_list": ("attention_adapter", 0),
    "self_attn.linear_k_adapter_list": ("attention_adapter", 1),
    "self_attn.linear_v_adapter_list": ("attention_adapter", 2),
    "feed_forward.gate_up_proj_adapter_list": ("mlp_adapter", 0),
}


def _swap_halves(tensor: Tensor) -> Tensor:
    """Published gated MLPs give the gate first, ours the value."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _swaps(name: str) -> bool:
    return name.startswith("channel_mixer.input_projection.") or name == "mlp_adapter.parts.0.1.weight"


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours. A shared block is listed under every layer that calls it: the last is in force."""
    calls = sorted(config.hybrid_layers)
    ours: Tensors = {}
    shared: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        if not name.startswith("model.layers."):
            ours.update(rename({name: tensor}, _OUTER))
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
                ours[target] = _swap_halves(tensor) if _swaps(own) else tensor
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
        block = {name: _swap_halves(t) if _swaps(name) else t for name, t in block.items()}
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
        block = {name: _swap_halves(t) if _swaps(name) else t for name, t in block.items()}
        block = split(block, "mixer.input_projection", _QKV, (head_dim * config.heads, kv, kv))
        shared[number] = rename(block, _SHARED, back=True)
    for call, index in enumerate(calls):
        own = split_prefix(tensors, f"stack.blocks.{index}.call.")[0]
        for module, (kind, part) in _ADAPTERS.items():
            for name, tensor in split_prefix(own, f"{kind}.parts.{part}.")[0].items():
                tensor = _swap_halves(tensor) if _swaps(f"{kind}.parts.{part}.{name}") else tensor
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
    return published | rename(outer, _OUTER, back=True)


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
