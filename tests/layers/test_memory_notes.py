"""Notes against their definition, token by token; their gates, gradients and bounds."""

from __future__ import annotations

import math

import pytest
import torch

from statescan.layers import MemoryNotes, State, _memory_notes

DIM, NOTE = 12, 4
CLOSE = dict(atol=1e-10, rtol=1e-10)
KINDS = {
    "plain": {},
    "oldest": dict(overflow="oldest"),
    "chunks": dict(chunk=4),
    "chunks, oldest": dict(chunk=3, overflow="oldest"),
    "everything": dict(note_threshold=0.0, recall_threshold=0.0),
    "one note": dict(pool_size=1),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Several blocks within a short sequence."""
    monkeypatch.setattr(_memory_notes, "_BLOCK", 7)
    monkeypatch.setattr(_memory_notes, "_TRAINED_BLOCK", 11)


def build(**options) -> MemoryNotes:
    torch.manual_seed(0)
    return MemoryNotes(DIM, NOTE, **{"pool_size": 5, **options}).double()


def stream(batch: int = 2, length: int = 30) -> torch.Tensor:
    """Tokens, two of them equal."""
    x = torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 6] = x[:, 4]
    return x


def by_hand(layer: MemoryNotes, x: torch.Tensor) -> torch.Tensor:
    """The definition for one sequence (length, dim), with lists."""
    out, noted, pool = [], [], []
    for t, token in enumerate(x):
        if t % layer.chunk == 0:
            pool = list(noted)
            if layer.overflow == "oldest":
                pool = pool[-layer.pool_size :]
            else:
                pool = sorted(pool, key=lambda note: (-note[0], note[1]))[: layer.pool_size]
        total, weights = torch.zeros(NOTE, dtype=x.dtype), 1.0
        for _, _, note in pool:
            weight = math.exp(float(layer.query(token) @ note) / math.sqrt(NOTE))
            total, weights = total + weight * note, weights + weight
        opened = float(torch.sigmoid(layer.forgetting(token))) > layer.recall_threshold
        out.append(layer.output_projection(total / weights) * opened)
        importance = float(torch.sigmoid(layer.importance(token)))
        if importance > layer.note_threshold:
            noted.append((importance, t, layer.summary(token)))
    return torch.stack(out)


@kinds
@torch.no_grad()
def test_equal_to_the_definition(kind):
    layer, x = build(**KINDS[kind]), stream()
    y, state, pool = layer(x)
    torch.testing.assert_close(y, torch.stack([by_hand(layer, row) for row in x]), **CLOSE)
    assert int(pool.seen.sum(-1).max()) <= layer.pool_size
    assert bool(state["valid"].any())
    assert state.nbytes == layer.initial_state(2, dtype=torch.float64).nbytes


@kinds
@torch.no_grad()
def test_steps_and_pieces_equal_one_call(kind):
    layer, x = build(**KINDS[kind]), stream()
    want, final, _ = layer(x)
    state = layer.initial_state(2)
    for t in range(x.shape[1]):
        y, state, _ = layer.step(x[:, t], state)
        torch.testing.assert_close(y, want[:, t], **CLOSE)
    same(state, final)
    for cut in (0, 1, 6, 13, 29, 30):
        first, state, _ = layer(x[:, :cut])
        second, state, _ = layer(x[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), want, **CLOSE)
        same(state, final)


def same(one: State, other: State) -> None:
    for (name, a), (_, b) in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE, msg=name)


@kinds
@torch.no_grad()
def test_resets_begin_anew(kind):
    layer, x = build(**KINDS[kind]), stream()
    resets = torch.zeros(2, 30, dtype=torch.bool)
    resets[0, [9, 10, 22]] = resets[1, 0] = True
    y, state, _ = layer(x, resets=resets)
    for row, bounds in ((0, (0, 9, 10, 22, 30)), (1, (0, 30))):
        for start, end in zip(bounds, bounds[1:], strict=False):
            alone, own, _ = layer(x[row : row + 1, start:end])
            torch.testing.assert_close(y[row, start:end], alone[0], **CLOSE)
        same(state.select([row]), own)
    # After a state, too, and in the middle of a block.
    _, before, _ = layer(stream(2, 8))
    again, after, _ = layer(x, before, resets=resets)
    torch.testing.assert_close(again[0, 9:], y[0, 9:], **CLOSE)
    torch.testing.assert_close(again[1], y[1], **CLOSE)
    same(after, state)


@kinds
@torch.no_grad()
def test_nothing_sees_what_comes_later(kind):
    layer, x = build(**KINDS[kind]), stream()
    want, _, _ = layer(x)
    for t in (0, 8, 20):
        changed = x.clone()
        changed[:, t] = torch.randn(2, DIM, dtype=x.dtype)
        y, _, _ = layer(changed)
        assert torch.equal(y[:, :t], want[:, :t])
        assert not torch.equal(y[:, t:], want[:, t:])


@pytest.mark.parametrize("aggregation", ["concatenate", "mean"])
@torch.no_grad()
def test_other_layers_are_read_as_they_were_at_each_token(aggregation):
    below, reading = build(), build(reads_layers=True, aggregation=aggregation)
    with torch.no_grad():
        reading.summary.weight.mul_(-1.0)
    other = build(overflow="oldest", pool_size=3)
    x = stream(1)
    pools = [below(x)[2], other(x.flip(2))[2]]
    y, _, _ = reading(x, earlier=pools)
    plain, _, _ = reading(x)
    states = [below.initial_state(1), other.initial_state(1)]
    for t in range(x.shape[1]):
        notes = [state["notes"][0, state["valid"][0]] for state in states]
        values = torch.cat(notes) if aggregation == "concatenate" else _means(notes)
        query = reading.layer_query(x[0, t] + plain[0, t])
        weights = (values @ query / math.sqrt(NOTE)).exp()
        want = plain[0, t] + reading.layer_output_projection((weights @ values) / (1 + weights.sum()))
        torch.testing.assert_close(y[0, t], want, **CLOSE)
        states = [below.step(x[:, t], states[0])[1], other.step(x.flip(2)[:, t], states[1])[1]]


def _means(notes: list[torch.Tensor]) -> torch.Tensor:
    filled = [part.mean(0) for part in notes if len(part)]
    return torch.stack(filled) if filled else torch.zeros(0, NOTE, dtype=torch.float64)


def test_an_infinite_threshold_notes_and_reads_nothing():
    x = stream()
    for options in (dict(note_threshold=math.inf), dict(recall_threshold=math.inf)):
        layer = build(**options)
        y, state, _ = layer(x)
        assert not y.any()
        assert not layer.step(x[:, 0], state)[0].any()
    assert not build(note_threshold=math.inf)(x)[1]["valid"].any()


def test_gradients_pass_the_gates_straight_through():
    """That of an importance is what the note would change; where a gate is wholly open, all others are exact."""
    layer, x = build(pool_size=3), stream(1, 12).requires_grad_()
    layer(x)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().any(), name
    layer = build(note_threshold=0.0, recall_threshold=0.0, pool_size=12)
    for gate in (layer.importance, layer.forgetting):
        gate.requires_grad_(False)

    for gate in (layer.importance, layer.forgetting):
        torch.nn.init.zeros_(gate.weight)  # x moves neither
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (stream(1, 9).requires_grad_(),))


def test_an_importance_learns_what_one_more_copy_of_its_note_would_change():
    """Whether it was noted or not; by hand for every note and position of a sequence of several blocks."""
    layer, x = build(pool_size=3, recall_threshold=0.0), stream(1, 20)
    wanted = torch.randn(20, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = []
    note = layer._note

    def kept(x):
        importance, *others = note(x)
        given.append(importance.detach().requires_grad_())
        return given[0], *others

    layer._note = kept
    y, _, pool = layer(x)
    (y[0] * wanted).sum().backward()
    with torch.no_grad():
        notes, queries = layer.summary(x[0]), layer.query(x[0])
        scores = (queries @ notes.T / math.sqrt(NOTE)).exp()
        found = torch.zeros(20, dtype=torch.float64)
        opened = torch.sigmoid(layer.forgetting(x[0])) > 0
        assert opened.all()
        for t in range(20):
            seen = [j for j in range(t) if _in_pool(layer, given[0][0], j, t)]
            total = 1 + scores[t, seen].sum()
            read = (scores[t, seen] @ notes[seen]) / total
            first = 14 * (t // 14)  # of its two blocks of 7; before them, what is kept
            at_first = [j for j in range(first) if _in_pool(layer, given[0][0], j, first)]
            for j in (*at_first, *range(first, t)):
                more = (total * read + scores[t, j] * notes[j]) / (total + scores[t, j])
                found[j] += wanted[t] @ (layer.output_projection.weight @ (more - read))
    assert len(given) == 1
    torch.testing.assert_close(given[0].grad[0], found, **CLOSE)


def _in_pool(layer: MemoryNotes, importance: torch.Tensor, j: int, t: int) -> bool:
    better = (importance[:t] > importance[j]).sum() + (importance[:j] == importance[j]).sum()
    return bool(importance[j] > layer.note_threshold) and int(better) < layer.pool_size


@torch.no_grad()
def test_no_positions_change_nothing():
    layer, x = build(), stream()
    _, state, _ = layer(x)
    y, after, pool = layer(x[:, :0], state)
    assert y.shape == (2, 0, DIM)
    same(after, state)
    assert pool.seen.numel() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(note_dim=0), "note_dim: at least 1, got 0"),
        (dict(pool_size=0), "pool_size: at least 1, got 0"),
        (dict(chunk=0), "chunk: at least 1, got 0"),
        (dict(note_threshold=-0.1), r"note_threshold: from 0 to infinity \(never\), got -0.1"),
        (dict(recall_threshold=math.nan), r"recall_threshold: from 0 to infinity \(never\), got nan"),
        (dict(overflow="newest"), "overflow: unknown 'newest'; known: least_important, oldest"),
        (dict(aggregation="max"), "aggregation: unknown 'max'; known: concatenate, mean"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        MemoryNotes(DIM, **{"note_dim": NOTE, **given})
