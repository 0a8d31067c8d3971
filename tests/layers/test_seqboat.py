"""SeqBoat: routing, packing, attention against a plain formula, chunks, and what bidirectional layers refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from statescan.layers import MultiHeadEMA, SeqBoat
from statescan.layers._seqboat import compress, extract

DIM = 10


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def build(dtype: torch.dtype = torch.float64, **options: Any) -> SeqBoat:
    """A layer whose parameters are all drawn, so that about half of the positions are active and scores matter."""
    torch.manual_seed(3)
    layer = SeqBoat(DIM, **(dict(qk_dim=6, hidden_dim=8, ema_dim=3, window=4, max_length=9) | options)).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith(("ema", "log_temperature")):
                parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else 0.6))
        layer.eval()
        x = noise(4, 30, DIM, dtype=dtype)
        m = F.silu(layer.ema(layer.norm(x) if layer.prenorm else x)[0])
        odds = layer.input_projection(m)[..., :2]
        layer.input_projection.bias[1] -= (odds[..., 1] - odds[..., 0]).median()
    return layer


OPTIONS = {
    "relu2": dict(),
    "softmax": dict(attention="softmax"),
    "local": dict(position="local", window=3),
    "rotary": dict(position="rotary", attention="softmax", prenorm=False),
    "batch norm": dict(norm="batch", hidden_dim=5),
    "wide window": dict(window=50, norm_affine=False),
    "dense": dict(compression="never"),
}
DIRECTIONS = {"causal": False, "bidirectional": True}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
directions = pytest.mark.parametrize("bidirectional", DIRECTIONS.values(), ids=list(DIRECTIONS))


def plain(layer: SeqBoat, x: torch.Tensor) -> torch.Tensor:
    """The layer as the formulas say it, for one sequence (length, dim): loops over positions."""
    length = x.shape[0]
    normed = layer.norm(x[None])[0] if layer.prenorm else x
    p = torch.sigmoid(layer.ema.delta)
    q = 1 - p * torch.sigmoid(layer.ema.alpha)
    averaged = layer.ema.omega * normed
    for t in range(length):
        for s in range(length):
            if s > t and not layer.bidirectional:
                continue
            sides = [slice(0, DIM)] if s < t else [slice(DIM, 2 * DIM)]
            if s == t:
                sides = [slice(0, DIM), slice(DIM, 2 * DIM)] if layer.bidirectional else [slice(0, DIM)]
            for side in sides:
                taps = p[side] * layer.ema.beta[side] * layer.ema.gamma[side] * q[side] ** abs(t - s)
                averaged[t] = averaged[t] + taps.sum(-1) / layer.ema.state_dim**0.5 * normed[s]
    m = F.silu(averaged)
    u, direct = layer.input_projection(m).split([2, DIM], dim=-1)
    odds = torch.softmax(u / layer.log_temperature.exp(), dim=-1)
    active = [t for t in range(length) if odds[t, 1] > odds[t, 0]]
    called = torch.zeros_like(x)
    sizes = [layer.qk_dim, layer.hidden_dim, layer.hidden_dim]
    z, r, v = F.silu(layer.attention_projection(m)).split(sizes, dim=-1)
    queries, keys = (z * layer.query_key_scale[i] + layer.query_key_shift[i] for i in (0, 1))
    if layer.position == "rotary":
        turn = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(0, layer.qk_dim, 2) / layer.qk_dim)
        turned = []
        for part in (queries, keys):
            pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())
            rotated = pairs * torch.polar(torch.ones_like(turn), turn)
            turned.append(torch.view_as_real(rotated.to(torch.complex128)).flatten(-2))
        queries, keys = turned
    for i, t in enumerate(active):
        scores, seen = [], []
        for j, s in enumerate(active):
            lag = t - s if layer.compression == "never" else i - j
            if abs(lag) > layer.window or (lag < 0 and not layer.bidirectional):
                continue
            if layer.attention == "softmax":
                score = queries[t] @ keys[s] / layer.qk_dim**0.5
            else:
                score = queries[t] @ keys[s] / (layer.window * (2 if layer.bidirectional else 1))
            if layer.position == "simple":
                score = score + layer.position_bias[min(max(s - t, 1 - layer.reach), layer.reach - 1) + layer.reach - 1]
            elif layer.position == "local":
                # A block's first bias belongs to the block before it.
                score = score + layer.position_bias[layer.reach - 1 + layer.window - lag]
            scores.append(score)
            seen.append(s)
        row = torch.stack(scores)
        weights = torch.softmax(row, 0) if layer.attention == "softmax" else F.relu(row) ** 2
        called[t] = layer.output_projection((weights @ v[seen]) * r[t]) * odds[t, 1]
    y = F.silu(direct + called + x)
    return y if layer.prenorm else layer.norm(y[None])[0]


@options
@directions
@torch.no_grad()
def test_the_layer_is_its_formulas(options: dict[str, Any], bidirectional: bool) -> None:
    layer, x = build(bidirectional=bidirectional, **options), noise(3, 21, DIM, dtype=torch.float64)
    y, _ = layer(x)
    active, _, _ = layer.route(F.silu(layer.ema(layer.norm(x) if layer.prenorm else x)[0]))
    assert 0.2 < active.double().mean() < 0.8
    for row in range(3):
        # Angles are taken in float32.
        torch.testing.assert_close(
            y[row], plain(layer, x[row]), atol=1e-5 if layer.position == "rotary" else 1e-10, rtol=0
        )


@options
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@torch.no_grad()
def test_whole_chunks_and_steps(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    length = 4096 if dtype == torch.float32 else 300
    layer, x = build(dtype, **options), noise(2, length, DIM, dtype=dtype)
    want, last = layer(x)
    parts, state = [], layer.initial_state(2, dtype=dtype)
    for part in x[:, : length - 40].split([0, 1, 7, length - 40 - 8], dim=1):
        y, state = layer(part, state)
        parts.append(y)
    for t in range(length - 40, length):
        y, state = layer.step(x[:, t], state)
        parts.append(y[:, None])
    torch.testing.assert_close(torch.cat(parts, 1), want, atol=tolerance, rtol=tolerance)
    for name, tensor in last.items():
        torch.testing.assert_close(state[name], tensor, atol=tolerance, rtol=tolerance)


def test_compress_and_extract_are_inverse() -> None:
    x, active = noise(3, 9, 4), torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    active[2] = False
    packed, index, valid = compress(x, active)
    assert packed.shape[1] == int(active.sum(1).max())
    torch.testing.assert_close(extract(packed, active), x * active[..., None])
    for row in range(3):
        assert index[row][valid[row]].tolist() == active[row].nonzero().flatten().tolist()
    assert not packed[~valid].any()


@directions
@torch.no_grad()
def test_neighbours_in_the_batch_and_padding_do_not_matter(bidirectional: bool) -> None:
    layer, x = build(bidirectional=bidirectional), noise(3, 17, DIM, dtype=torch.float64)
    together, _ = layer(x)
    for row in range(3):
        torch.testing.assert_close(layer(x[row : row + 1])[0][0], together[row])
    lengths = torch.tensor([17, 5, 11])
    padded, _ = layer(x, padding=torch.arange(17) >= lengths[:, None])
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(padded[row, :length], layer(x[row : row + 1, :length])[0][0])


@torch.no_grad()
def test_automatic_compression_depends_on_the_batch_as_published() -> None:
    layer, x = build(compression="auto", window=2), noise(2, 17, DIM, dtype=torch.float64)
    always, never = build(window=2), build(compression="never", window=2)
    torch.testing.assert_close(layer(x)[0], always(x)[0])
    for one in (layer, always, never):
        one.input_projection.weight[:2] = 0
        one.input_projection.bias[:2] = torch.tensor([0.0, 1.0])  # all are active
    torch.testing.assert_close(layer(x)[0], never(x)[0])
    torch.testing.assert_close(always(x)[0], never(x)[0])


@options
@torch.no_grad()
def test_later_inputs_do_not_matter(options: dict[str, Any]) -> None:
    layer, x = build(**options), noise(1, 20, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 13:] = 5
    torch.testing.assert_close(layer(changed)[0][:, :13], layer(x)[0][:, :13])


@directions
def test_no_position_active_gives_the_average_alone(bidirectional: bool) -> None:
    layer, x = build(bidirectional=bidirectional), noise(2, 6, DIM, dtype=torch.float64)
    with torch.no_grad():
        layer.input_projection.weight[:2] = 0
        layer.input_projection.bias[:2] = torch.tensor([1.0, 0.0])
    y, _ = layer(x)
    active, gate, direct = layer.route(F.silu(layer.ema(layer.norm(x))[0]))
    assert not active.any() and not gate.any()
    torch.testing.assert_close(y, F.silu(direct + x))
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@options
@directions
def test_gradients_reach_every_parameter_and_are_right(options: dict[str, Any], bidirectional: bool) -> None:
    layer, x = build(bidirectional=bidirectional, **options), noise(2, 16, DIM, dtype=torch.float64)
    y, _ = layer(x)
    grads = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    assert all(g.abs().any() for g in grads)
    leaf = x[:1, :7].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: layer(given)[0], (leaf,), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_dropout_acts_in_training_alone() -> None:
    layer = build(dropout=0.5, hidden_dropout=0.5, attention_dropout=0.5)
    x = noise(2, 9, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], build()(x)[0])
    layer.train()
    assert not torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_a_truncated_average_looks_so_far(bidirectional: bool) -> None:
    ema = MultiHeadEMA(3, state_dim=2, bidirectional=bidirectional, truncation=4).double()
    impulse = torch.zeros(1, 15, 3, dtype=torch.float64)
    impulse[:, 7] = 1
    y, state = ema(impulse)
    reached = (y[0].abs() > 1e-12).any(-1).nonzero().flatten().tolist()
    assert state is None
    assert reached == list(range(4 if bidirectional else 7, 11))


@torch.no_grad()
def test_work_grows_with_length_and_falls_with_sparsity() -> None:
    """Counted in score entries, the products that attention forms."""
    layer = build(window=8, bidirectional=True)

    def entries(length: int) -> int:
        seen = []
        original = F.relu
        try:
            F.relu = lambda scores: seen.append(scores.numel()) or original(scores)  # type: ignore[assignment, func-returns-value]
            layer(noise(1, length, DIM, dtype=torch.float64))
        finally:
            F.relu = original
        return sum(seen)

    layer.input_projection.weight[:2] = 0
    layer.input_projection.bias[:2] = torch.tensor([0.0, 1.0])
    assert entries(1600) == 4 * entries(400)
    full = entries(400)
    layer.input_projection.bias[:2] = torch.tensor([1.0, 0.0])
    assert entries(400) < full / 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(bidirectional=True), "a bidirectional layer has no state; call it on whole sequences"),
        (dict(truncation=3), "a truncated average has no state; leave truncation at None"),
        (dict(compression="auto"), "with compression='auto' chunks differ from a whole"),
    ],
)
def test_layers_without_a_state_say_so(given: dict[str, Any], message: str) -> None:
    layer = build(**given)
    _, state = layer(noise(1, 3, DIM, dtype=torch.float64))
    assert len(state) == 0
    for use in (
        lambda: layer.initial_state(1),
        lambda: layer.step(noise(1, DIM, dtype=torch.float64), build().initial_state(1)),
        lambda: layer(noise(1, 3, DIM, dtype=torch.float64), build().initial_state(1)),
    ):
        with pytest.raises(NotImplementedError, match=message):
            use()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(attention="relu"), "attention: unknown 'relu'; known: relu2, softmax"),
        (dict(position="none"), "position: unknown 'none'; known: simple, local, rotary"),
        (dict(compression="yes"), "compression: unknown 'yes'; known: always, auto, never"),
        (dict(norm="rms"), "norm: unknown 'rms'; known: layer, batch"),
        (dict(window=0), "window: at least 1 position, got 0"),
        (dict(truncation=0), "truncation: at least 1 tap, or None, got 0"),
        (dict(position="rotary", qk_dim=5), "qk_dim: even with rotary positions, got 5"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**given)


def test_resets_need_a_state() -> None:
    with pytest.raises(
        ValueError, match="resets: this layer carries no state from stretch to stretch; pass offsets instead"
    ):
        build(bidirectional=True)(noise(1, 3, DIM, dtype=torch.float64), resets=torch.zeros(1, 3, dtype=torch.bool))
