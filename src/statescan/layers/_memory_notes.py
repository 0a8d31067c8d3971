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


class NotePool(NamedTuple):
    """The notes of one layer, and which of them every position sees; positions come in blocks.

    Fields:
        notes: (batch, blocks, entries, note_dim).
        importance: (batch, blocks, entries), from 0 to 1.
        seen: (batch, blocks, block, entries) bool, which entries are in the pool of each position.
        known: of the same shape, which could have been; None where no gradient is wanted.
    """

    notes: Tensor
    importance: Tensor
    seen: Tensor
    known: Tensor | None


class MemoryNotes(nn.Module):
    """Notes on a sequence, and attention to them: what is added to the residual stream before a layer's mixer.

    For every position, x its normalised stream:

    - importance I = sigmoid(w_I x + b_I); where I > note_threshold, the note s = N x is put into the layer's pool. The
      pool of a position holds at most `pool_size` notes of positions before it;
    - forgetting z = sigmoid(w_z x + b_z); where z > recall_threshold, W_o sum_j a_j s_j is added, a the softmax over the
      pool of (W_q x) s_j / sqrt(note_dim), beside a score of 0 for nothing at all;
    - with `reads_layers`, the same with weights of its own over the pools of earlier layers that `forward` is given.

    Both thresholds are hard. In the backward pass the gates have the gradients of I and z: straight through. An importance
    gets one from the later positions of its block of 512, whether its note was taken or not, and from those of the next
    blocks as long as its note is kept.

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
            return x, state, NotePool(notes, importance, importance[..., None].bool(), None)
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
        pool = NotePool(state["notes"].to(x.dtype)[:, None], state["importance"][:, None], ready[:, None, None], None)
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

        block = min(_BLOCK, length)
        limit = place - (place - own) % self.chunk
        if trained:  # fewer and larger blocks
            block = min(length + missing, -(-_TRAINED_BLOCK // block) * block)
            kept = kept[:, :: block // min(_BLOCK, length)]
        blocks = -(-length // block)
        missing = blocks * block - length - missing
        index = torch.arange(self.slots + 1, notes.shape[1] + missing, device=x.device).expand(batch, -1)
        index = index.masked_fill(index >= notes.shape[1], 0).view(batch, blocks, block)
        candidates = torch.cat([kept[:, :blocks], index], dim=2)
        order, given_up = _pick(stream["order"], candidates), _pick(given_up, candidates)
        limit, own = (F.pad(value, (0, missing)).view(batch, blocks, block, 1) for value in (limit, own))
        known = order[..., None, :] < limit  # (batch, blocks, block, entries)
        if resets is not None:
            known &= _pick(stream["since"], candidates)[..., None, :] == own
        else:
            known &= (candidates > 0)[..., None, :]
        seen = known & (given_up[..., None, :] >= limit)
        pool = NotePool(
            _pick(notes, candidates), _pick(stream["importance"], candidates), seen, known if trained else None
        )
        return pool, after

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
            read = _attend(self.query(x), [pool], "concatenate")
            recalled = self.output_projection(read.to(x.dtype)) * opened[..., None].to(x.dtype)
        if self.layer_query is not None and earlier:
            read = _attend(self.layer_query(x + recalled), earlier, self.aggregation)
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


def _attend(query: Tensor, pools: Sequence[NotePool], aggregation: Aggregation) -> Tensor:
    """Softmax attention of query (batch, length, note_dim) to pools, beside a score of 0 for nothing: the same shape."""
    length = query.shape[1]
    batch, blocks, block, _ = pools[0].seen.shape
    query = F.pad(query, (0, 0, 0, blocks * block - length)).view(batch, blocks, block, -1)
    scale = query.shape[-1] ** -0.5
    if aggregation == "mean":
        values = torch.stack([_mean(pool) for pool in pools], dim=-2)  # (batch, blocks, block, pools, note_dim)
        scores = (widen(query)[..., None, :] * values).sum(-1) * scale
        weights, top = _weigh(scores, torch.stack([pool.seen.any(-1) for pool in pools], dim=-1))
        read = (weights[..., None] * values).sum(-2)
    else:
        notes = torch.cat([pool.notes for pool in pools], dim=2)
        scores = widen(query @ notes.transpose(-1, -2)) * scale
        seen = torch.cat([pool.seen for pool in pools], dim=-1)
        weights, top = _weigh(scores, seen)
        known = [pool.known for pool in pools if pool.known is not None]
        if known:
            importance = torch.cat([pool.importance for pool in pools], dim=-1)
            weights = weights + _passed(scores, weights, top, seen, torch.cat(known, dim=-1), importance)
        read = widen(weights.to(notes.dtype) @ notes)
    return (read / ((-top).exp() + weights.sum(-1, keepdim=True))).view(batch, blocks * block, -1)[:, :length]


def _weigh(scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """exp(score - top) of what is seen, and top: the largest score, at least that of nothing."""
    scores = scores.masked_fill(~seen, -math.inf)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=0.0)
    return (scores - top).exp(), top


def _passed(scores: Tensor, weights: Tensor, top: Tensor, seen: Tensor, known: Tensor, importance: Tensor) -> Tensor:
    """Zeros whose gradient to an importance is that of its note's weight; where it is not seen, what taking it changes."""
    with torch.no_grad():
        other = (scores - top).clamp(max=30.0).exp()
        total = (-top).exp() + weights.sum(-1, keepdim=True)
        slope = torch.where(seen, weights, other * total / (total + other)) * known
    return slope * (importance - importance.detach())[..., None, :]


def _mean(pool: NotePool) -> Tensor:
    """Of the notes that each position sees: (batch, blocks, block, note_dim)."""
    gate = pool.seen.to(pool.importance.dtype)
    if pool.known is not None:
        gate = gate + pool.known * (pool.importance - pool.importance.detach())[..., None, :]
    return widen(gate.to(pool.notes.dtype) @ pool.notes) / gate.sum(-1, keepdim=True).clamp(min=1.0)
