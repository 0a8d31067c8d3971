"""H3's mixer: its systems as recurrences, heads, states over long sequences, gradients, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from statescan.layers import H3, ShiftKernel, State

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": dict(state_dim=6),
    "heads": dict(state_dim=4, head_dim=3),
    "one-head": dict(state_dim=4, head_dim=6, discretization="zoh"),
    "shared": dict(state_dim=8, copies=1, initialisation="diag-inv"),
    "chunked": dict(state_dim=6, chunk_length=4, head_dim=2),
}
DIM = 6


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def build(key: str, **more: Any) -> H3:
    torch.manual_seed(0)
    layer = H3(DIM, **VARIANTS[key] | more)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(("bias", ".B")):
                parameter += 0.3 * torch.randn_like(parameter)
    return layer.eval()


def by_definition(layer: H3, x: Tensor) -> Tensor:
    """Both systems position by position, products head by head, in complex128."""
    batch, length, dim = x.shape
    heads, size = layer.products.heads, layer.head_dim
    q, k, v = layer.query_projection(x), layer.key_projection(x), layer.value_projection(x)
    dt, A, B, C = layer.kernel.system()
    if layer.kernel.discretization == "bilinear":
        dA, dB = (1 + dt * A / 2) / (1 - dt * A / 2), dt * B / (1 - dt * A / 2)
    else:
        dA, dB = torch.exp(dt * A), B * (torch.exp(dt * A) - 1) / A
    shift = x.new_zeros(batch, dim, layer.state_dim)
    state = torch.zeros(batch, heads, size, size, dA.shape[-1], dtype=dA.dtype)
    outputs = []
    for t in range(length):
        shift = (
            torch.cat([torch.zeros_like(shift[..., :1]), shift[..., :-1]], -1) + layer.shift_kernel.B * k[:, t, :, None]
        )
        key = (shift * layer.shift_kernel.C).sum(-1) + layer.shift_D * k[:, t]
        kv = key.view(batch, heads, size, 1) * v[:, t].view(batch, heads, 1, size)
        state = dA[None, :, None, None] * state + dB[None, :, None, None] * kv[..., None]
        y = 2 * (C[0][None, :, None, None] * state).sum(-1).real + layer.D[:, None, None] * kv
        outputs.append((q[:, t].view(batch, heads, size, 1) * y).sum(2).flatten(1))
    return layer.output_projection(torch.stack(outputs, 1))


@pytest.mark.parametrize("key", VARIANTS)
@torch.no_grad()
def test_the_convolutions_are_the_recurrences(key: str) -> None:
    layer, x = build(key).double(), noise(2, 13, DIM, dtype=torch.float64)
    want = by_definition(layer, x)
    torch.testing.assert_close(layer(x)[0], want, atol=1e-10, rtol=1e-9)
    state, steps = layer.initial_state(2), []
    for t in range(13):
        y, state = layer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), want, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@torch.no_grad()
def test_whole_chunks_and_steps_over_a_long_sequence(dtype: torch.dtype, tolerance: float) -> None:
    length = 4096
    layer, x = build("plain", state_dim=16).to(dtype), noise(1, length, DIM, dtype=dtype)
    want, last = layer(x)
    parts, state = [], None
    for start, end in itertools.pairwise([0, 1, 8, 1000, 1001, 3001, length]):
        y, state = layer(x[:, start:end], state)
        parts.append(y)
    scale = float(want.abs().max())
    assert float((torch.cat(parts, 1) - want).abs().max()) < tolerance * scale
    layer.chunk_length = 512
    passed, passed_state = layer(x)
    assert float((passed - want).abs().max()) < tolerance * scale
    stepped = layer.initial_state(1)
    for t in range(length):
        y, stepped = layer.step(x[:, t], stepped)
    assert float((y - want[:, -1]).abs().max()) < tolerance * scale
    for other in (state, passed_state, stepped):
        assert other is not None
        for name, tensor in last.items():
            assert float((other[name] - tensor).abs().max()) < tolerance * float(tensor.abs().max()), name


@pytest.mark.parametrize("key", ["plain", "heads"])
def test_gradients_of_chunks_are_those_of_the_whole(key: str) -> None:
    layer, x = build(key).double(), noise(2, 9, DIM, dtype=torch.float64)
    weight = noise(2, 9, DIM, dtype=torch.float64) + 1
    grads = []
    for cuts in ([0, 9], [0, 2, 3, 9]):
        layer.zero_grad()
        u, state, parts = x.clone().requires_grad_(), None, []
        for start, end in itertools.pairwise(cuts):
            y, state = layer(u[:, start:end], state)
            parts.append(y)
        (torch.cat(parts, 1) * weight).sum().backward()
        assert u.grad is not None
        found = [u.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
        assert len(found) == 1 + len(list(layer.parameters()))
        grads.append(found)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_gradcheck() -> None:
    layer = build("heads").double()
    x = noise(1, 4, DIM, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: layer(u)[0], (x,))


@torch.no_grad()
def test_the_future_is_not_seen() -> None:
    layer, x = build("heads"), noise(1, 10, DIM)
    changed = x.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(layer(changed)[0][:, :6], layer(x)[0][:, :6], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_bounded_kernels_forget() -> None:
    layer, x = build("plain", max_length=3), noise(1, 10, DIM)
    changed = x.clone()
    changed[:, 0] += 1
    got, want = layer(changed)[0], layer(x)[0]
    assert not torch.allclose(got[:, 4], want[:, 4])  # two positions for the key, two for the product
    torch.testing.assert_close(got[:, 5:], want[:, 5:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_shift_kernel_is_a_correlation() -> None:
    kernel = ShiftKernel(3, 4)
    torch.testing.assert_close(kernel(9), kernel.C, atol=1e-6, rtol=1e-5)  # B begins as a unit impulse
    kernel.B.copy_(noise(3, 4))
    want = torch.stack([(kernel.B[:, : 4 - lag] * kernel.C[:, lag:]).sum(-1) for lag in range(4)], -1)
    torch.testing.assert_close(kernel(9), want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kernel(2), want[:, :2], atol=1e-6, rtol=1e-5)


def test_state_is_left_out_where_none_is_wanted() -> None:
    layer = build("plain")
    assert list(layer(noise(1, 4, DIM), return_state=False)[1]) == []
    assert {n: tuple(t.shape) for n, t in build("heads").initial_state(2).items()} == {
        "shift": (2, 6, 4),
        "ssm": (2, 9, 2, 2, 2),
    }


def test_half_precision_keeps_its_type() -> None:
    layer = build("heads").bfloat16()
    y, state = layer(noise(2, 5, DIM).bfloat16())
    assert y.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for _, tensor in state.tensors())
    y, state = layer.step(noise(2, DIM).bfloat16(), state)
    assert y.dtype == torch.bfloat16
    assert isinstance(state, State)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_dim=4), "head_dim: 4 does not divide 6 channels"),
        (dict(max_length=0), "max_length: at least 1 or None, got 0"),
        (dict(chunk_length=-1), "chunk_length: at least 1 or None, got -1"),
        (dict(state_dim=3), "state_dim: states come in conjugate pairs"),
        (dict(state_dim=0), "state_dim: at least 1, got 0"),
        (dict(discretization="bilinar"), "nearest: 'bilinear'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        H3(DIM, **options)


def test_a_kernel_normalised_by_the_length_has_no_state() -> None:
    layer = H3(DIM, state_dim=4, discretization="dss")
    y, state = layer(noise(1, 5, DIM))
    assert y.shape == (1, 5, DIM)
    assert list(state) == []
    with pytest.raises(ValueError, match="no recurrence"):
        layer.step(noise(1, DIM), layer.initial_state(1))
