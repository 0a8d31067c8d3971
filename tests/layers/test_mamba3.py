"""Mamba-3: the scan against its recurrence written out, what it reduces to, what only it can do, and wrong arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from statescan import ops
from statescan.layers import Mamba3
from statescan.layers._trapezoid import Segments, angles, trapezoidal_scan, trapezoidal_step, turn, turns


def inputs(batch: int, length: int, ranks: int, heads: int, width: int, states: int) -> dict[str, Tensor]:
    torch.manual_seed(length + ranks)
    wide = dict(dtype=torch.float64)
    return {
        "x": torch.randn(batch, length, ranks, heads, width, **wide),
        "step": torch.rand(batch, length, heads, **wide),
        "rate": 2 * torch.rand(batch, length, heads, **wide),
        "mix": torch.rand(batch, length, heads, **wide),
        "keys": torch.randn(batch, length, ranks, heads, states, **wide),
        "queries": torch.randn(batch, length, ranks, heads, states, **wide),
        "D": torch.randn(heads, **wide),
    }


def recurrence(given: dict[str, Tensor], state: Tensor, last_x: Tensor, last_key: Tensor) -> tuple[Tensor, Tensor]:
    """Equation by equation, a position at a time."""
    outputs = []
    for t in range(given["x"].shape[1]):
        x, step, rate, mix, key, query = (given[n][:, t] for n in ("x", "step", "rate", "mix", "keys", "queries"))
        decay = torch.exp(-rate * step)
        state = state * decay[..., None, None]
        for r in range(x.shape[1]):
            before = torch.einsum("bhp,bhn->bhpn", last_x[:, r], last_key[:, r])
            now = torch.einsum("bhp,bhn->bhpn", x[:, r], key[:, r])
            state = state + ((1 - mix) * step * decay)[..., None, None] * before + (mix * step)[..., None, None] * now
        y = torch.stack([torch.einsum("bhpn,bhn->bhp", state, query[:, r]) for r in range(x.shape[1])], 1)
        outputs.append(y + given["D"][:, None] * x)
        last_x, last_key = x, key
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("chunk_size", [1, 4, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_scan_is_its_recurrence(ranks: int, chunk_size: int, backend: str) -> None:
    given = inputs(2, 9, ranks, 3, 4, 6)
    before = [torch.randn(2, 3, 4, 6), torch.randn(2, ranks, 3, 4), torch.randn(2, ranks, 3, 6)]
    state, last_x, last_key = (tensor.double() for tensor in before)
    want, want_last = recurrence(given, state, last_x, last_key)
    with ops.backend(backend):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
            got, last = trapezoidal_scan(
                **{name: tensor.to(dtype) for name, tensor in given.items()},
                state=state.to(dtype),
                last_x=last_x.to(dtype),
                last_key=last_key.to(dtype),
                chunk_size=chunk_size,
            )
            torch.testing.assert_close(got.double(), want, atol=tolerance * 10, rtol=tolerance)
            torch.testing.assert_close(last.double(), want_last, atol=tolerance * 10, rtol=tolerance)
    y, after = trapezoidal_step(
        state, last_x, last_key, *(given[n][:, 0] for n in ("x", "step", "rate", "mix", "keys", "queries")), given["D"]
    )
    first, then = recurrence({n: t[:, :1] if n != "D" else t for n, t in given.items()}, state, last_x, last_key)
    torch.testing.assert_close(y, first[:, 0])
    torch.testing.assert_close(after, then)


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_are_those_of_the_recurrence(ranks: int) -> None:
    given = {name: tensor.requires_grad_() for name, tensor in inputs(2, 5, ranks, 2, 3, 4).items()}
    zero = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    none = torch.zeros(2, ranks, 2, 3, dtype=torch.float64), torch.zeros(2, ranks, 2, 4, dtype=torch.float64)
    want, want_last = recurrence(given, zero, *none)
    weight = torch.randn_like(want)
    wanted = torch.autograd.grad((want * weight).sum() + want_last.sum(), list(given.values()))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        cast = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in given.items()}
        got, last = trapezoidal_scan(**cast)
        found = torch.autograd.grad((got * weight.to(dtype)).sum() + last.sum(), list(cast.values()))
        for name, one, other in zip(given, found, wanted, strict=True):
            difference = (one.double() - other).abs().max()
            assert difference <= 10 * tolerance * (1 + other.abs().max()), (name, difference)


def test_without_the_position_before_it_is_the_scan_of_mamba2() -> None:
    given = inputs(2, 7, 1, 3, 4, 5)
    given["mix"] = torch.ones_like(given["mix"])
    given["rate"] = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64).expand_as(given["rate"])
    got, last = trapezoidal_scan(**given)
    x, keys, queries = (given[name][:, :, 0] for name in ("x", "keys", "queries"))
    want, state = ops.ssd(x, given["step"], -given["rate"][0, 0], keys, queries, given["D"], return_last_state=True)
    torch.testing.assert_close(got[:, :, 0], want)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("interleaved", [True, False])
def test_turning_keeps_lengths_and_products_of_equal_turns(interleaved: bool) -> None:
    torch.manual_seed(0)
    k, q, angle = torch.randn(3, 10).double(), torch.randn(3, 10).double(), torch.randn(3, 4).double()
    both = [turn(x, angle.cos(), angle.sin(), interleaved=interleaved) for x in (k, q)]
    torch.testing.assert_close((both[0] * both[1]).sum(-1), (k * q).sum(-1))
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 5) for i in range(4)]
    still = sorted(set(range(10)) - {channel for pair in pairs for channel in pair})
    assert torch.equal(both[0][:, still], k[:, still])
    for i, (a, b) in enumerate(pairs):
        turned = torch.complex(k[:, a], k[:, b]) * torch.exp(1j * angle[:, i])
        torch.testing.assert_close(both[0][:, a], turned.real)
        torch.testing.assert_close(both[0][:, b], turned.imag)


def test_a_turning_state_knows_parity_without_a_nonlinearity() -> None:
    bits = torch.randint(0, 2, (4, 300), generator=torch.Generator().manual_seed(0))
    step = torch.ones(4, 300, 1)
    # A one turns by half a circle: tanh(large) pi.
    angle = angles(turns(20.0 * bits[..., None].float(), step), None, Segments.of(300, None, None))
    direction = torch.tensor([1.0, 0.0]).expand(4, 300, 1, 2)
    first = torch.zeros(4, 300, 1, 1, 1)
    first[:, 0] = 1
    fixed, turned = (
        direction[:, :, None].clone(),
        turn(direction, angle.cos(), angle.sin(), interleaved=True)[:, :, None],
    )
    y, _ = trapezoidal_scan(first, step, torch.zeros_like(step), torch.ones_like(step), fixed, turned)
    even = bits.cumsum(1) % 2 == 0
    torch.testing.assert_close(y[..., 0, 0, 0], torch.where(even, 1.0, -1.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [dict(), dict(mimo_rank=2)])
def test_steps_that_vanish_give_numbers(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    mixer = Mamba3(8, state_dim=4, head_dim=4, **options)
    with torch.no_grad():
        mixer.delta_bias.copy_(torch.tensor([-200.0, -60.0, -3.0, 30.0]))
    x = torch.randn(2, 12, 8, requires_grad=True)
    y, state = mixer(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
    assert all(torch.isfinite(tensor).all() for tensor in (y, *grads, *dict(state.tensors()).values()))


@torch.no_grad()
def test_angles_stay_exact_over_long_sequences() -> None:
    turned = torch.full((1, 20000, 1, 1), 0.3)
    segments = Segments.of(20000, None, None)
    at_once = angles(turned, None, segments)[0, -1, 0, 0]
    want = math.remainder(20000 * float(turned[0, 0, 0, 0]), 2 * math.pi) % (2 * math.pi)
    assert abs(float(at_once) - want) < 1e-5


def test_several_inputs_cost_no_state() -> None:
    one, several = Mamba3(16, state_dim=8, head_dim=8), Mamba3(16, state_dim=8, head_dim=8, mimo_rank=4)
    assert one.initial_state(1)["ssm"].shape == several.initial_state(1)["ssm"].shape
    assert several.initial_state(1)["key"].shape == (1, 4, 4, 8)


def test_parameters_of_the_published_blocks() -> None:
    for dim, count in ((768, 3_821_872), (1024, 6_693_184), (2048, 26_165_632)):
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in Mamba3(dim).parameters()) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_dim=5), "head_dim: 5 does not divide the 24 inner channels"),
        (dict(head_dim=8, groups=2), "groups: 2 does not divide 3 heads"),
        (dict(head_dim=8, groups=0), "groups: 0 does not divide 3 heads"),
        (dict(head_dim=8, state_dim=5), "state_dim: channels turn in pairs; expected an even number, got 5"),
        (dict(head_dim=8, rope_fraction=1.5), "rope_fraction: expected more than 0 and at most 1, got 1.5"),
        (dict(head_dim=8, state_dim=2), "rope_fraction: 0.5 of 2 channels is not one pair; take more"),
        (dict(head_dim=8, mimo_rank=0), "mimo_rank: expected at least 1 or None, got 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mamba3(12, **options)  # type: ignore[arg-type]


def test_packed_sequences_take_no_resets() -> None:
    mixer = Mamba3(8, state_dim=4, head_dim=4)
    with pytest.raises(ValueError, match="resets: packed sequences"):
        mixer(torch.zeros(1, 3, 8), resets=torch.zeros(1, 3, dtype=torch.bool), offsets=torch.tensor([0, 3]))
