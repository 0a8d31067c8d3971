"""The locally bidirectional scan against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from statescan import ops
from tests.ops._cases import random

BATCH, CHANNELS, STATES = 2, 3, 4


def arguments(length: int, *, groups: int | None = None) -> dict[str, Tensor]:
    rows = (BATCH, length, STATES) if groups is None else (BATCH, length, groups, STATES)
    return {
        "x": random(BATCH, length, CHANNELS, seed=1),
        "delta": 0.5 * random(BATCH, length, CHANNELS, seed=2),
        "A": -torch.exp(0.3 * random(CHANNELS, STATES, seed=3)),
        "B": random(*rows, seed=4),
        "C": random(*rows, seed=5),
        "D": random(CHANNELS, seed=6),
        "z": random(BATCH, length, CHANNELS, seed=7),
        "delta_bias": 0.5 * random(CHANNELS, seed=8),
    }


@pytest.mark.parametrize(("length", "window"), [(1, 4), (4, 4), (9, 4), (37, 8), (7, 16), (12, 1), (130, "auto")])
def test_values_and_gradients_are_those_of_the_definition(length: int, window: Any) -> None:
    given = arguments(length)
    found = []
    for function in (ops.local_scan, ops.local_scan_reference):
        leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
        state = random(BATCH, CHANNELS, STATES, seed=9).requires_grad_()
        y, last = function(**leaves, window=window, delta_softplus=True, initial_state=state, return_last_state=True)
        weight = torch.cos(torch.arange(y.numel()).double()).view(y.shape)
        gradients = torch.autograd.grad((y * weight).sum() + last.sum(), [*leaves.values(), state])
        found.append([y, last, *gradients])
    for ours, wanted in zip(*found, strict=True):
        assert torch.allclose(ours, wanted, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_stay_near_the_definition(dtype: torch.dtype) -> None:
    given = arguments(40)
    narrow = {name: value.to(dtype) for name, value in given.items()}
    wanted = ops.local_scan_reference(**{k: v.double() for k, v in narrow.items()}, window=8, delta_softplus=True)
    y = ops.local_scan(**narrow, window=8, delta_softplus=True)
    assert isinstance(y, Tensor)
    assert isinstance(wanted, Tensor)
    assert y.dtype == dtype
    error = float((y.double() - wanted).abs().max() / wanted.abs().max())
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)


def test_window_1_is_the_selective_scan() -> None:
    given = arguments(11)
    plain = ops.selective_scan(**given, delta_softplus=True)
    assert torch.allclose(ops.local_scan(**given, window=1, delta_softplus=True), plain)  # type: ignore[arg-type]


def test_a_window_of_the_whole_length_is_both_directions_less_the_own_input() -> None:
    """And is symmetric, which smaller windows are not."""
    given = arguments(9)
    given.pop("z")
    D = given.pop("D")

    def backwards(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.flip(1) if value.ndim == 3 else value for name, value in values.items()}

    forth = ops.selective_scan(**given, delta_softplus=True)
    back = ops.selective_scan(**backwards(given), delta_softplus=True)
    step = torch.nn.functional.softplus(given["delta"] + given["delta_bias"])
    own = (given["B"] * given["C"]).sum(-1, keepdim=True) * step * given["x"]
    wanted = forth + back.flip(1) - own + D * given["x"]  # type: ignore[union-attr, operator]
    for window in (9, 16):
        assert torch.allclose(ops.local_scan(**given, D=D, window=window, delta_softplus=True), wanted)  # type: ignore[arg-type]
    for window, symmetric in ((9, True), (4, False)):
        whole = ops.local_scan(**given, window=window, delta_softplus=True)
        turned = ops.local_scan(**backwards(given), window=window, delta_softplus=True)
        assert torch.allclose(turned.flip(1), whole) == symmetric  # type: ignore[union-attr, arg-type]


def test_groups_of_channels_have_rows_of_their_own() -> None:
    given = arguments(10, groups=3)
    whole = ops.local_scan(**given, window=4, delta_softplus=True)
    for group in range(3):
        one = slice(group, group + 1)
        part = {
            name: value[..., one, :] if name in "ABC" else value[..., one]
            for name, value in given.items()
            if name != "A"
        }
        y = ops.local_scan(**part, A=given["A"][one], window=4, delta_softplus=True)
        assert torch.allclose(y, whole[..., one])  # type: ignore[arg-type, index]


def test_whole_windows_can_be_given_one_after_another() -> None:
    given = arguments(21)
    whole, last = ops.local_scan(**given, window=4, delta_softplus=True, return_last_state=True)
    state, parts = None, []
    for start, end in ((0, 4), (4, 16), (16, 21)):
        part = {name: value[:, start:end] if value.ndim == 3 else value for name, value in given.items()}
        y, state = ops.local_scan(**part, window=4, delta_softplus=True, initial_state=state, return_last_state=True)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole)
    assert state is not None
    assert torch.allclose(state, last)


@pytest.mark.parametrize(("length", "window"), [(1, 4), (128, 4), (129, 8), (256, 8), (257, 16), (10_000, 16)])
def test_auto_follows_the_length(length: int, window: int) -> None:
    assert ops.local_window("auto", length) == window
    assert ops.local_window(5, length) == 5


def test_no_output_sees_beyond_its_window() -> None:
    given = {name: value.requires_grad_() for name, value in arguments(10).items()}
    y = ops.local_scan(**given, window=4, delta_softplus=True)
    (gradient,) = torch.autograd.grad(y[:, 5].sum(), given["x"])  # type: ignore[index]
    reached = gradient.abs().sum((0, 2)) > 0
    assert reached.tolist() == [True] * 8 + [False] * 2


def test_bad_arguments_are_refused() -> None:
    given = arguments(6)
    for window in (0, -1, 2.5, "large", True):
        with pytest.raises(ValueError, match="window: a positive whole number or 'auto'"):
            ops.local_scan(**given, window=window)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="A must be real"):
        ops.local_scan(**(given | {"A": given["A"].to(torch.complex128)}))
    with pytest.raises(ValueError, match=r"B has shape \(3, 4\); accepted"):
        ops.local_scan(**(given | {"B": given["B"][0, :3]}))
    with pytest.raises(ValueError, match="delta has shape"):
        ops.local_scan(**(given | {"delta": given["delta"][:, :3]}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "length", "channels", "states", "groups", "window", "gated"),
    [
        (1, 200, 37, 16, None, 16, True),
        (2, 65, 16, 5, None, 8, False),
        (3, 31, 40, 1, 2, 4, True),
        (1, 130, 7, 20, None, 64, True),
        (2, 1, 3, 4, None, 2, False),
        (1, 70, 20, 8, None, 5, True),  # no such kernel: two scans
    ],
)
def test_the_kernel_computes_values_and_gradients_of_the_definition(
    dtype: torch.dtype,
    batch: int,
    length: int,
    channels: int,
    states: int,
    groups: int | None,
    window: int,
    gated: bool,
) -> None:
    rows = (batch, length, states) if groups is None else (batch, length, groups, states)
    given = {
        "x": random(batch, length, channels, seed=1),
        "delta": 0.5 * random(batch, length, channels, seed=2),
        "B": random(*rows, seed=4),
        "C": random(*rows, seed=5),
    } | ({"z": random(batch, length, channels, seed=7)} if gated else {})
    narrow = {name: value.to(dtype) for name, value in given.items()} | {
        "A": -torch.exp(0.3 * random(channels, states, seed=3)).float(),
        "D": random(channels, seed=6).float(),
        "delta_bias": 0.5 * random(channels, seed=8).float(),
        "initial_state": random(batch, channels, states, seed=9).float(),
    }
    found = []
    for wide in (False, True):
        leaves = {k: (v.double() if wide else v).clone().requires_grad_() for k, v in narrow.items()}
        assert not groups or ops.explain("local_scan", **leaves, window=window).startswith(
            "cpu: " + ("no" if wide else "used")
        )
        y, last = ops.local_scan(**leaves, window=window, delta_softplus=True, return_last_state=True)  # type: ignore[arg-type]
        weight = torch.cos(torch.arange(y.numel()).double()).view(y.shape)
        gradients = torch.autograd.grad((y.double() * weight).sum() + last.sum(), list(leaves.values()))
        found.append([y, last, *gradients])
    near = 2e-5 if dtype == torch.float32 else 2e-2
    for ours, wanted in zip(*found, strict=True):
        assert float((ours.detach().double() - wanted.detach()).abs().max()) < near * (1 + float(wanted.abs().max()))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (1, 6, 0)])
def test_nothing_in_nothing_out(shape: tuple[int, int, int]) -> None:
    batch, length, channels = shape
    x = torch.zeros(shape, requires_grad=True)
    rows = torch.zeros(batch, length, 4)
    y, last = ops.local_scan(x, x, torch.zeros(channels, 4), rows, rows, window=2, return_last_state=True)
    assert y.shape == shape
    assert last.shape == (batch, channels, 4)
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    given = {k: v.float().requires_grad_() for k, v in arguments(9).items()}
    bound = ops._local_scan._bind(**given, window=4, delta_softplus=True)
    torch.library.opcheck(torch.ops.statescan.local_scan.default, bound)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Tensor) -> Any:
        return ops.local_scan(**(given | {"x": x}), window=4, delta_softplus=True)

    assert torch.allclose(compiled(given["x"]), ops.local_scan(**given, window=4, delta_softplus=True))  # type: ignore[arg-type]
