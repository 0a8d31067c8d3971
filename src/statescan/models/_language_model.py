"""The shell that language models share: embedding, residual stack, norm, head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import (
    Attention,
    GatedMLP,
    ResidualBlock,
    ResidualStack,
    State,
    build_norm,
    initialise_language_model,
)
from statescan.layers._residual import check_prefix, with_prefix, without_state
from statescan.models._model import Model, build_config
from statescan.ops import check_parents


@dataclass(frozen=True)
class AttentionConfig:
    """Attention layers of a language model; see `layers.Attention`."""

    heads: int = 8
    kv_heads: int | None = None
    head_dim: int | None = None
    rotary_dim: int = 0
    rotary_base: float = 10000.0
    conv_kernel: int = 0
    mlp_dim: int = 0
    scale: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False


@dataclass(frozen=True)
class LanguageModelConfig:
    """What all language models of the library have in common.

    Arguments:
        dim: channels of the residual stream.
        depth: blocks.
        vocab_size: tokens; the embedding is padded up to a multiple of `pad_vocab_size_multiple`.
        attention_layers: numbers of the blocks whose mixer is attention.
        attention: what those look like.
        mlp_dim: hidden channels of a gated MLP after every mixer; 0: none.
        mlp_multiple_of: mlp_dim is rounded up to a multiple of it.
        mlp_bias: whether its projections have biases.
        norm, norm_eps: ``rms`` or ``layer``.
        residual_in_float32: keep the residual stream in float32 whatever the weights are.
        tie_embeddings: the head is the embedding.
    """

    dim: int = 768
    depth: int = 24
    vocab_size: int = 50277
    attention_layers: tuple[int, ...] = ()
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp_dim: int = 0
    mlp_multiple_of: int = 128
    mlp_bias: bool = False
    norm: str = "rms"
    norm_eps: float = 1e-5
    residual_in_float32: bool = True
    tie_embeddings: bool = True
    pad_vocab_size_multiple: int = 8

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "vocab_size", "pad_vocab_size_multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < (0 if name == "depth" else 1):
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        if isinstance(self.attention, dict):
            object.__setattr__(self, "attention", build_config(AttentionConfig, self.attention, name="attention"))
        object.__setattr__(self, "attention_layers", tuple(self.attention_layers))
        beyond = [i for i in self.attention_layers if not 0 <= i < self.depth]
        if beyond:
            raise ValueError(f"attention_layers: {beyond} are not blocks of a model of depth {self.depth}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return math.ceil(self.vocab_size / self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class LanguageModel(Model):
    """tokens -> embedding -> blocks -> norm -> head.

    Arguments:
        config: a `LanguageModelConfig`.
        stack: what stands between embedding and norm: a `layers.ResidualStack` or a module of its protocol.
    """

    def __init__(self, config: Any, stack: nn.Module):
        super().__init__(config)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.dim)
        self.stack: Any = stack
        self.norm = build_norm(config.norm, config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.padded_vocab_size, bias=False)
        branches = 1 if config.mlp_dim == 0 else 2
        initialise_language_model(self, depth=max(1, config.depth), residuals_per_layer=branches)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """The state before any token: one entry a block."""
        weight = self.embedding.weight
        return self.stack.initial_state(batch_size, dtype=dtype or weight.dtype, device=device or weight.device)

    @property
    def takes_prefix(self) -> bool:
        """Whether a mixer of the model reads prefixes in both directions."""
        return getattr(self.stack, "takes_prefix", False)

    @property
    def reads_prompts_as_prefix(self) -> bool:
        """Whether prompts are to be read in both directions, as the model is trained: its config says so."""
        return getattr(self.config, "bidirectional_prefix", False)

    def hidden(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """Features after the last norm: tokens (batch, length) -> (batch, length, dim), and the state."""
        self._check(tokens, 2)
        check_prefix(self.stack, prefix)
        options = without_state(self.stack, return_state) | with_prefix(self.stack, prefix)
        features, state = self.stack(self._embed(tokens), state, resets=resets, offsets=offsets, **options)
        return self._finish(features), state

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
        last: int | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """Next-token logits.

        Arguments:
            tokens: (batch, length) int64, below the vocabulary's size.
            state: what an earlier call returned; None is the beginning.
            resets: (batch, length) bool, True where a new sequence begins: nothing before it is seen.
            offsets: (sequences + 1,) int64 cumulative lengths of sequences packed into a batch of 1; the state then has
                an entry a sequence.
            prefix: (batch, length) bool, True at positions that see each other in both directions, as far as the mixers can
                (`layers.GatedSSM`): each unbroken run within a sequence is one prefix, read whole in one call.
            last: give logits of the last so many positions only (of every packed sequence).
            return_state: False says that the state is not wanted, as in training: layers to which it is extra work leave
                it out, and what comes back in its place is not to be continued from.

        Returns:
            logits (batch, length or last, vocabulary), float, and the state after the last token.

        Raises:
            ValueError: a prefix for a model of which no mixer reads in both directions.
        """
        features, state = self.hidden(
            tokens, state, resets=resets, offsets=offsets, prefix=prefix, return_state=return_state
        )
        if last is not None:
            features = _last_positions(features, last, offsets)
        return self._logits(features), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token a sequence: tokens (batch,) -> logits (batch, vocabulary) and the next state."""
        self._check(tokens, 1)
        features, state = self.stack.step(self._embed(tokens), state)
        return self._logits(self._finish(features)), state

    def forward_tree(self, tokens: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """Next-token logits at every node of a token tree, in one pass; the state stays as it is.

        Arguments:
            tokens: (batch, nodes) int64.
            parents: (nodes,) or (batch, nodes) int64: a node's parent comes before it; -1 continues from the state.
            state: what an earlier call returned.

        Returns:
            logits (batch, nodes, vocabulary), and a trace: with it `replay` makes the state after an accepted path.
        """
        self._check(tokens, 2)
        check_parents("forward_tree", parents, tokens.shape[1])
        features, trace = self.stack.forward_tree(self._embed(tokens), parents, state)
        return self._logits(self._finish(features)), trace

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes of an accepted path, from the state before the tree on.

        Arguments:
            trace: of `forward_tree`.
            path: (batch, steps) int64, the root first; -1 behind the end of a shorter path.
            state: the one given to `forward_tree`.
        """
        return self.stack.replay(trace, path, state)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping what it computed."""
        self.stack.gradient_checkpointing = enabled

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    def _finish(self, features: Tensor) -> Tensor:
        return self.norm(features.to(self.embedding.weight.dtype))

    def _check(self, tokens: Tensor, ndim: int) -> None:
        if tokens.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"tokens: int64 or int32, got {str(tokens.dtype).removeprefix('torch.')}")
        if tokens.ndim != ndim:
            wanted = "(batch, length)" if ndim == 2 else "(batch,)"
            raise ValueError(f"tokens: expected {wanted}, got shape {tuple(tokens.shape)}")
        if not torch.compiler.is_compiling() and tokens.device.type == "cpu" and tokens.numel():
            low, high = torch.aminmax(tokens)
            if low < 0 or high >= self.embedding.num_embeddings:
                raise ValueError(
                    f"tokens: from {int(low)} to {int(high)}, but the vocabulary is 0 to "
                    f"{self.embedding.num_embeddings - 1}; does the tokenizer belong to this model?"
                )


