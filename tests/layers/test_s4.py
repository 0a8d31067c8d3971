"""S4 and S4D layers: whole = chunks = steps, both directions, rates, precision, and what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from statescan import ops
from statescan.layers import S4, S4D, SequenceDropout, State

DIM = 6

LAYERS: dict[str, tuple[type[S4], dict[str, Any]]] = {
    "s4": (S4, dict(state_dim=8)),
    "s4-legt-channels": (
        S4,
        dict(state_dim=8, initialisation="legt", rank=2, channels=2, swap_channels=True, copies=1),
    ),
    "s4-glu": (S4, dict(state_dim=4, activation="glu", dt_tie=False, output="identity")),
    "s4-limit": (S4, dict(state_dim=8, max_length=32, bandlimit=0.1, dt_min=0.1, dt_max=1.0)),
    "s4d": (S4D, dict(state_dim=8)),
    "s4d-bilinear": (S4D, dict(state_dim=8, discretization="bilinear", initialisation="diag-inv", copies=2)),
    "s4d-real": (S4D, dict(state_dim=3, real=True, initialisation="diag-real", channels=3)),
    "s4d-bare": (S4D, dict(state_dim=8, output=None, activation="identity", trainable_B=False)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def build(name: str, **more: Any) -> Any:
    torch.manual_seed(sum(map(ord, name)))
    kind, options = LAYERS[name]
    layer = kind(DIM, **options | more).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
def walk(layer: Any, x: Tensor, cuts: list[int], state: State | None = None) -> tuple[Tensor, State]:
    parts = []
    for start, end in itertools.pairwise([0, *cuts, x.shape[1]]):
        y, state = layer(x[:, start:end], state)
        parts.append(y)
    assert state is not None
    return torch.cat(parts, 1), state


@torch.no_grad()
def step_through(layer: Any, x: Tensor) -> tuple[Tensor, State]:
    state, outputs = layer.initial_state(x.shape[0]), []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@layers
@pytest.mark.parametrize("cuts", [[], [1], [4, 4, 9], [16], list(range(1, 20))])
def test_chunks_and_steps_are_the_whole(name: str, cuts: list[int]) -> None:
    x = noise(2, 20, DIM)
    layer = build(name)
    want, last = step_through(layer, x)
    got, state = walk(layer, x, cuts)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state["ssm"], last["ssm"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["s4", "s4d", "s4d-bilinear"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@torch.no_grad()
def test_long_sequences(name: str, dtype: torch.dtype, tolerance: float) -> None:
    layer, x = build(name).to(dtype), noise(1, 4096, DIM).to(dtype)
    want, last = layer(x)
    scale = want.abs().max()
    chunked, state = walk(layer, x, [1000, 1001, 3000])
    assert (chunked - want).abs().max() < tolerance * scale
    stepped, state = step_through(layer, x)
    assert stepped.dtype == state["ssm"].dtype == dtype
    assert (stepped - want).abs().max() < tolerance * scale
    assert (state["ssm"] - last["ssm"]).abs().max() < tolerance * last["ssm"].abs().max()


@pytest.mark.parametrize("name", ["s4", "s4d"])
@torch.no_grad()
def test_a_chunk_may_be_longer_than_all_before(name: str) -> None:
    """A low-rank kernel stores weights truncated at a length; growing it must not show."""
    layer, x = build(name), noise(2, 60, DIM)
    got, _ = walk(layer, x, [1, 3, 10])
    torch.testing.assert_close(got, step_through(layer, x)[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(got, build(name)(x)[0], atol=1e-4, rtol=1e-3)


@layers
def test_gradients_pass_through_the_state(name: str) -> None:
    layer, x = build(name, max_length=8), noise(2, 8, DIM).requires_grad_()
    layer(x)  # settles the length of a low-rank kernel
    wanted = [x, *layer.parameters()]
    weight = torch.randn_like(layer(x)[0])
    want = torch.autograd.grad((layer(x)[0] * weight).sum(), wanted)
    first, state = layer(x[:, :3])
    second, _ = layer(x[:, 3:], state)
    got = torch.autograd.grad((torch.cat([first, second], 1) * weight).sum(), wanted)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max() + 1), rtol=1e-3)


@pytest.mark.parametrize("kind", [S4, S4D])
@torch.no_grad()
def test_both_directions(kind: type[S4]) -> None:
    """The second kernel reads the reversed sequence, from one position ahead."""
    torch.manual_seed(0)
    layer = kind(DIM, state_dim=8, bidirectional=True, channels=2, output=None, activation="identity")
    x = noise(2, 17, DIM)
    y, state = layer(x)
    assert not state
    kernel = layer.convolution_kernel(17)
    past, future = kernel.flatten(0, 1).chunk(2)
    wide = x.repeat(1, 1, 2)
    ahead = torch.cat([wide[:, 1:], torch.zeros_like(wide[:, :1])], 1).flip(1)
    want = ops.fft_conv_reference(wide, past, layer.D.flatten()) + ops.fft_conv_reference(ahead, future).flip(1)
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="state: a bidirectional layer reads the future"):
        layer(x, kind(DIM, state_dim=8).initial_state(2))
    with pytest.raises(ValueError, match="step: a bidirectional layer reads the future"):
        layer.step(x[:, 0], layer.initial_state(2))


@layers
@torch.no_grad()
def test_padding_at_the_end_does_not_matter(name: str) -> None:
    x = noise(3, 12, DIM)
    padded = torch.cat([x, torch.full((3, 7, DIM), 50.0)], 1)
    layer = build(name)
    torch.testing.assert_close(layer(padded)[0][:, :12], layer(x)[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bounded_kernels_forget() -> None:
    layer, x = build("s4d", max_length=5), noise(1, 20, DIM)
    changed = x.clone()
    changed[:, 3] += 1
    moved = (layer(changed)[0] - layer(x)[0]).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", [S4, S4D])
@torch.no_grad()
def test_half_the_sampling_rate(kind: type[S4]) -> None:
    """A smooth signal sampled half as often, read at rate 2, gives nearly the output at those positions."""
    torch.manual_seed(1)
    layer = kind(DIM, state_dim=16, dt_min=1e-3, dt_max=1e-2, output=None, activation="identity", max_length=256)
    time = torch.arange(256) / 256
    x = torch.sin(2 * torch.pi * time[:, None] * torch.arange(1, DIM + 1))[None]
    fine, coarse = layer(x)[0][:, ::2], layer(x[:, ::2], rate=2.0)[0]
    assert (coarse - fine).abs().max() < 0.1 * fine.abs().max()
    assert (layer(x[:, ::2])[0] - fine).abs().max() > 0.2 * fine.abs().max()


@torch.no_grad()
def test_rates_step_too() -> None:
    layer, x = build("s4d"), noise(2, 9, DIM)
    want, last = layer(x, rate=0.5)
    state = layer.initial_state(2)
    for t in range(9):
        y, state = layer.step(x[:, t], state, rate=0.5)
        torch.testing.assert_close(y, want[:, t], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state["ssm"], last["ssm"], atol=1e-5, rtol=1e-4)


@layers
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (1, 1)])
@torch.no_grad()
def test_empty_and_short(name: str, batch: int, length: int) -> None:
    layer = build(name)
    y, state = layer(noise(batch, length, DIM))
    assert y.shape[:2] == (batch, length)
    assert state.batch_size == batch
    if length == 0:
        torch.testing.assert_close(state["ssm"], layer.initial_state(batch)["ssm"])


@layers
@torch.no_grad()
def test_bfloat16_keeps_a_wide_state(name: str) -> None:
    layer = build(name).bfloat16()
    y, state = layer(noise(2, 9, DIM).bfloat16())
    stepped, state = layer.step(noise(2, DIM).bfloat16(), state)
    assert y.dtype == stepped.dtype == torch.bfloat16
    assert state["ssm"].dtype == torch.float32
    wide = build(name)
    wide.load_state_dict(layer.state_dict())
    want, _ = wide(noise(2, 9, DIM).bfloat16().float())
    assert (y.float() - want).abs().max() < 0.05 * want.abs().max()


@torch.no_grad()
def test_states_are_stored_and_chosen(tmp_path: Any) -> None:
    layer, x = build("s4"), noise(3, 7, DIM)
    _, state = layer(x)
    state.save(tmp_path / "state.safetensors")
    again = State.load(tmp_path / "state.safetensors").select([2, 0])
    u = noise(3, DIM)
    torch.testing.assert_close(layer.step(u[[2, 0]], again)[0], layer.step(u, state)[0][[2, 0]])


def test_no_state_where_none_is_asked_for() -> None:
    layer = build("s4")
    assert not layer(noise(1, 4, DIM), return_state=False)[1]


def test_dropout_is_of_training_alone_and_may_be_tied() -> None:
    torch.manual_seed(0)
    layer, x = build("s4d", dropout=0.5, kernel_dropout=0.1), noise(1, 8, DIM)
    torch.testing.assert_close(layer(x)[0], layer(x)[0])
    layer.train()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    dropped = SequenceDropout(0.5).train()(torch.ones(2, 5, 64))
    assert (dropped == dropped[:, :1]).all()
    assert sorted(dropped.unique().tolist()) == [0.0, 2.0]
    assert not (SequenceDropout(0.5, tied=False)(torch.ones(2, 5, 64)) == dropped).all()


@pytest.mark.parametrize("options", [dict(), dict(bidirectional=True), dict(discretization="bilinear", channels=2)])
def test_diagonal_layers_compile_whole(options: dict[str, Any]) -> None:
    layer, x = S4D(DIM, state_dim=8, **options).eval(), noise(2, 9, DIM)
    got, state = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    want, last = layer(x)
    torch.testing.assert_close(got, want)
    assert list(state) == list(last)


@pytest.mark.parametrize("kind", [S4, S4D])
def test_mixed_precision(kind: type[S4]) -> None:
    """Kernels and states stay wide under autocast: only the projection is narrow."""
    layer, x = kind(DIM, state_dim=8).eval(), noise(2, 9, DIM)
    want, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, state = layer(x)
        got.float().sum().backward()
    assert state["ssm"].dtype == torch.float32
    assert (got.float() - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: S4(DIM, bidirectional=True)(noise(1, 3, DIM), resets=torch.zeros(1, 3, dtype=torch.bool)),
            "pass the sequences as rows of a batch",
        ),
        (
            lambda: build("s4")(noise(2, 3, DIM), offsets=torch.tensor([0, 3])),
            "offsets: packed sequences come in a batch of 1",
        ),
        (lambda: S4(DIM, kernel="diag"), "kernel: unknown 'diag'; nearest: 'diagonal'; known: diagonal, dplr"),
        (lambda: S4(DIM, activation="geluu"), "activation: unknown 'geluu'; nearest: 'gelu'"),
        (lambda: S4(DIM, output="glue"), "output: unknown 'glue'; nearest: 'glu'"),
        (lambda: S4(DIM, channels=0), "channels: at least 1, got 0"),
        (lambda: S4(DIM, dropout=1.0), "dropout: at least 0 and below 1, got 1.0"),
        (
            lambda: S4D(DIM, discretization="dss").step(noise(1, DIM), State()),
            "'dss' normalises by the length, so it has no recurrence",
        ),
    ],
)
def test_what_is_refused_says_so(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
