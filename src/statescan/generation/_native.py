"""The native decode engine: a whole language model in one call a token, on packed weights (`csrc/decode_engine.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.generation._arena import Arena
from statescan.generation._native_plan import (
    GROUP_SIZES,
    WEIGHT_TYPES,
    LayerState,
    Plan,
    WeightType,
    interleave_states,
    restore_states,
    unsupported,
)
from statescan.kernels import cpu
from statescan.layers import Attention, AttentionState, Mamba, State

# Rows of activations at a time: memory does not grow with a prompt, and what a layer makes of them stays in the cache.
_ROWS, _MOST_ROWS = 128, 512
_POSITIONS = 16  # of each of many sequences, for which states are fetched once
_PIECE = 64  # rows of a long prompt that a thread takes by itself
_ENTRIES = 256  # of an attention cache, to begin with
_LARGE = 8 << 20  # bytes of state


def compile_for_generation(
    model: Any, dtype: WeightType | torch.dtype | None = None, *, group_size: int = 32, release: bool = False
) -> CompiledModel:
    """Pack a language model's weights for the native CPU engine.

    The result stands in for the model in `generate`, `stream` and `prefill`, which then make one native call a token.
    Mamba, Mamba-2, attention and gated MLPs are known, in any order; activations, states and sums are float32.

    Arguments:
        model: a language model on the CPU. Later changes of its weights are not seen.
        dtype: of the packed weights: ``float32``, ``bfloat16``, ``int8`` (a scale an output channel), ``int4`` (a scale a
            group of inputs; Mamba's small projections in int8). None is bfloat16 for half-precision models, else
            float32. With bfloat16 and more than one row of activations at a time (prompts, batches), products take the
            activations as bfloat16 too where the processor has instructions for that.
        group_size: inputs that share a scale with int4, 32 or 64.
        release: give up the model's own copy of what was packed; it can then no longer run by itself.

    Raises:
        ValueError: the model has a part that the engine does not know; says which. An unknown dtype or group size.
    """
    chosen = str(dtype).removeprefix("torch.") if dtype is not None else None
    if chosen is None:
        half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        chosen = "bfloat16" if half else "float32"
    if chosen not in WEIGHT_TYPES:
        raise ValueError(f"dtype: unknown {chosen!r}; known: {', '.join(WEIGHT_TYPES)}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size: expected one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}")
    reason = unsupported(model)
    if reason:
        raise ValueError(f"model: the native engine cannot run it: {reason}")
    with torch.no_grad():
        return CompiledModel(model, Plan(model, chosen, group_size, release=release))


def native_reason(model: Any) -> str:
    """Why `compile_for_generation` would refuse a model; empty where it would not."""
    return unsupported(model)


class CompiledModel:
    """A language model on the native engine, made by `compile_for_generation`.

    It keeps the protocol of a language model (a call, `step`, `initial_state`) with states as values, and hands out
    `session`, where the state is kept and moved on in place.
    """

    def __init__(self, model: Any, plan: Plan):
        self.model, self.plan = model, plan
        self.config, self.family = model.config, model.family
        self._spare: list[_Workspace] = []  # the last prompt's: fresh memory costs as much as a few layers

    @property
    def dtype(self) -> str:
        """Of the packed weights."""
        return self.plan.kind

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, which every token (of all sequences together) reads once."""
        return self.plan.nbytes

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own."""
        return self.model.parameters()

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """The model's own."""
        return self.model.initial_state(batch_size, **options)

    def session(self, state: State | int = 1) -> Session:
        """A place to decode from: a state, as the model's own layers have it, or so many sequences at their beginning."""
        return Session(self, self.initial_state(state) if isinstance(state, int) else state)

    def begin(
        self, prompts: Sequence[Sequence[int]], state: State | None = None, *, chunk: int = 2048
    ) -> tuple[Tensor, Session]:
        """Read non-empty prompts of any lengths: logits after the last token of each, and the session there."""
        if min(map(len, prompts)) == max(map(len, prompts)):
            session = self.session(len(prompts) if state is None else state)
            return session.read(torch.tensor([list(prompt) for prompt in prompts]), chunk=chunk)[:, 0], session
        rows, after = [], []
        for index, prompt in enumerate(prompts):
            session = self.session(1 if state is None else state.select([index]))
            rows.append(session.read(torch.tensor([list(prompt)]), chunk=chunk)[:, 0])
            after.append(session.state())
        return torch.cat(rows), self.session(State.concatenate(after))

    def __call__(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, State]:
        """Logits and state, as the model itself gives them; for `resets` use the model, or read each part by itself."""
        if resets is not None:
            raise ValueError("resets: the native engine has none; read each sequence by itself")
        self._check(tokens, 2)
        if offsets is not None:
            return self._packed(tokens, state, offsets.tolist(), last)
        session = self.session(tokens.shape[0] if state is None else state)
        logits = session.read(tokens, last=tokens.shape[1] if last is None else min(last, tokens.shape[1]))
        return logits, session.state()

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token a sequence. The state is copied in and out: a `session` saves that."""
        session = self.session(state)
        return session.step(tokens), session.state()

    def _packed(self, tokens: Tensor, state: State | None, bounds: list[int], last: int | None) -> tuple[Tensor, State]:
        if last is not None and last != 1:
            raise ValueError(f"last: with offsets the native engine gives the last position or all, got {last}")
        before = self.initial_state(len(bounds) - 1) if state is None else state
        rows, after = [], []
        for index, (start, stop) in enumerate(zip(bounds, bounds[1:])):  # noqa: B905
            session = self.session(before.select([index]))
            if stop > start:
                rows.append(session.read(tokens[:, start:stop], last=1 if last else stop - start))
            elif last:
                rows.append(torch.zeros(1, 1, self.config.padded_vocab_size))
            after.append(session.state())
        return torch.cat(rows, dim=1), State.concatenate(after)

    def _check(self, tokens: Tensor, ndim: int) -> None:
        if tokens.numel() == 0 and tokens.ndim == ndim:
            raise ValueError("tokens: there are none")
        self.model._check(tokens, ndim)


class _Workspace(NamedTuple):
    """Memory for what the engine makes on the way: of so many rows at most, or of so many by each thread `apart`."""

    rows: int
    entries: int
    threads: int
    apart: bool
    memory: Tensor


class Session:
    """One or several sequences being decoded together; the state moves on in place."""

    def __init__(self, compiled: CompiledModel, state: State):
        self.compiled = compiled
        self.batch_size = state.batch_size or 1
        self._example = compiled.initial_state(1)
        self._layers = (LayerState * max(1, len(compiled.plan.layers)))()
        self._tensors: list[dict[str, Tensor]] = []
        self._cached = 0
        for index, mixer in compiled.plan.layers:
            self._tensors.append({} if mixer is None else self._load(mixer, state[str(index)]))
        if self.nbytes >= _LARGE:
            self._move_to_large_pages()
        for layer, tensors in zip(self._layers, self._tensors):  # noqa: B905
            self._point(layer, tensors)
        self._run = cpu.function("decode_run", "ppplllppllii")
        self._workspace: _Workspace | None = None

    # ---- decoding ----------------------------------------------------------------------------------------------

    def step(self, tokens: Tensor) -> Tensor:
        """One token a sequence, (batch,) -> logits (batch, vocabulary)."""
        self._check(tokens, 1)
        self._workspace = self._sized(self._workspace, self.batch_size, 1)
        return self._advance(tokens[:, None], 1, self._workspace)[:, 0]

    def read(self, tokens: Tensor, *, last: int = 1, chunk: int = _MOST_ROWS) -> Tensor:
        """Prompts of one length, (batch, length) -> logits of the last positions (batch, last, vocabulary).

        Memory does not grow with the length, but for an attention layer's cache: at most `chunk` tokens of a sequence are
        read at a time, and fewer where 128 rows of activations, or 16 tokens of each of many sequences, are fewer. Of a
        long prompt each thread takes pieces of 64 by itself, one layer behind the thread with the piece before.
        """
        self._check(tokens, 2)
        length = tokens.shape[1]
        if not 0 <= last <= length:
            raise ValueError(f"last: from 0 to the {length} positions read, got {last}")
        most = max(_ROWS // self.batch_size, min(_POSITIONS, _MOST_ROWS // self.batch_size))
        columns = max(1, min(chunk // self.batch_size, most))
        rows = self.batch_size * min(columns, length)
        apart = self._apart(min(chunk, _MOST_ROWS, length))
        if apart:
            columns, rows = min(chunk, _MOST_ROWS), _PIECE
        spare = self.compiled._spare
        try:
            workspace = spare.pop()
        except IndexError:  # it is the first prompt, or another thread reads one
            workspace = None
        parts = []
        for start in range(0, length, columns):
            stop = min(start + columns, length)
            workspace = self._sized(workspace, rows, stop - start, apart)
            parts.append(
                self._advance(tokens[:, start:stop], max(0, min(stop - start, last - (length - stop))), workspace)
            )
        spare[:] = [workspace] if workspace else []
        return parts[-1] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _advance(self, tokens: Tensor, last: int, workspace: _Workspace) -> Tensor:
        sequences, length = tokens.shape
        vocabulary = self.compiled.config.padded_vocab_size
        tokens = tokens.to(torch.int64).contiguous()
        logits = torch.empty(sequences, last, -(-vocabulary // 16) * 16)
        for layer in self._layers:
            layer.cached = self._cached
        failed = self._run(
            self.compiled.plan.address,
            ctypes.addressof(self._layers),
            tokens.data_ptr(),
            sequences,
            length,
            last,
            logits.data_ptr(),
            workspace.memory.data_ptr(),
            workspace.rows,
            workspace.entries,
            workspace.threads,
            workspace.apart,
        )
        if failed:
            raise RuntimeError("the native engine refused a call; this is a mistake in statescan, please report it")
        self._cached += length
        return logits[:, :, :vocabulary]

    def _check(self, tokens: Tensor, ndim: int) -> None:
        self.compiled._check(tokens, ndim)
        if tokens.shape[0] != self.batch_size:
            raise ValueError(f"tokens: the session has {self.batch_size} sequences, got {tokens.shape[0]}")

    def _apart(self, length: int) -> bool:
        """Whether threads that follow each other through a prompt lose less than a sixteenth at its beginning and end."""
        threads, pieces = cpu.threads(), -(-length // _PIECE)
        lost = 16 * threads * (threads - 1)
        return self.batch_size == 1 and pieces > 1 and lost <= pieces * len(self.compiled.plan.layers)

    def _sized(self, workspace: _Workspace | None, rows: int, more: int, apart: bool = False) -> _Workspace:
        """Room for `more` entries in the caches, and a workspace for so many rows."""
        entries = self._grow(self._cached + more)
        threads = cpu.threads()
        if workspace and workspace[2:4] == (threads, apart) and workspace.rows >= rows and workspace.entries >= entries:
            return workspace
        size = ctypes.c_int64()
        measure = cpu.function("decode_workspace", "plliip")
        measure(self.compiled.plan.address, rows, entries, threads, apart, ctypes.addressof(size))
        return _Workspace(rows, entries, threads, apart, Arena().take(size.value))  # fresh memory is zero

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(tensor.nbytes for tensors in self._tensors for tensor in tensors.values())

    # ---- states ------------------------------------------------------------------------------------------------

    def _move_to_large_pages(self) -> None:
        """Every token goes through all states, whose pages would else be more than the processor keeps track of."""
        arena = Arena()
        for tensors in self._tensors:
            for name, tensor in tensors.items():
                tensors[name] = arena.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def state(self, rows: Tensor | Sequence[int] | None = None) -> State:
        """A copy of the state, as the model's own layers have it, of all sequences or those named."""
        chosen = None if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        after: dict[str, Tensor | State] = {name: self._example[name] for name in self._example}
        for (index, mixer), tensors in zip(self.compiled.plan.layers, self._tensors):  # noqa: B905
            if mixer is not None:
                picked = {k: t.clone() if chosen is None else t.index_select(0, chosen) for k, t in tensors.items()}
                after[str(index)] = self._save(mixer, picked, self._example[str(index)])
        return State(after)

    def select(self, rows: Tensor | Sequence[int]) -> Session:
        """A session of the sequences named, in this order."""
        return Session(self.compiled, self.state(rows))

    def _load(self, mixer: Any, state: State) -> dict[str, Tensor]:
        """A mixer's state, copied into the engine's form."""
        tensors = {"conv": _copied(state["conv"])} if "conv" in state else {}
        if isinstance(mixer, Mamba):
            tensors["ssm"] = _owned(interleave_states(state["ssm"]), state["ssm"])
        elif isinstance(mixer, Attention):
            self._cached = state["keys"].shape[2]
            tensors |= {name: _copied(state[name]) for name in ("keys", "values")}
            tensors["start"] = state["start"].clone()
        else:
            tensors["ssm"] = _copied(state["ssm"])
        return tensors

    def _save(self, mixer: Any, tensors: dict[str, Tensor], example: State) -> State:
        kinds = {name: tensor.dtype for name, tensor in example.tensors()}
        entries: dict[str, Tensor | State] = {}
        for name in example:
            tensor = tensors[name]
            if name == "ssm" and isinstance(mixer, Mamba):
                tensor = restore_states(tensor, mixer.inner_dim)
            elif name in ("keys", "values"):
                tensor = tensor[:, :, : self._cached].contiguous()
            entries[name] = tensor.to(kinds[name])
        return AttentionState(entries) if isinstance(mixer, Attention) else State(entries)

    def _grow(self, entries: int) -> int:
        """Make room in every cache; gives how many entries one holds."""
        capacity = 0
        for layer, tensors in zip(self._layers, self._tensors):  # noqa: B905
            if "keys" not in tensors:
                continue
            if tensors["keys"].shape[2] < entries:
                wanted = max(_ENTRIES, 2 * entries)
                for name in ("keys", "values"):
                    old = tensors[name]
                    tensors[name] = old.new_zeros(*old.shape[:2], wanted, old.shape[3])
                    tensors[name][:, :, : old.shape[2]] = old
                self._point(layer, tensors)
            capacity = max(capacity, tensors["keys"].shape[2])
        return capacity

    @staticmethod
    def _point(layer: LayerState, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            setattr(layer, name, tensor.data_ptr())
        layer.capacity = tensors["keys"].shape[2] if "keys" in tensors else 0


def _copied(tensor: Tensor) -> Tensor:
    return _owned(tensor.detach().to(torch.float32).contiguous(), tensor)


def _owned(tensor: Tensor, source: Tensor) -> Tensor:
    shared = tensor.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    return tensor.clone() if shared else tensor
