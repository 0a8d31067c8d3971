"""A token of decoding in buffers that stay where they are, and a CUDA graph of it: one launch a token.

Mamba and Mamba-2 alone keep states of fixed size, so that the same memory can serve every token. What a step computes
is what the layers' own `step` does, with fewer kernels: sums and norms of the residual stream are one, as are the
convolution and the state's update, which write their states in place; what depends on weights alone is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers import GatedMLP, Mamba, Mamba2, ResidualBlock, ResidualStack, RMSNorm, State
from statescan.models._language_model import LanguageModel

#: Tokens that a graph must be good for: to make one costs about as much as so many tokens without.
WORTHWHILE = 16


def graph_reason(model: Any) -> str:
    """Why a model's step cannot be a CUDA graph; empty where it can."""
    reason = static_reason(model)
    if not reason and model.device.type != "cuda":
        return f"the model is on {model.device}"
    return reason


def static_reason(model: Any) -> str:
    """Why a model cannot decode in buffers that stay where they are; empty where it can."""
    if not isinstance(model, LanguageModel) or type(model.stack) is not ResidualStack:
        return f"{type(model).__name__} is no stack of residual blocks between embedding and head"
    if type(model).step is not LanguageModel.step:
        return f"{type(model).__name__} has a step of its own"
    for index, block in enumerate(model.stack.blocks):
        if type(block) is not ResidualBlock:
            return f"block {index} is {type(block).__name__}"
        mixer, channels = block.mixer, block.channel_mixer
        if mixer is not None and type(mixer) not in (Mamba, Mamba2):
            what = "its cache grows with every token" if "keys" in mixer.initial_state(1) else "known: Mamba, Mamba2"
            return f"block {index}: its mixer is {type(mixer).__name__}; {what}"
        if getattr(mixer, "token_filter", None) is not None:
            return f"block {index}: tokens are filtered"
        if channels is not None and type(channels) is not GatedMLP:
            return f"block {index}: its channel mixer is {type(channels).__name__}; known: GatedMLP"
    return ""


class StaticStep:
    """One token of `batch_size` sequences in place, from the buffers `tokens` (batch,) and `state` on.

    Later changes of a model's decay rates, direct weights and step biases are not seen; those of its matrices are.

    Raises:
        ValueError: the model has a part for which there is no such step; says which.
    """

    def __init__(self, model: Any, batch_size: int, state_dtype: torch.dtype | None = None):
        reason = static_reason(model)
        if reason:
            raise ValueError(f"model: no step in place: {reason}")
        self.model, self.batch_size = model, batch_size
        self.tokens = torch.zeros(batch_size, dtype=torch.int64, device=model.device)
        self.state: State = model.initial_state(batch_size).to(dtype=state_dtype).clone()
        self._mixers = [None if block.mixer is None else _mixer_step(block.mixer) for block in model.stack.blocks]

    def load(self, state: State) -> None:
        """Go on from a state of `batch_size` sequences or fewer, in the first rows."""
        for (_, buffer), (_, tensor) in zip(self.state.tensors(), state.tensors(), strict=True):
            buffer[: tensor.shape[0]].copy_(tensor)

    def run(self) -> Tensor:
        """Logits (batch, vocabulary) after one more token; the state stands after it."""
        stack = self.model.stack
        residual = self.model._embed(self.tokens)
        if stack.residual_in_float32 and residual.dtype != torch.float64:
            residual = residual.float()
        mixed: Tensor | None = None
        for index, (block, step) in enumerate(zip(stack.blocks, self._mixers, strict=True)):
            if step is not None:
                x = _normed(block.norm, residual, mixed)
                mixed = block._scaled(step(x, self.state[str(index)]))
            if block.channel_mixer is not None:
                x = _normed(block.channel_norm, residual, mixed)
                mixed = block._scaled(block.channel_mixer(x))
        if mixed is not None:
            residual = residual + mixed
        return self.model._logits(self.model._finish(residual))


def _normed(norm: nn.Module, residual: Tensor, mixed: Tensor | None) -> Tensor:
    """What the next layer reads, after `mixed` was added to the residual stream."""
    if type(norm) is RMSNorm and norm.weight is not None:
        return ops.add_rms_norm_(residual, mixed, norm.weight, eps=norm.eps)
    if mixed is not None:
        residual.add_(mixed)
    return ResidualBlock._normed(norm, residual)


def _mixer_step(mixer: Any) -> Callable[[Tensor, State], Tensor]:
    return _mamba_step(mixer) if isinstance(mixer, Mamba) else _mamba2_step(mixer)