class ScaledLanguageModel(LanguageModel):
    """A language model whose config has fixed factors of the embeddings and of the logits.

    Their names are ``embedding_multiplier`` and ``logit_multiplier``.
    """

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * self.config.embedding_multiplier

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features) * self.config.logit_multiplier


def _last_positions(features: Tensor, last: int, offsets: Tensor | None) -> Tensor:
    """The last rows of every sequence; where a packed one is shorter than `last`, others fill its place."""
    if offsets is None:
        return features[:, features.shape[1] - min(last, features.shape[1]) :]
    ends = offsets[1:, None] + torch.arange(-last, 0, device=offsets.device)
    rows = torch.maximum(ends, offsets[:-1, None]).clamp(max=features.shape[1] - 1)  # an empty last one begins beyond
    return features[:, rows.flatten()]


def build_stack(config: LanguageModelConfig, mixers: Sequence[nn.Module | None]) -> ResidualStack:
    """A block a mixer (None: channels only), each followed by the config's gated MLP if it has one."""
    blocks = []
    for mixer in mixers:
        channel_mixer = channel_norm = None
        if config.mlp_dim:
            channel_mixer = GatedMLP(
                config.dim, config.mlp_dim, multiple_of=config.mlp_multiple_of, bias=config.mlp_bias
            )
            channel_norm = build_norm(config.norm, config.dim, config.norm_eps)
        norm = None if mixer is None else build_norm(config.norm, config.dim, config.norm_eps)
        blocks.append(ResidualBlock(mixer, norm, channel_mixer, channel_norm))
    return ResidualStack(blocks, residual_in_float32=config.residual_in_float32)


def build_attention(config: LanguageModelConfig) -> Attention:
    """The attention mixer of a config."""
    options = config.attention
    return Attention(
        config.dim,
        options.heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        rotary_dim=options.rotary_dim,
        rotary_base=options.rotary_base,
        conv_kernel=options.conv_kernel,
        mlp_dim=options.mlp_dim,
        scale=options.scale,
        qkv_bias=options.qkv_bias,
        output_bias=options.output_bias,
    )
