"""Calls that nobody listens to go past torch's dispatcher; all others through it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from statescan import ops
from statescan.ops import _causal_conv1d, _fft_conv, _gated_rms_norm, _linear_scan, _selective_state_step, _ssd_step

OPERATORS = [
    module.OPERATOR
    for module in (_causal_conv1d, _fft_conv, _gated_rms_norm, _linear_scan, _selective_state_step, _ssd_step)
]


@pytest.fixture
def went(monkeypatch):
    """Which way the calls of `gated_rms_norm` and `linear_scan` went."""
    ways = []
    for operator in (_gated_rms_norm.OPERATOR, _linear_scan.OPERATOR):
        for way in ("body", "registered"):
            original = getattr(operator, way)

            def call(*args, _way=way, _original=original):
                ways.append(_way)
                return _original(*args)

            monkeypatch.setattr(operator, way, call)
    return ways


class Listener(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.heard.append(function.name())
        return function(*args, **(kwargs or {}))


def test_every_operator_has_both_ways():
    assert all(operator.body is not None and operator.registered is not None for operator in OPERATORS)


def test_without_a_listener_the_body_runs_at_once(went):
    x, weight = torch.randn(3, 8), torch.nn.Parameter(torch.randn(8))
    ops.gated_rms_norm(x, weight.detach())
    with torch.no_grad():
        ops.gated_rms_norm(x, weight)
    with torch.inference_mode():
        ops.gated_rms_norm(x, weight)
    assert went == ["body"] * 3


def test_a_gradient_goes_through_the_dispatcher(went):
    y = ops.gated_rms_norm(torch.randn(3, 8, requires_grad=True))
    assert went == ["registered"] and y.requires_grad


def test_a_mode_hears_of_the_call(went):
    with Listener() as listener:
        ops.gated_rms_norm(torch.randn(3, 8))
    assert went == ["registered"] and "statescan::gated_rms_norm" in listener.heard


def test_a_profile_shows_the_operator():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.gated_rms_norm(torch.randn(3, 8))
    assert "statescan::gated_rms_norm" in {event.key for event in profile.key_averages()}


def test_shapes_without_memory(went):
    y = ops.gated_rms_norm(torch.empty(3, 8, device="meta"))
    assert went == ["registered"] and y.is_meta and y.shape == (3, 8)


def test_lazily_conjugated_values_are_conjugated(went):
    a, b = torch.randn(2, 5, 3, dtype=torch.complex64) * 0.3, torch.randn(2, 5, 3, dtype=torch.complex64)
    h = ops.linear_scan(a.conj(), b.conj())
    torch.testing.assert_close(h, ops.linear_scan(a, b).conj().resolve_conj())
    assert went == ["registered", "body"]
    imaginary = b.conj().imag  # negated lazily
    assert imaginary.is_neg()
    torch.testing.assert_close(ops.linear_scan(a.real, imaginary), ops.linear_scan(a.real.clone(), imaginary.clone()))


def test_a_gradient_that_nobody_gives():
    x = torch.randn(3, 8, requires_grad=True)
    weight = torch.randn(8)

    class Silent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.sum()

        @staticmethod
        def backward(ctx, grad):
            return None

    Silent.apply(ops.gated_rms_norm(x, weight)).backward()
    assert x.grad is None