def _wide(parameter: Tensor) -> Tensor:
    """In float32 or wider, as the recurrence takes it."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).contiguous()


def _mamba_step(mixer: Mamba) -> Callable[[Tensor, State], Tensor]:
    A, D, bias, convolution = -torch.exp(_wide(mixer.A_log)), _wide(mixer.D), _wide(mixer.delta_bias), mixer.convolution

    def step(x: Tensor, state: State) -> Tensor:
        hidden, gate = mixer.input_projection(x).chunk(2, dim=-1)
        hidden = ops.causal_conv1d_step_(
            state["conv"], hidden, convolution.weight, convolution.bias, activation=convolution.activation
        )
        delta, B, C = mixer._select(hidden)
        if not mixer.selective:
            B, C = B.expand(x.shape[0], -1, -1), C.expand(x.shape[0], -1, -1)
        y = ops.selective_state_step_(
            state["ssm"], hidden, delta, A, B, C, D, gate, delta_bias=bias, delta_softplus=True
        )
        return mixer.output_projection(y)

    return step


def _mamba2_step(mixer: Mamba2) -> Callable[[Tensor, State], Tensor]:
    A, D, bias, convolution = (
        -torch.exp(_wide(mixer.A_log)),
        _wide(mixer._D()),
        _wide(mixer.delta_bias),
        mixer.convolution,
    )

    def step(x: Tensor, state: State) -> Tensor:
        mlp_gate, mlp, gate, scanned, delta = mixer._project(x)
        scanned = ops.causal_conv1d_step_(
            state["conv"], scanned, convolution.weight, convolution.bias, activation=convolution.activation
        )
        hidden, B, C = mixer._split(scanned)
        z = mixer._heads(gate) if mixer.norm is None else None
        y = ops.ssd_step_(state["ssm"], hidden, delta, A, B, C, D, z, delta_bias=bias, delta_limit=mixer.dt_limit)
        return mixer._finish(y, gate, mlp_gate, mlp)

    return step


class StepGraph:
    """Sequences decoded together by one launch a token: a `StaticStep` recorded once as a CUDA graph and replayed.

    >>> decoder = StepGraph(model, state)  # what `model(tokens)` or `prefill` gave, or a number of sequences
    >>> logits = decoder.step(tokens)

    Arguments:
        model: a language model of Mamba or Mamba-2 layers on a CUDA device; `graph_reason` says whether it is one. What
            was recorded reads the weights where they lay: put the model elsewhere, or change it, and make another.
        state: where to go on from, or how many sequences begin.
        state_dtype: of the buffers; None is that of the model's states, float32 for the recurrence. bfloat16 halves what a
            token of many sequences moves, and rounds the state at every token.
        record: False runs the same step directly, launch by launch, on any device.

    Raises:
        ValueError: the model has a part for which there is no such step, or is not on a CUDA device; says which.
    """

    def __init__(
        self, model: Any, state: State | int = 1, *, state_dtype: torch.dtype | None = None, record: bool = True
    ):
        reason = graph_reason(model) if record else ""
        if reason:
            raise ValueError(f"model: its step cannot be a CUDA graph: {reason}")
        self.model, self._state_dtype, self._record = model, state_dtype, record
        with torch.inference_mode():
            before = model.initial_state(state) if isinstance(state, int) else state
            self.batch_size = before.batch_size or 1
            self._static = StaticStep(model, self.batch_size, state_dtype)
            self._replay = _recorded(self._static) if record else self._static.run
            self._static.load(before)

    def step(self, tokens: Tensor) -> Tensor:
        """One token a sequence, (batch,) -> logits (batch, vocabulary)."""
        self.model._check(tokens, 1)
        if tokens.shape[0] != self.batch_size:
            raise ValueError(f"tokens: there are {self.batch_size} sequences, got {tokens.shape[0]}")
        with torch.inference_mode():
            self._static.tokens[: self.batch_size].copy_(tokens)
            return self._replay()[: self.batch_size].clone()

    def state(self, rows: Tensor | Sequence[int] | None = None) -> State:
        """A copy of the state of all sequences or those named."""
        return self._static.state.select(range(self.batch_size) if rows is None else rows)

    def select(self, rows: Tensor | Sequence[int]) -> StepGraph:
        """Go on with the sequences named, in this order.

        Few of many are given a graph of their own. Else this one goes on, with rows that stand for nothing at the end.
        """
        chosen = self.state(rows)
        count = chosen.batch_size or 0
        if not self._static.batch_size // 2 < count <= self._static.batch_size:
            return StepGraph(self.model, chosen, state_dtype=self._state_dtype, record=self._record)
        with torch.inference_mode():
            self._static.load(chosen)
        self.batch_size = count
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._static.state.nbytes


def _recorded(static: StaticStep) -> Callable[[], Tensor]:
    """A step recorded as a CUDA graph; calling gives its logits, the same memory each time. The state is used up."""
    device = static.tokens.device
    with torch.cuda.device(device):
        # Kernels are compiled and libraries make their workspaces at first use, which must not be recorded.
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(3):
                static.run()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = static.run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
