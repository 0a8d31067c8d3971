"""Vandermonde and Cauchy products and the FFT convolution: kernels against float64 references, gradients included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops

# float32 sums of up to a few thousand terms
TOLERANCE = 2e-5


def _random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator)


def _weights(*shape):
    return torch.complex(_random(*shape), _random(*shape, seed=2))


def _decays(heads, states):
    return torch.complex(-0.02 * _random(heads, states).abs(), 0.5 * _random(heads, states, seed=1))


def _poles(heads, states):
    return torch.complex(-0.1 - _random(heads, states).abs(), 3 * _random(heads, states, seed=1))


def _nodes(count):
    return (
        2j * torch.tan(torch.linspace(0, 1.57, count, dtype=torch.float64)).cdouble()
        if count
        else torch.zeros(0).cdouble()
    )


def _narrow(tensor):
    if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def _values_and_gradients(function, tensors):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    weight = _random(*out.shape, 2, seed=5).to(out.real.dtype)
    loss = (out.real * weight[..., 0]).sum() + ((out.imag * weight[..., 1]).sum() if out.is_complex() else 0.0)
    present = [t for t in leaves if t is not None]
    return [out, *torch.autograd.grad(loss, present, allow_unused=True, materialize_grads=True)]


def _agree(function, reference, tensors, tolerance=TOLERANCE):
    wanted = _values_and_gradients(reference, tensors)
    got = _values_and_gradients(function, [_narrow(t) for t in tensors])
    for have, want in zip(got, wanted, strict=True):
        assert have.shape == want.shape
        scale = max(float(want.detach().abs().max()) if want.numel() else 0.0, 1e-3)
        assert torch.allclose(have.to(want.dtype), want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("rows", "heads", "states", "length"), [
    (1, 1, 1, 1), (1, 3, 5, 63), (2, 4, 7, 64), (3, 2, 16, 1000), (1, 2, 3, 2500), (2, 3, 4, 0), (0, 3, 4, 8),
    (2, 3, 0, 8),
])  # fmt: skip
def test_vandermonde(rows, heads, states, length):
    tensors = [
        torch.complex(_random(rows, heads, states), _random(rows, heads, states, seed=2)),
        _decays(heads, states),
    ]
    _agree(lambda w, e: ops.vandermonde(w, e, length), lambda w, e: ops.vandermonde_reference(w, e, length), tensors)


@pytest.mark.parametrize(
    ("rows", "heads", "states", "length"), [(1, 1, 1, 1), (3, 2, 5, 100), (2, 3, 4, 0), (1, 2, 3, 2100)]
)
def test_vandermonde_transpose(rows, heads, states, length):
    tensors = [_random(rows, heads, length), _decays(heads, states)]
    _agree(ops.vandermonde_transpose, ops.vandermonde_transpose_reference, tensors)


@pytest.mark.parametrize(("rows", "heads", "states", "nodes"), [
    (1, 1, 1, 1), (4, 3, 5, 17), (6, 2, 8, 160), (1, 2, 3, 501), (2, 3, 4, 0), (2, 3, 0, 8),
])  # fmt: skip
def test_cauchy(rows, heads, states, nodes):
    z = _nodes(nodes)
    tensors = [_weights(rows, heads, states), _poles(heads, states)]
    _agree(lambda v, w: ops.cauchy(v, z.to(v.dtype), w), lambda v, w: ops.cauchy_reference(v, z, w), tensors)


@pytest.mark.parametrize(("batch", "length", "channels", "taps", "ahead"), [
    (1, 1, 1, 1, 0), (2, 17, 3, 17, 17), (2, 33, 20, 64, 9), (1, 100, 16, 7, 0), (3, 64, 5, 64, 200), (2, 0, 3, 4, 4),
    (0, 8, 3, 4, 4), (2, 1, 3, 5, 5), (1, 1, 4, 1, 0), (1, 64, 17, 64, 63), (2, 65, 4, 65, 64), (1, 97, 33, 200, 5),
    (1, 192, 5, 192, 191), (1, 257, 16, 3, 256), (1, 1023, 8, 1023, 0), (1, 1600, 5, 1600, 1599),
])  # fmt: skip
@pytest.mark.parametrize("extras", [False, True])
def test_fft_conv(batch, length, channels, taps, ahead, extras):
    tensors = [_random(batch, length, channels), _random(channels, taps)]
    tensors += [_random(channels), _random(batch, length, channels, seed=3)] if extras else [None, None]
    tensors += [_random(channels, ahead, seed=4) if ahead else None]

    def call(function):
        return lambda *t: function(t[0], t[1], t[2], gate=t[3], anticausal_kernel=t[4])

    def unpack(function):
        def run(*present):
            given_tensors = iter(present)
            return call(function)(*[None if t is None else next(given_tensors) for t in tensors])

        return run

    present = [t for t in tensors if t is not None]
    _agree(unpack(ops.fft_conv), unpack(ops.fft_conv_reference), present, tolerance=1e-4)


# Every number of passes that a transform can have, of powers of two and of three times one.
@pytest.mark.parametrize(("batch", "length", "ahead"), [
    (1, 4097, 0), (2, 7000, 100), (3, 9000, 0), (1, 20_000, 19_999), (2, 40_000, 0), (1, 70_000, 100), (1, 300_000, 0),
])  # fmt: skip
def test_fft_conv_of_long_signals(batch, length, ahead):
    tensors = [_random(batch, length, 5), _random(5, length) / length**0.5, _random(5)]
    tensors += [_random(5, ahead, seed=4)] if ahead else []

    def run(x, kernel, D, future=None):
        return ops.fft_conv(x, kernel, D, anticausal_kernel=future)

    _agree(run, run, tensors, tolerance=1e-5)  # the reference is quadratic: float64 goes through torch.fft


@given(length=st.integers(1, 40), taps=st.integers(1, 60), seed=st.integers(0, 1000))
def test_fft_conv_is_causal_and_shift_invariant(length, taps, seed):
    x, kernel = _random(1, length, 2, seed=seed), _random(2, taps, seed=seed + 1)
    y = ops.fft_conv(x, kernel)
    longer = ops.fft_conv(torch.nn.functional.pad(x, (0, 0, 3, 2)), kernel)
    torch.testing.assert_close(longer[:, :3], torch.zeros(1, 3, 2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(longer[:, 3 : 3 + length], y, rtol=0, atol=1e-9)


def test_half_precision_input_keeps_its_type():
    x, kernel = _random(2, 50, 3).bfloat16(), _random(3, 50, dtype=torch.float32)
    y = ops.fft_conv(x, kernel)
    assert y.dtype == torch.bfloat16
    wanted = ops.fft_conv_reference(x.double(), kernel.double())
    assert torch.allclose(y.double(), wanted, rtol=1e-2, atol=0.1)


def test_strided_and_conjugated_views():
    w, e = torch.complex(_random(2, 3, 4), _random(2, 3, 4, seed=1)), _decays(3, 4)
    e = e.to(torch.complex64)
    wide = torch.view_as_complex(torch.view_as_real(w.to(torch.complex64)).repeat_interleave(2, 2).contiguous())[
        ..., ::2
    ]
    torch.testing.assert_close(
        ops.vandermonde(wide.conj(), e.conj(), 50),
        ops.vandermonde_reference(wide.conj(), e.conj(), 50),
        rtol=1e-4,
        atol=1e-4,
    )
    x = _random(2, 20, 8, dtype=torch.float32)[..., ::2]
    kernel = _random(20, 4, dtype=torch.float32).T
    torch.testing.assert_close(ops.fft_conv(x, kernel), ops.fft_conv_reference(x, kernel), rtol=1e-4, atol=1e-4)


CALLS = {
    "vandermonde": lambda: (torch.ops.statescan.vandermonde.default, (
        torch.randn(2, 3, 4, dtype=torch.complex64, requires_grad=True),
        _decays(3, 4).to(torch.complex64).requires_grad_(), 33)),
    "cauchy": lambda: (torch.ops.statescan.cauchy.default, (
        torch.randn(2, 3, 4, dtype=torch.complex64, requires_grad=True), _nodes(9).to(torch.complex64),
        _poles(3, 4).to(torch.complex64).requires_grad_())),
    "fft_conv": lambda: (torch.ops.statescan.fft_conv.default, (
        torch.randn(2, 9, 3, requires_grad=True), torch.randn(3, 9, requires_grad=True),
        torch.randn(3, requires_grad=True), torch.randn(2, 9, 3, requires_grad=True),
        torch.randn(3, 4, requires_grad=True))),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_registration(name):
    operator, arguments = CALLS[name]()
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_every_backend_gives_the_same(name, backend):
    torch.manual_seed(0)
    operator, arguments = CALLS[name]()
    with ops.backend("reference"):
        wanted = operator(*arguments)
    with ops.backend(backend):
        torch.testing.assert_close(operator(*arguments), wanted, rtol=1e-4, atol=1e-4)


def test_gradcheck_of_the_references():
    w, e = torch.complex(_random(1, 2, 2), _random(1, 2, 2, seed=1)), _decays(2, 2)
    assert torch.autograd.gradcheck(
        lambda a, b: ops.vandermonde_reference(a, b, 5), (w.requires_grad_(), e.requires_grad_())
    )
    v, p, z = w.detach().requires_grad_(), _poles(2, 2).requires_grad_(), _nodes(4)
    assert torch.autograd.gradcheck(lambda a, b: ops.cauchy_reference(a, z, b), (v, p))
    x = [_random(1, 5, 2), _random(2, 4), _random(2), _random(1, 5, 2, seed=3), _random(2, 3, seed=4)]
    assert torch.autograd.gradcheck(
        lambda a, b, c, d, f: ops.fft_conv_reference(a, b, c, gate=d, anticausal_kernel=f),
        [t.requires_grad_() for t in x],
    )


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: ops.vandermonde(torch.randn(1, 2, 3), _decays(2, 3), 4), TypeError, "weights has dtype float32"),
    (lambda: ops.vandermonde(_decays(2, 3)[None], _decays(2, 4), 4), ValueError, r"exponents has shape \(2, 4\)"),
    (lambda: ops.vandermonde(_decays(2, 3)[None], _decays(2, 3), -1), ValueError, "length must not be negative"),
    (lambda: ops.cauchy(_poles(2, 3), _nodes(3), _poles(2, 3)), ValueError, "v has shape.*expected 3 dimensions"),
    (lambda: ops.fft_conv(torch.randn(1, 4, 2), torch.randn(3, 4)), ValueError, r"kernel has shape \(3, 4\)"),
    (lambda: ops.fft_conv(torch.randn(4, 2), torch.randn(2, 4)), ValueError, "x has shape.*expected 3 dimensions"),
    (lambda: ops.fft_conv(torch.ones(1, 4, 2).long(), torch.randn(2, 4)), TypeError, "x has dtype int64"),
])  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fft_conv_in_half_precision_with_every_gradient(dtype):
    tensors = [_random(2, 70, 21).to(dtype), _random(21, 70).float() / 70, _random(21).float()]
    tensors += [_random(2, 70, 21, seed=3).to(dtype), _random(21, 69, seed=4).float() / 70]

    def run(*t):
        return ops.fft_conv(t[0], t[1], t[2], gate=t[3], anticausal_kernel=t[4])

    def wanted(*t):
        return ops.fft_conv_reference(t[0], t[1], t[2], gate=t[3], anticausal_kernel=t[4])

    got = _values_and_gradients(run, tensors)
    for index, want in enumerate(_values_and_gradients(wanted, [t.double() for t in tensors])):
        assert got[index].dtype == (tensors[index - 1].dtype if index else dtype)
        assert torch.allclose(got[index].double(), want, rtol=0, atol=2e-2 * float(want.detach().abs().max()))


def test_fft_conv_on_several_threads_gives_the_same():
    tensors = [_random(2, 200, 40).float(), _random(40, 200).float(), _random(40).float()]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(_values_and_gradients(ops.fft_conv, tensors))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_nan_stays_in_its_sequence_and_channel():
    x = _random(2, 50, 6).float()
    x[0, 20, 3] = float("nan")
    y = ops.fft_conv(x, _random(6, 50).float())
    assert y[0, :, 3].isnan().any()
    y[0, :, 3] = 0
    assert y.isfinite().all()
