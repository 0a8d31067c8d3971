"""`selective_scan`: kernels against the recurrence, for every option; its memory; forked processes."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import HALF, check_against_reference, random


def arguments(
    batch=2,
    length=19,
    channels=6,
    states=5,
    *,
    B="row",
    C="row",
    groups=3,
    complex_valued=False,
    extras=True,
    **options,
):
    """Named arguments of `selective_scan`; B and C are ``constant``, ``row`` or ``group``."""
    sequences = len(options["offsets"]) - 1 if options.get("offsets") is not None else batch
    shapes = {"constant": (channels, states), "row": (batch, length, states), "group": (batch, length, groups, states)}
    A = -0.1 - 2 * random(channels, states, seed=1).abs()
    made = {
        "x": random(batch, length, channels),
        "delta": 0.5 * random(batch, length, channels, seed=2),
        "A": torch.complex(A, 3 * random(channels, states, seed=3)) if complex_valued else A,
        "B": random(*shapes[B], seed=4, complex_valued=complex_valued),
        "C": random(*shapes[C], seed=5, complex_valued=complex_valued),
        "delta_softplus": True,
        "return_last_state": True,
    }
    if extras:
        made["D"], made["z"] = random(channels, seed=6), random(batch, length, channels, seed=7)
        made["delta_bias"] = -2 + 0.5 * random(channels, seed=8)
        made["initial_state"] = random(sequences, channels, states, seed=9, complex_valued=complex_valued)
    return made | options


def floats(**options):
    return {
        n: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for n, v in arguments(**options).items()
    }


def marks(batch, length, *positions):
    resets = torch.zeros(batch, length, dtype=torch.bool)
    for row, position in positions:
        resets[row, position] = True
    return resets


CASES = {
    "plain": dict(extras=False),
    "every option": dict(),
    "steps as they are": dict(extras=False, delta_softplus=False),
    "groups": dict(B="group", C="group"),
    "a group a channel": dict(B="group", C="row", groups=6),
    "constant B": dict(B="constant"),
    "constant C": dict(C="constant"),
    "constant both": dict(B="constant", C="constant"),
    "one state": dict(states=1),
    "seven states": dict(states=7),
    "sixteen states": dict(states=16, channels=33),
    "sixty-four states": dict(states=64, channels=3),
    "long": dict(batch=1, length=203, channels=20),
    "resets": dict(resets=marks(2, 19, (0, 0), (0, 5), (0, 6), (1, 18))),
    "resets, long": dict(batch=1, length=203, channels=5, resets=marks(1, 203, (0, 63), (0, 64), (0, 150))),
    "packed": dict(batch=1, offsets=torch.tensor([0, 6, 6, 7, 19])),
    "packed, long": dict(batch=1, length=203, offsets=torch.tensor([0, 64, 130, 203])),
    "length 1": dict(length=1),
    "length 0": dict(length=0),
    "batch 0": dict(batch=0),
}


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_recurrence(case, complex_valued):
    made = arguments(**CASES[case], complex_valued=complex_valued)
    if case == "steps as they are":
        made["delta"] = made["delta"].abs()
    check_against_reference(ops.selective_scan, ops.selective_scan_reference, made)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", ["every option", "groups", "resets", "sixteen states"])
def test_half_precision(case, dtype):
    check_against_reference(
        ops.selective_scan,
        ops.selective_scan_reference,
        arguments(**CASES[case]),
        dtype=dtype,
        narrow=("x", "delta", "z", "B", "C"),
        tolerance=2 * HALF[dtype],
    )


def test_both_threads_give_what_one_gives():
    made = floats(batch=1, length=300, channels=64, states=16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.selective_scan(**made)
        torch.set_num_threads(2)
        two = ops.selective_scan(**made)
    finally:
        torch.set_num_threads(before)
    for have, want in zip(two, one, strict=True):
        assert torch.equal(have, want)


def test_strided_halves_of_a_projection():
    joined = random(2, 33, 24).float()
    x, z = joined.chunk(2, dim=-1)
    assert not x.is_contiguous()
    made = floats(batch=2, length=33, channels=12)
    wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in {**made, "x": x, "z": z}.items()}
    for have, want in zip(
        ops.selective_scan(**{**made, "x": x, "z": z}), ops.selective_scan_reference(**wide), strict=True
    ):
        torch.testing.assert_close(have.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("complex_valued", [False, True])
def test_gradcheck_of_the_reference(complex_valued):
    made = arguments(batch=1, length=3, channels=2, states=2, groups=1, complex_valued=complex_valued)
    names = [n for n, v in made.items() if isinstance(v, torch.Tensor)]
    rest = {n: v for n, v in made.items() if n not in names}
    assert torch.autograd.gradcheck(
        lambda *values: ops.selective_scan_reference(**dict(zip(names, values, strict=True)), **rest),
        [made[n].requires_grad_() for n in names],
    )


@pytest.mark.parametrize("case", ["every option", "packed", "resets", "constant both"])
def test_registration(case):
    args = ops._selective_scan._bind(**floats(**CASES[case]))
    args = [a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args]
    torch.library.opcheck(torch.ops.statescan.selective_scan.default, (*args[:-1], True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph_with_gradients(backend):
    made = floats()
    leaves = {n: v.requires_grad_() if isinstance(v, torch.Tensor) else v for n, v in made.items()}

    def loss(**kwargs):
        y, last = ops.selective_scan(**kwargs)
        return y.square().sum() + last.sum()

    names = [n for n, v in leaves.items() if isinstance(v, torch.Tensor)]
    wanted = torch.autograd.grad(loss(**leaves), [leaves[n] for n in names])
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for have, want in zip(torch.autograd.grad(compiled(**leaves), [leaves[n] for n in names]), wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


_TIMED = ("x", "delta", "B", "C", "z")


@given(length=st.integers(1, 90), cut=st.integers(0, 90))
def test_any_split_gives_what_one_call_gives(length, cut):
    cut = min(cut, length)
    made = floats(batch=1, length=length)
    whole, last = ops.selective_scan(**made)
    first, state = ops.selective_scan(**{**made, **{n: made[n][:, :cut] for n in _TIMED}})
    second, state = ops.selective_scan(**{**made, **{n: made[n][:, cut:] for n in _TIMED}, "initial_state": state})
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


@given(length=st.integers(2, 90), at=st.integers(0, 89))
def test_a_reset_is_two_calls(length, at):
    at = min(at, length - 1)
    made = floats(batch=1, length=length)
    y, last = ops.selective_scan(**made, resets=marks(1, length, (0, at)))
    later, last_later = ops.selective_scan(**{**made, **{n: made[n][:, at:] for n in _TIMED}, "initial_state": None})
    torch.testing.assert_close(y[:, at:], later, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, last_later, rtol=1e-4, atol=1e-5)


@given(bounds=st.lists(st.integers(0, 40), max_size=4))
def test_packed_sequences_are_separate_calls(bounds):
    offsets = torch.tensor([0, *sorted(bounds), 40])
    made = floats(batch=1, length=40, offsets=offsets)
    y, last = ops.selective_scan(**made)
    for number, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        one = {n: made[n][:, start:end] for n in _TIMED}
        alone, state = ops.selective_scan(
            **{**made, **one, "offsets": None, "initial_state": made["initial_state"][number : number + 1]}
        )
        torch.testing.assert_close(y[:, start:end], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last[number : number + 1], state, rtol=1e-4, atol=1e-5)


@given(permutation=st.permutations(range(6)), padding=st.integers(1, 9))
def test_channels_are_independent_and_the_end_changes_nothing_before(permutation, padding):
    made = floats(batch=1)
    y, _ = ops.selective_scan(**made)
    order = list(permutation)
    turned = {n: made[n][..., order] for n in ("x", "delta", "z", "D", "delta_bias")} | {"A": made["A"][order]}
    turned["initial_state"] = made["initial_state"][:, order]
    torch.testing.assert_close(ops.selective_scan(**{**made, **turned})[0], y[..., order], rtol=1e-5, atol=1e-5)
    padded = {n: torch.cat([made[n], torch.ones_like(made[n][:, :padding])], 1) for n in _TIMED}
    torch.testing.assert_close(ops.selective_scan(**{**made, **padded})[0][:, :19], y, rtol=1e-5, atol=1e-5)


def test_nan_and_infinity_pass_through_and_stay_in_their_sequence():
    made = floats(extras=False)
    made["x"][0, 7, 2] = float("nan")
    y, _ = ops.selective_scan(**made)
    assert y[0, 7:, 2].isnan().all()
    assert y[0, :7].isfinite().all()
    assert y[1].isfinite().all()
    assert y[0, :, [0, 1, 3, 4, 5]].isfinite().all()
    made["x"][0, 7, 2] = float("inf")
    assert not ops.selective_scan(**made)[0][0, 7, 2].isfinite()


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(A=torch.full((6, 5), float("nan"))), ValueError, r"selective_scan: A holds NaN \(30 of 30"),
    (dict(x=torch.ones(2, 19)), ValueError, "selective_scan: x has shape .*expected 3 dimensions"),
    (dict(x=torch.ones(2, 19, 6).int()), TypeError, "selective_scan: x has dtype int32; accepted: float32"),
    (dict(delta=torch.ones(2, 18, 6)), ValueError, r"delta has shape \(2, 18, 6\); expected \(2, 19, 6\)"),
    (dict(A=torch.ones(5, 5)), ValueError, r"A has shape \(5, 5\)"),
    (dict(B=torch.ones(2, 19, 4, 5)), ValueError, "4 groups, which do not divide 6 channels"),
    (dict(B=torch.ones(19, 5)), ValueError, "B has shape"),
    (dict(C=torch.ones(2, 19, 1, 1, 5)), ValueError, r"C has shape .*accepted: \(channels, states\)"),
    (dict(D=torch.ones(5)), ValueError, "D has shape"),
    (dict(initial_state=torch.ones(3, 6, 5)), ValueError, "initial_state has shape"),
    (dict(resets=torch.zeros(2, 19)), TypeError, "resets must be a bool tensor"),
    (dict(resets=torch.zeros(2, 19).bool(), offsets=torch.tensor([0, 19])), ValueError, "give one of them"),
    (dict(offsets=torch.tensor([0, 19])), ValueError, "batch of 1"),
    (dict(x="text"), TypeError, "x must be a tensor, not str"),
])  # fmt: skip
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.selective_scan(**{**floats(extras=False), **change})


def test_explain_says_what_runs_and_why():
    made = floats()
    lines = ops.explain("selective_scan", **made).splitlines()
    assert "cpu: used" in lines
    assert "reference: not needed" in lines
    wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in made.items()}
    assert "reference: used" in ops.explain("selective_scan", **wide)
    with pytest.raises(ValueError, match="nearest: 'selective_scan'"):
        ops.explain("selective_scam")
    with pytest.raises(ValueError, match="nearest: 'reference'"), ops.backend("referense"):
        pass


_MEMORY = """
import sys, torch
from statescan import ops
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(2)
length = int(sys.argv[1])
make = lambda *shape: torch.randn(*shape).mul_(0.1).requires_grad_()
def inputs(length):
    A = (-torch.rand(256, 16)).requires_grad_()
    return [make(1, length, 256), make(1, length, 256), A, make(1, length, 16), make(1, length, 16)]
