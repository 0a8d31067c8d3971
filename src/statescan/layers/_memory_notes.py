"""Notes beside a recurrent memory: summaries of important tokens, kept in a pool of fixed size and looked up later.

After "MemMamba: Rethinking Memory Patterns in State Space Model" (2025, arXiv 2510.03279), of which no code was published:
the definition here is the library's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers._precision import widen, widened
from statescan.layers._state import State

#: Which note a full pool gives up.
Overflow = Literal["least_important", "oldest"]
#: What attention to other layers reads: all of their notes, or the mean of each pool.
Aggregation = Literal["concatenate", "mean"]

#: Positions that share the notes gathered for them, where no gradient is wanted.
_BLOCK = 64
#: The same where one is: an importance is told what its note would have changed for positions this near.
_TRAINED_BLOCK = 512
#: The order of empty slots: before any token.
_NEVER = -(1 << 62)


class Reach(NamedTuple):
    """Which notes could have been seen, in fewer and larger blocks: what importance learns from.

    Fields:
        notes: (batch, entries, note_dim), of a whole stream.
        importance: (batch, entries).
        candidates: (batch, blocks, candidates) int64, entries that concern a block's positions.
        known: (batch, blocks, block, candidates) bool, those that each position could have seen.
    """

    notes: Tensor
    importance: Tensor
    candidates: Tensor
    known: Tensor


class NotePool(NamedTuple):
    """The notes of one layer, and which of them every position sees; positions come in blocks.

    Fields:
        notes: (batch, blocks, entries, note_dim).
        importance: (batch, blocks, entries), from 0 to 1.
        seen: (batch, blocks, block, entries) bool, which entries are in the pool of each position.
        reach: where gradients are wanted.
    """

    notes: Tensor
    importance: Tensor
    seen: Tensor
    reach: Reach | None = None


class MemoryNotes(nn.Module):
    """Notes on a sequence, and attention to them: what is added to the residual stream before a layer's mixer.

    For every position, x its normalised stream:

    - importance I = sigmoid(w_I x + b_I); where I > note_threshold, the note s = N x is put into the layer's pool. The
      pool of a position holds at most `pool_size` notes of positions before it;
    - forgetting z = sigmoid(w_z x + b_z); where z > recall_threshold, W_o sum_j a_j s_j is added, a the softmax over the
      pool of (W_q x) s_j / sqrt(note_dim), beside a score of 0 for nothing at all;
    - with `reads_layers`, the same with weights of its own over the pools of earlier layers that `forward` is given.

    Both thresholds are hard. In the backward pass the gates have the gradients of I and z: straight through. That of an
    importance is what one more copy of its note would change for the later positions of its block of 512, whether it was
    taken or not, and for those of the next blocks as long as it is kept.

    Arguments:
        dim: channels of input and output.
        note_dim: of a note.
        pool_size: notes that are kept.
        note_threshold: importance above which a token is noted; infinity: never.
        recall_threshold: forgetting score above which the layer's own pool is read; infinity: never.
        overflow: what a full pool gives up: the ``least_important`` note (of equals the later one) or the ``oldest``.
        chunk: positions between refreshments: notes are seen from the next multiple of it on. 1: at once.
        reads_layers: whether there is attention to earlier layers' pools.
        aggregation: ``concatenate``: to all of their notes; ``mean``: to the mean of each pool.

    Raises:
        ValueError: sizes below 1, thresholds below 0, or an unknown word.
    """

    def __init__(
        self,
        dim: int,
        note_dim: int,
        *,
        pool_size: int = 50,
        note_threshold: float = 0.5,
        recall_threshold: float = 0.5,
        overflow: Overflow = "least_important",
        chunk: int = 1,
        reads_layers: bool = False,
        aggregation: Aggregation = "concatenate",
    ):
        super().__init__()
        for name, value in (("note_dim", note_dim), ("pool_size", pool_size), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"{name}: at least 1, got {value}")
        for name, level in (("note_threshold", note_threshold), ("recall_threshold", recall_threshold)):
            if not level >= 0:
                raise ValueError(f"{name}: from 0 to infinity (never), got {level}")
        for name, word, known in (("overflow", overflow, Overflow), ("aggregation", aggregation, Aggregation)):
            if word not in get_args(known):
                raise ValueError(f"{name}: unknown {word!r}; known: {', '.join(get_args(known))}")
        self.dim, self.note_dim, self.pool_size, self.chunk = dim, note_dim, pool_size, chunk
        self.note_threshold, self.recall_threshold = note_threshold, recall_threshold
        self.overflow, self.aggregation = overflow, aggregation
        #: Notes in the state: those of the pool, and those that wait for the next refreshment.
        self.slots = pool_size + chunk - 1
        self.importance = nn.Linear(dim, 1)
        self.summary = nn.Linear(dim, note_dim, bias=False)
        self.forgetting = nn.Linear(dim, 1)
        self.query = nn.Linear(dim, note_dim, bias=False)
        self.output_projection = nn.Linear(note_dim, dim, bias=False)
        self.layer_query: Any = nn.Linear(dim, note_dim, bias=False) if reads_layers else None
        self.layer_output_projection: Any = nn.Linear(note_dim, dim, bias=False) if reads_layers else None

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """No notes: all zero.

        ``notes`` (batch, slots, note_dim); ``importance`` (batch, slots) float32; ``position`` (batch, slots) int64, that
        in the sequence; ``valid`` (batch, slots) bool, which slots hold a note, those last; ``seen`` (batch,) int64,
        positions so far.
        """
        weight = self.summary.weight
        device = device or weight.device
        shape = (batch_size, self.slots)
        return State(
            {
                "notes": torch.zeros(*shape, self.note_dim, dtype=dtype or weight.dtype, device=device),
                "importance": torch.zeros(shape, dtype=widened(weight.dtype), device=device),
                "position": torch.zeros(shape, dtype=torch.int64, device=device),
                "valid": torch.zeros(shape, dtype=torch.bool, device=device),
                "seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            }
        )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        earlier: Sequence[NotePool] = (),
        resets: Tensor | None = None,
    ) -> tuple[Tensor, State, NotePool]:
        """x (batch, length, dim) -> what is recalled, of the same shape, the state after it, and the layer's pool.

        Arguments:
            x: normalised stream.
            state: what an earlier call returned; None is the beginning.
            earlier: pools of other layers for the same positions; read only with `reads_layers`.
            resets: (batch, length) bool, True where a new sequence begins: notes before it are dropped.
        """
        batch, length, _ = x.shape
        state = state or self.initial_state(batch, dtype=x.dtype, device=x.device)
        if not length:
            notes, importance = x.new_zeros(batch, 0, 0, self.note_dim), x.new_zeros(batch, 0, 0)
            return x, state, NotePool(notes, importance, importance[..., None].bool())
        pool, after = self._take(x, state, resets)
        return self._recall(x, pool, earlier), after, pool

    def step(self, x: Tensor, state: State, *, earlier: Sequence[NotePool] = ()) -> tuple[Tensor, State, NotePool]:
        """One position: x (batch, dim) -> what is recalled (batch, dim), the next state, and the pool."""
        seen = state["seen"]
        ready = state["valid"]
        if self.chunk > 1:
            ready = ready & (state["position"] < (seen - seen % self.chunk)[:, None])
            ahead = _goes_before(self._priority(state["importance"], ready)) & ready[..., None]
            ready = ready & (ahead.sum(1) < self.pool_size)
        pool = NotePool(state["notes"].to(x.dtype)[:, None], state["importance"][:, None], ready[:, None, None])
        recalled = self._recall(x[:, None], pool, earlier)[:, 0]
        importance, note, admitted = self._note(x[:, None])
        entries = {
            "notes": torch.cat([state["notes"].to(note.dtype), note], dim=1),
            "importance": torch.cat([state["importance"].to(importance.dtype), importance], dim=1),
            "position": torch.cat([state["position"], seen[:, None]], dim=1),
        }
        valid = torch.cat([state["valid"], admitted], dim=1)
        after = seen + 1
        waiting = valid & (entries["position"] >= (after - after % self.chunk)[:, None])
        index = self._kept(self._priority(entries["importance"], valid), waiting)
        return recalled, _state(entries, index.clamp(min=0), index >= 0, after), pool

    def _gate(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """sigmoid(w x + b) in float32, whatever autocast says: thresholds are sharp."""
        return torch.sigmoid((widen(x) * widen(layer.weight[0])).sum(-1) + widen(layer.bias))

    def _note(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        importance = self._gate(self.importance, x)
        return importance, self.summary(x), importance > self.note_threshold

    def _priority(self, importance: Tensor, valid: Tensor) -> Tensor:
        """Of entries in their order: what stays longer has more of it; -1 where there is no note."""
        if self.overflow == "least_important":
            return importance.detach().masked_fill(~valid, -1.0)
        order = torch.arange(valid.shape[-1], dtype=torch.float64, device=valid.device)
        return torch.where(valid, order, -1.0)

    def _kept(self, priority: Tensor, waiting: Tensor) -> Tensor:
        """Which entries the next positions may see: indices (batch, slots) in order, -1 before them where there are fewer.

        Of equals the earlier stays. Entries that wait for a refreshment are not given up: they compete only then.
        """
        ranked, index = priority.masked_fill(waiting, math.inf).sort(dim=1, descending=True, stable=True)
        place = torch.arange(index.shape[1], device=index.device)
        given_up = (ranked < 0) | (place >= self.pool_size + waiting.sum(1, keepdim=True))
        return index.masked_fill(given_up, -1)[:, : self.slots].sort(dim=1).values

    def _take(self, x: Tensor, state: State, resets: Tensor | None) -> tuple[NotePool, State]:
        """Note what is important: the pool of every position, and the state after the last.

        A block of positions draws on the notes kept before it and on its own. When an entry is given up follows from counts:
        at the first that is the `pool_size`-th to go before it.
        """
        batch, length, _ = x.shape
        importance, note, admitted = self._note(x)
        trained = torch.is_grad_enabled() and importance.requires_grad and math.isfinite(self.note_threshold)
        missing = -length % min(_BLOCK, length)
        # The order counts from the first new token; `since` is where a token's own sequence begins.
        place = torch.arange(length + missing, device=x.device)
        first = -state["seen"][:, None]
        since = first.expand(batch, length)
        if resets is not None:
            marks = torch.where(resets, place[:length], _NEVER).cummax(dim=1).values
            since = torch.maximum(since, marks)
        end = since[:, -1:]
        own = torch.cat([since, end.expand(batch, missing)], dim=1)
        # The stream: an entry that stands for none, the state's slots, tokens.
        before = torch.where(state["valid"], state["position"] + first, _NEVER)
        notes = torch.cat([F.pad(state["notes"].to(note.dtype), (0, 0, 1, 0)), F.pad(note, (0, 0, 0, missing))], dim=1)
        stream = {
            "importance": _joined(state["importance"].to(importance.dtype), F.pad(importance, (0, missing)), 0.0),
            "order": _joined(before, place.expand(batch, -1), _NEVER),
            "since": _joined(first.expand(batch, self.slots), own, _NEVER),
            "valid": _joined(state["valid"], F.pad(admitted, (0, missing)), False),
        }
        kept, given_up = self._walk({**stream, "importance": stream["importance"].detach()}, own, length)
        entries = {"notes": notes, "importance": stream["importance"], "position": stream["order"] - stream["since"]}
        after = _state(entries, kept[:, -1], kept[:, -1] > 0, length - end[:, 0])

        limit = place - (place - own) % self.chunk
        block = min(_BLOCK, length)
        index = torch.arange(self.slots + 1, notes.shape[1], device=x.device).expand(batch, -1)
        candidates = torch.cat([kept[:, :-1], index.view(batch, -1, block)], dim=2)
        seen = _pick(given_up, candidates)[..., None, :] >= limit.view(batch, -1, block, 1)
        seen &= _known(stream, candidates, limit, own, packed=resets is not None)
        pool = NotePool(_pick(notes, candidates), _pick(stream["importance"], candidates), seen)
        if trained:
            pool = pool._replace(reach=self._reach(notes, stream, kept, limit, own, packed=resets is not None))
        return pool, after

    def _reach(
        self, notes: Tensor, stream: dict[str, Tensor], kept: Tensor, limit: Tensor, own: Tensor, *, packed: bool
    ) -> Reach:
        """Larger blocks, of which a position knows all entries before it, noted or not."""
        batch, length = limit.shape
        small = length // (kept.shape[1] - 1)
        block = min(length, -(-_TRAINED_BLOCK // small) * small)
        missing = -length % block
        limit, own = (F.pad(value, (0, missing), value=_NEVER) for value in (limit, own))
        index = torch.arange(self.slots + 1, self.slots + 1 + length, device=limit.device)
        index = F.pad(index, (0, missing)).expand(batch, -1)  # 0: none
        candidates = torch.cat([kept[:, :-1][:, :: block // small], index.view(batch, -1, block)], dim=2)
        return Reach(notes, stream["importance"], candidates, _known(stream, candidates, limit, own, packed=packed))

    @torch.no_grad()
    def _walk(self, stream: dict[str, Tensor], own: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """What every block of positions finds kept, and in what order entries are given up.

        Returns:
            indices (batch, blocks + 1, slots), the last after all; 0 stands for none. And (batch, entries), the order of
            what makes an entry be given up: positions whose limit is beyond it do not see it.
        """
        batch, block = len(own), min(_BLOCK, length)
        slots = torch.arange(1, self.slots + 1, device=own.device)
        kept = [torch.where(stream["valid"][:, 1 : self.slots + 1], slots, 0)]
        tokens = torch.arange(self.slots + 1, stream["valid"].shape[1], device=own.device).expand(batch, -1)
        for start in range(0, length, block):
            candidate = torch.cat([kept[-1], tokens[:, start : start + block]], dim=1)
            part = {name: value.gather(1, candidate) for name, value in stream.items()}
            last = min(start + block, length)
            since = own[:, last - 1 : last]
            valid = part["valid"] & (part["since"] == since)
            waiting = valid & (part["order"] >= last - (last - since) % self.chunk)
            chosen = self._kept(self._priority(part["importance"], valid), waiting)
            kept.append(torch.where(chosen < 0, 0, candidate.gather(1, chosen.clamp(min=0))))
        candidates = torch.cat([torch.stack(kept[:-1], dim=1), tokens.view(batch, -1, block)], dim=2)
        part = {name: _pick(value, candidates) for name, value in stream.items()}
        # Later sequences go before; where that gives an entry up, its own is over.
        ahead = _goes_before(self._priority(part["importance"], part["valid"]), part["since"])
        ahead &= part["valid"][..., None]
        row = (ahead.cumsum(dim=-2, dtype=torch.int16) < self.pool_size).sum(-2)
        order = F.pad(part["order"], (0, 1), value=-_NEVER).gather(-1, row)
        given_up = torch.where(stream["valid"], -_NEVER, _NEVER)
        given_up.scatter_reduce_(1, candidates.flatten(1), order.flatten(1), "amin")
        return torch.stack(kept, dim=1), given_up

    def _recall(self, x: Tensor, pool: NotePool, earlier: Sequence[NotePool]) -> Tensor:
        recalled = torch.zeros_like(x)
        if math.isfinite(self.recall_threshold):
            forgetting = self._gate(self.forgetting, x)
            opened = (forgetting > self.recall_threshold).to(forgetting.dtype)
            if torch.is_grad_enabled() and forgetting.requires_grad:
                opened = opened + (forgetting - forgetting.detach())
            read = _attend(self.query(x), [pool])
            recalled = self.output_projection(read.to(x.dtype)) * opened[..., None].to(x.dtype)
        if self.layer_query is not None and earlier:
            attend = _attend if self.aggregation == "concatenate" else _attend_to_means
            read = attend(self.layer_query(x + recalled), earlier)
            recalled = recalled + self.layer_output_projection(read.to(x.dtype))
        return recalled


def _joined(slots: Tensor, tokens: Tensor, none: float | bool) -> Tensor:
    """A stream: its entry for none, the state's slots, tokens."""
    return torch.cat([torch.full_like(slots[:, :1], none), slots, tokens], dim=1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values (batch, entries, …), index (batch, …) -> those entries."""
    flat = index.flatten(1)
    if values.ndim == 3:
        picked = values.gather(1, flat[..., None].expand(-1, -1, values.shape[-1]))
        return picked.view(*index.shape, values.shape[-1])
    return values.gather(1, flat).view(index.shape)


def _state(entries: dict[str, Tensor], index: Tensor, valid: Tensor, seen: Tensor) -> State:
    """Slots at an index; those that are not valid are cleared, so that equal states are equal tensors."""
    notes, importance, position = (_pick(entries[name], index) for name in ("notes", "importance", "position"))
    return State(
        {
            "notes": notes.masked_fill(~valid[..., None], 0.0),
            "importance": importance.masked_fill(~valid, 0.0),
            "position": position.masked_fill(~valid, 0),
            "valid": valid,
            "seen": seen,
        }
    )


def _goes_before(priority: Tensor, since: Tensor | None = None) -> Tensor:
    """Which entries outrank which: (…, entries) -> (…, entries, entries), True where that of the row outranks the column's.

    By `since`, then by priority, the larger first, of equals the earlier.
    """
    order = priority.argsort(dim=-1, descending=True, stable=True)
    if since is not None:
        order = order.gather(-1, since.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    place = order.argsort(dim=-1)
    return place[..., :, None] < place[..., None, :]


def _known(stream: dict[str, Tensor], candidates: Tensor, limit: Tensor, own: Tensor, *, packed: bool) -> Tensor:
    """Which candidates (batch, blocks, candidates) stand before each position's limit, in its own sequence."""
    shape = (*candidates.shape[:2], -1, 1)
    known = _pick(stream["order"], candidates)[..., None, :] < limit.view(shape)
    if packed:
        return known & (_pick(stream["since"], candidates)[..., None, :] == own.view(shape))
    return known & (candidates > 0)[..., None, :]


def _in_blocks(x: Tensor, blocks: int, block: int) -> Tensor:
    """(batch, length, …) -> (batch, blocks, block, …), zeros at the end."""
    missing = blocks * block - x.shape[1]
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)).unflatten(1, (blocks, block))


