"""A stack of Mamba layers that share transformer blocks: the wiring of Zamba and Zamba2 (arXiv 2405.16712, 2411.15242)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import Attention, GatedMLP, RMSNorm, State
from statescan.layers._tree import check_path, forward_tree, replay


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

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None,
        head_dim: int,
        mlp_dim: int,
        norm_eps: float,
        rotary_dim: int = 0,
        rotary_base: float = 10000.0,
        mlp_bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ):
        super().__init__()
        self.norm = RMSNorm(2 * dim, norm_eps)
        self.mixer = Attention(
            dim,
            heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            rotary_base=rotary_base,
            scale=(head_dim / 2) ** -0.5,
            input_dim=2 * dim,
        )
        self.channel_norm = RMSNorm(dim, norm_eps)
        self.channel_mixer = GatedMLP(dim, mlp_dim, bias=mlp_bias, activation=activation)


class SharedCall(nn.Module):
    """What one call of a shared block has of its own: an output projection and, in Zamba2, adapters."""

    def __init__(self, dim: int, attention_adapter: Adapter | None = None, mlp_adapter: Adapter | None = None):
        super().__init__()
        self.attention_adapter = attention_adapter
        self.mlp_adapter = mlp_adapter
        self.projection = nn.Linear(dim, dim, bias=False)


class SharedLayer(nn.Module):
    """stream += mixer(norm(stream + shared)), where shared is the output of this layer's call, if it has one."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, call: SharedCall | None):
        super().__init__()
        self.norm = norm
        self.mixer: Any = mixer
        self.call = call

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
            adapter = self.call.mlp_adapter
            mixed = shared.channel_mixer(mixed, correction=None if adapter is None else adapter(mixed))
            read = x + self.call.projection(mixed)
        before = state["mamba"] if state else None
        if parents is not None:
            y, after["mamba"] = forward_tree(self.mixer, self.norm(read), parents, before)
        elif step:
            y, after["mamba"] = self.mixer.step(self.norm(read), before)
        else:
            y, after["mamba"] = self.mixer(self.norm(read), before, resets=resets, offsets=offsets)
        return x + y, State(after)


class SharedStack(nn.Module):
    """Layers, and the blocks that those with a call share in turn."""

    def __init__(self, shared: Sequence[SharedBlock], layers: Sequence[SharedLayer]):
        super().__init__()
        self.shared: Any = nn.ModuleList(shared)
        self.blocks: Any = nn.ModuleList(layers)
        calls = [index for index, layer in enumerate(layers) if layer.call is not None]
        self._turn = {index: number % len(shared) for number, index in enumerate(calls)}
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
            entries = {"mamba": replay(block.mixer, seen["mamba"], path, before["mamba"])}
            if index in self._turn:
                mixer = self.shared[self._turn[index]].mixer
                entries = {"attention": mixer.replay(seen["attention"], path, before["attention"]), **entries}
            states[str(index)] = State(entries)
        return State(states)


#: Published names within a shared block, and ours.
SHARED_NAMES = (
    ("self_attn.o_proj.", "mixer.output_projection."),
    ("feed_forward.down_proj.", "channel_mixer.output_projection."),
    ("input_layernorm.", "norm."),
    ("pre_ff_layernorm.", "channel_norm."),
)