def run(tensors):
    y = ops.selective_scan(*tensors, delta_softplus=True)
    y.backward(torch.ones_like(y))
run(inputs(64))
tensors = inputs(length)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from what is resident now
before = peak()
run(tensors)
print(peak() - before, sum(t.nbytes for t in tensors))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from Linux's /proc")
def test_memory_of_the_backward_pass_is_linear_and_below_four_times_the_inputs():
    peaks = {}
    for length in (8192, 16384):
        done = subprocess.run([sys.executable, "-c", _MEMORY, str(length)], check=True, capture_output=True, text=True)
        peaks[length], inputs = map(int, done.stdout.split())
        assert peaks[length] < 4 * inputs
    assert peaks[16384] < 2.5 * peaks[8192]


_FORK = """
import os, signal, torch
from statescan import ops
from statescan.kernels import cpu
from statescan.kernels import cpu
torch.set_num_threads(2)
torch.manual_seed(0)
x, delta = torch.randn(1, 2000, 64), torch.rand(1, 2000, 64)
A, B, C = -torch.rand(64, 16), torch.randn(1, 2000, 16), torch.randn(1, 2000, 16)
expected = ops.selective_scan(x, delta, A, B, C).numpy().tobytes()  # starts the pool whose threads a fork loses
child = os.fork()
if child == 0:
    signal.alarm(30)
    y = ops.selective_scan(x, delta, A, B, C)
    os._exit(0 if y.numpy().tobytes() == expected and cpu.threads() == 1 else 1)
_, status = os.waitpid(child, 0)
print(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_hang_in_a_kernel():
    # in a process of its own: torch's own parallel regions, which the poisoned memory of this one uses, would hang
    done = subprocess.run([sys.executable, "-c", _FORK], check=True, capture_output=True, text=True, timeout=90)
    assert done.stdout.split() == ["0"]


class _Scanning(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return ops.selective_scan(**floats(batch=1, length=500, channels=64, states=16))[0][0]


def test_a_data_loader_worker_does_not_hang_in_a_kernel():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ops.selective_scan(**floats(batch=1, length=2000, channels=64, states=16))
        loader = torch.utils.data.DataLoader(_Scanning(), batch_size=1, num_workers=1, timeout=60)
        assert sum(1 for _ in loader) == 2
    finally:
        torch.set_num_threads(before)