def _attend(query: Tensor, pools: Sequence[NotePool]) -> Tensor:
    """Softmax attention of query (batch, length, note_dim) to notes, beside a score of 0 for nothing: the same shape."""
    length = query.shape[1]
    notes = torch.cat([pool.notes for pool in pools], dim=2)
    seen = torch.cat([pool.seen for pool in pools], dim=-1)
    scores = widen(_in_blocks(query, *seen.shape[1:3]) @ notes.transpose(-1, -2)) * query.shape[-1] ** -0.5
    weights, total = _softmax(scores, seen)
    read = widen(weights.to(notes.dtype) @ notes).flatten(1, 2)[:, :length]
    for pool in pools:
        if pool.reach is not None:
            logarithm = total.detach().flatten(1, 2)[:, :length, 0]
            read = _StraightThrough.apply(read, pool.reach.importance, query, logarithm, pool.reach)
    return read


def _attend_to_means(query: Tensor, pools: Sequence[NotePool]) -> Tensor:
    """The same to the mean of the notes that each position sees of each pool."""
    means = []
    for pool in pools:
        gate = pool.seen.to(pool.importance.dtype)
        if pool.reach is not None:  # a note that is seen has the importance's gradient
            gate = gate * (1 + pool.importance - pool.importance.detach())[..., None, :]
        means.append(widen(gate.to(pool.notes.dtype) @ pool.notes) / gate.sum(-1, keepdim=True).clamp(min=1.0))
    values = torch.stack(means, dim=-2)  # (batch, blocks, block, pools, note_dim)
    scores = (widen(_in_blocks(query, *values.shape[1:3]))[..., None, :] * values).sum(-1) * query.shape[-1] ** -0.5
    weights, _ = _softmax(scores, torch.stack([pool.seen.any(-1) for pool in pools], dim=-1))
    return (weights[..., None] * values).sum(-2).flatten(1, 2)[:, : query.shape[1]]


