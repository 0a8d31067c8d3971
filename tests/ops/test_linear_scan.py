"""`linear_scan`, real and complex, both ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import check_against_reference, random


def arguments(batch=2, length=19, channels=5, *, constant=False, complex_valued=False, state=True, **options):
    sequences = len(options["offsets"]) - 1 if options.get("offsets") is not None else batch
    shape = (channels,) if constant else (batch, length, channels)
    made = {
        "a": 0.7 * random(*shape, complex_valued=complex_valued),
        "b": random(batch, length, channels, seed=1, complex_valued=complex_valued),
        "return_last_state": True,
    }
    if state:
        made["initial_state"] = random(sequences, channels, seed=2, complex_valued=complex_valued)
    return made | options


def marks(batch, length, *positions):
    resets = torch.zeros(batch, length, dtype=torch.bool)
    for row, position in positions:
        resets[row, position] = True
    return resets


CASES = {
    "plain": dict(state=False),
    "state": dict(),
    "constant": dict(constant=True),
    "reverse": dict(reverse=True),
    "resets": dict(resets=marks(2, 19, (0, 0), (0, 7), (1, 18), (1, 1))),
    "resets in reverse": dict(reverse=True, resets=marks(2, 19, (0, 0), (0, 7), (1, 18))),
    "packed": dict(batch=1, offsets=torch.tensor([0, 4, 4, 5, 19])),
    "packed, constant, in reverse": dict(batch=1, constant=True, reverse=True, offsets=torch.tensor([0, 4, 19])),
    "wide": dict(channels=50),
    "length 1": dict(length=1),
    "length 0": dict(length=0),
    "batch 0": dict(batch=0),
}


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_recurrence(case, complex_valued):
    made = arguments(**CASES[case], complex_valued=complex_valued)
    check_against_reference(ops.linear_scan, ops.linear_scan_reference, made)


def test_half_precision_input_is_computed_wide():
    made = {n: v.bfloat16() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    h, last = ops.linear_scan(**made)
    assert h.dtype == last.dtype == torch.float32
    wanted, _ = ops.linear_scan_reference(
        **{n: v.double() if isinstance(v, torch.Tensor) else v for n, v in made.items()}
    )
    torch.testing.assert_close(h.double(), wanted, rtol=1e-4, atol=1e-4)


def test_real_decay_of_a_complex_input_and_strides():
    a, b = 0.5 * random(2, 9, 6).float()[..., ::2], random(2, 9, 6, complex_valued=True).to(torch.complex64)[..., ::2]
    wanted = ops.linear_scan_reference(a, b.conj())
    torch.testing.assert_close(ops.linear_scan(a, b.conj()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("complex_valued", [False, True])
def test_gradcheck_of_the_reference(complex_valued):
    made = arguments(1, 4, 2, complex_valued=complex_valued)
    names = ["a", "b", "initial_state"]
    assert torch.autograd.gradcheck(
        lambda *v: ops.linear_scan_reference(**dict(zip(names, v, strict=True)), return_last_state=True),
        [made[n].requires_grad_() for n in names],
    )


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("case", ["constant", "resets", "packed"])
def test_registration(case, complex_valued):
    made = arguments(**CASES[case], complex_valued=complex_valued)
    kind = torch.complex64 if complex_valued else torch.float32
    for name in ("a", "b", "initial_state"):
        made[name] = made[name].to(kind).requires_grad_()
    args = tuple(
        a.detach().requires_grad_(a.dtype == kind) if isinstance(a, torch.Tensor) else a
        for a in ops._linear_scan._bind(**made)
    )
    torch.library.opcheck(torch.ops.statescan.linear_scan.default, args)


def test_compiles_as_one_graph():
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    compiled = torch.compile(lambda **kwargs: ops.linear_scan(**kwargs), fullgraph=True, backend="aot_eager")
    for have, want in zip(compiled(**made), ops.linear_scan(**made), strict=True):
        torch.testing.assert_close(have, want)


@given(
    length=st.integers(1, 30), cut=st.integers(0, 30), permutation=st.permutations(range(5)), padding=st.integers(1, 4)
)
def test_splits_permutations_and_padding(length, cut, permutation, padding):
    cut = min(cut, length)
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(1, length).items()}
    h, last = ops.linear_scan(**made)
    first, state = ops.linear_scan(**{**made, "a": made["a"][:, :cut], "b": made["b"][:, :cut]})
    second, state = ops.linear_scan(made["a"][:, cut:], made["b"][:, cut:], initial_state=state, return_last_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)
    resets = marks(1, length, (0, min(cut, length - 1)))
    reset, _ = ops.linear_scan(**made, resets=resets)
    start = min(cut, length - 1)
    alone = ops.linear_scan(made["a"][:, start:], made["b"][:, start:])
    torch.testing.assert_close(reset[:, start:], alone, rtol=1e-4, atol=1e-5)
    order = list(permutation)
    turned = {n: made[n][..., order] for n in ("a", "b", "initial_state")}
    torch.testing.assert_close(ops.linear_scan(**{**made, **turned})[0], h[..., order])
    longer = {n: torch.cat([made[n], torch.ones(1, padding, 5)], 1) for n in ("a", "b")}
    torch.testing.assert_close(ops.linear_scan(**{**made, **longer})[0][:, :length], h)


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(a=torch.ones(2, 5)), ValueError, r"a has shape \(2, 5\); accepted: \(channels,\)"),
    (dict(a=torch.ones(4)), ValueError, r"a has shape \(4,\); expected \(5\)"),
    (dict(b=torch.ones(2, 19)), ValueError, "b has shape"),
    (dict(initial_state=torch.ones(2, 5).cfloat()), TypeError, "initial_state is complex where a and b are real"),
    (dict(a=torch.ones(2, 19, 5).bool()), TypeError, "a has dtype bool"),
])  # fmt: skip
def test_bad_input_is_named(change, error, message):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    with pytest.raises(error, match=message):
        ops.linear_scan(**{**made, **change})