def _softmax(scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of what is seen beside a score of 0, and the logarithm of the sum they were divided by."""
    scores = scores.masked_fill(~seen, -math.inf)
    total = torch.logsumexp(F.pad(scores, (0, 1)), dim=-1, keepdim=True)
    return (scores - total).exp(), total


class _StraightThrough(torch.autograd.Function):
    """What was read, as it is; the gradient of an importance is that of what one more copy of its note would change.

    A note of weight p adds sigmoid(log p) (note - read), whether it is among those read or not.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, read: Tensor, importance: Tensor, query: Tensor, total: Tensor, reach: Reach
    ) -> Tensor:
        ctx.save_for_backward(read, query, total, reach.notes, reach.candidates, reach.known)
        ctx.entries, ctx.dtype = importance.shape[1], importance.dtype
        return read.view_as(read)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        read, query, total, notes, candidates, known = ctx.saved_tensors
        blocks, block = known.shape[1:3]
        noted = widen(_pick(notes, candidates))
        # The last column takes the logarithm off the scores, and, of what changes, what is read off the note.
        query = torch.cat([widen(query) * query.shape[-1] ** -0.5, -total[..., None]], dim=-1)
        asked = torch.cat([change, -(change * read).sum(-1, keepdim=True)], dim=-1)
        noted = F.pad(noted, (0, 1), value=1.0)
        share = (_in_blocks(query, blocks, block) @ noted.transpose(-1, -2)).sigmoid_().masked_fill_(~known, 0.0)
        gained = ((share.transpose(-1, -2) @ _in_blocks(asked, blocks, block)) * noted).sum(-1)
        found = gained.new_zeros(len(notes), ctx.entries).scatter_add_(1, candidates.flatten(1), gained.flatten(1))
        return change, found.to(ctx.dtype), None, None, None
