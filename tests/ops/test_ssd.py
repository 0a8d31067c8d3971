"""`ssd` and its step: kernels against the recurrence, for every option."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import FLOAT32, HALF, check_against_reference, random


def arguments(batch=2, length=19, heads=4, head_dim=3, groups=2, state_dim=5, *, D="head", extras=True, **options):
    """Named arguments of `ssd`; options are passed on."""
    sequences = len(options["offsets"]) - 1 if options.get("offsets") is not None else batch
    made = {
        "x": random(batch, length, heads, head_dim),
        "delta": 0.5 * random(batch, length, heads, seed=1),
        "A": -0.1 - 2 * random(heads, seed=2).abs(),
        "B": random(batch, length, groups, state_dim, seed=3),
        "C": random(batch, length, groups, state_dim, seed=4),
        "delta_softplus": True,
        "return_last_state": True,
    }
    if D is not None:
        made["D"] = random(heads, seed=5) if D == "head" else random(heads, head_dim, seed=5)
    if extras:
        made["z"] = random(batch, length, heads, head_dim, seed=6)
        made["delta_bias"] = -2 + 0.5 * random(heads, seed=7)
        made["initial_state"] = random(sequences, heads, head_dim, state_dim, seed=8)
    return made | options


def marks(batch, length, *positions):
    resets = torch.zeros(batch, length, dtype=torch.bool)
    for row, position in positions:
        resets[row, position] = True
    return resets


CASES = {
    "plain": dict(extras=False, D=None),
    "every option": dict(),
    "D per channel": dict(D="channel"),
    "one head": dict(heads=1, groups=1),
    "wide state": dict(batch=1, length=130, heads=2, head_dim=16, groups=1, state_dim=33, chunk_size=64),
    "wide heads": dict(batch=1, length=70, heads=2, head_dim=70, groups=1, state_dim=16, chunk_size=32),
    "many heads": dict(batch=1, length=83, heads=14, head_dim=20, groups=2, state_dim=24, resets=marks(1, 83, (0, 50))),
    "whole registers": dict(batch=1, length=150, heads=5, head_dim=64, groups=1, state_dim=128),
    "chunk 1": dict(chunk_size=1),
    "chunk 7": dict(chunk_size=7),
    "chunk beyond the length": dict(chunk_size=1000),
    "clamped steps": dict(delta_limit=(0.1, 0.3)),
    "resets": dict(chunk_size=8, resets=marks(2, 19, (0, 0), (0, 5), (0, 8), (1, 7), (1, 18))),
    "packed": dict(batch=1, chunk_size=4, offsets=torch.tensor([0, 6, 6, 7, 19])),
    "length 1": dict(length=1),
    "length 0": dict(length=0),
    "batch 0": dict(batch=0),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_recurrence(case):
    check_against_reference(ops.ssd, ops.ssd_reference, arguments(**CASES[case]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", ["every option", "wide state", "resets"])
def test_half_precision(case, dtype):
    check_against_reference(
        ops.ssd,
        ops.ssd_reference,
        arguments(**CASES[case]),
        dtype=dtype,
        narrow=("x", "B", "C", "z"),
        tolerance=HALF[dtype],
    )


@pytest.mark.parametrize("position", [0, 17, 40, 99])
def test_nothing_reaches_back(position):
    made = arguments(1, 100, heads=3, head_dim=20, groups=1, state_dim=20, extras=False)
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in made.items()}
    wanted, _ = ops.ssd(**made)
    for name in ("x", "B", "C"):
        spoiled = made[name].clone()
        spoiled[:, position] = torch.nan
        y, _ = ops.ssd(**{**made, name: spoiled})
        torch.testing.assert_close(y[:, :position], wanted[:, :position])
        assert y[:, position].isnan().all()


def test_strided_input():
    made = arguments(batch=2, length=33, heads=4, head_dim=8, groups=2, state_dim=16, extras=False)
    joined = torch.cat([made["x"].flatten(2), made["B"].flatten(2), made["C"].flatten(2)], dim=-1).float()
    x, B, C = joined.split([32, 32, 32], dim=-1)
    strided = {**made, "x": x.unflatten(-1, (4, 8)), "B": B.unflatten(-1, (2, 16)), "C": C.unflatten(-1, (2, 16))}
    assert not strided["x"].is_contiguous()
    given = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in strided.items()}
    wanted = ops.ssd_reference(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in strided.items()})
    for have, want in zip(ops.ssd(**given), wanted, strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-4, atol=1e-4)


def test_gradcheck_of_the_reference():
    made = arguments(batch=1, length=3, heads=2, head_dim=2, groups=1, state_dim=2)
    names = [n for n, v in made.items() if isinstance(v, torch.Tensor)]
    rest = {n: v for n, v in made.items() if n not in names}
    assert torch.autograd.gradcheck(
        lambda *values: ops.ssd_reference(**dict(zip(names, values, strict=True)), **rest),
        [made[n].requires_grad_() for n in names],
    )


@pytest.mark.parametrize("case", ["every option", "packed", "resets"])
def test_registration(case):
    made = {
        n: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for n, v in arguments(**CASES[case]).items()
    }
    args = ops._ssd._bind(
        **{
            n: v.requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for n, v in made.items()
        }
    )
    args = tuple(a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.statescan.ssd.default, args)


def test_compiles_as_one_graph():
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    compiled = torch.compile(lambda **kwargs: ops.ssd(**kwargs), fullgraph=True, backend="aot_eager")
    for have, want in zip(compiled(**made), ops.ssd(**made), strict=True):
        torch.testing.assert_close(have, want)


lengths = st.integers(1, 40)


@given(length=lengths, cut=st.integers(0, 40), chunk=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_split_gives_what_one_call_gives(length, cut, chunk, seed):
    cut = min(cut, length)
    made = {
        n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(1, length, chunk_size=chunk).items()
    }
    made["x"] = made["x"] + 0.01 * seed
    whole, last = ops.ssd(**made)

    def part(start, end, state):
        timed = {n: made[n][:, start:end] for n in ("x", "delta", "B", "C", "z")}
        return ops.ssd(**{**made, **timed, "initial_state": state})

    first, state = part(0, cut, made["initial_state"])
    second, state = part(cut, length, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


@given(length=st.integers(1, 12))
def test_steps_equal_the_scan(length):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(2, length).items()}
    y, last = ops.ssd(**made)
    state, rows = made["initial_state"], []
    shared = {n: made[n] for n in ("A", "D", "delta_bias", "delta_softplus")}
    for t in range(length):
        timed = {n: made[n][:, t] for n in ("x", "delta", "B", "C", "z")}
        row, state = ops.ssd_step(state, **timed, **shared)
        rows.append(row)
    torch.testing.assert_close(torch.stack(rows, 1), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


@given(length=st.integers(2, 40), at=st.integers(0, 39), chunk=st.integers(1, 16))
def test_a_reset_is_two_calls(length, at, chunk):
    at = min(at, length - 1)
    made = {
        n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(1, length, chunk_size=chunk).items()
    }
    y, last = ops.ssd(**made, resets=marks(1, length, (0, at)))
    timed = {n: made[n][:, at:] for n in ("x", "delta", "B", "C", "z")}
    later, last_later = ops.ssd(**{**made, **timed, "initial_state": None})
    torch.testing.assert_close(y[:, at:], later, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, last_later, rtol=1e-4, atol=1e-4)


@given(permutation=st.permutations(range(4)), padding=st.integers(1, 9))
def test_heads_are_independent_and_the_end_changes_nothing_before(permutation, padding):
    made = {
        n: v.float() if isinstance(v, torch.Tensor) else v
        for n, v in arguments(1, 11, 4, 3, 4, 5, extras=False).items()
    }
    y, _ = ops.ssd(**made)
    order = list(permutation)
    turned = {n: made[n][:, :, order] for n in ("x", "delta", "B", "C")} | {n: made[n][order] for n in ("A", "D")}
    torch.testing.assert_close(ops.ssd(**{**made, **turned})[0], y[:, :, order], rtol=1e-4, atol=1e-4)
    padded = {n: torch.cat([made[n], torch.ones_like(made[n][:, :padding])], 1) for n in ("x", "delta", "B", "C")}
    torch.testing.assert_close(ops.ssd(**{**made, **padded})[0][:, :11], y, rtol=1e-4, atol=1e-4)


def test_step_agrees_with_its_reference_and_has_gradients():
    made = {n: v[:, 0] if n in ("x", "delta", "B", "C", "z") else v for n, v in arguments(length=1).items()}
    made = {n: v for n, v in made.items() if n != "return_last_state"}
    made["state"] = made.pop("initial_state")
    check_against_reference(ops.ssd_step, ops.ssd_step_reference, made, tolerance=FLOAT32)


def test_sequence_index_marks_boundaries():
    index = torch.tensor([[3, 3, 4, 4, 0], [1, 1, 1, 1, 1]])
    resets = ops.resets_from_sequence_index(index)
    assert resets.tolist() == [[False, False, True, False, True], [False] * 5]
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(2, 5, extras=False).items()}
    y, _ = ops.ssd(**made, resets=resets)
    one = {n: made[n][:1, 2:4] for n in ("x", "delta", "B", "C")}
    torch.testing.assert_close(ops.ssd(**{**made, **one})[0], y[:1, 2:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(A=torch.full((4,), float("nan"))), ValueError, r"ssd: A holds NaN \(4 of 4"),
    (dict(x=torch.ones(2, 19, 4, 3).long()), TypeError, "ssd: x has dtype int64"),
    (dict(x=torch.ones(2, 19, 12)), ValueError, "ssd: x has shape .*expected 4 dimensions"),
    (dict(delta=torch.ones(2, 18, 4)), ValueError, r"ssd: delta has shape \(2, 18, 4\); expected \(2, 19, 4\)"),
    (dict(B=torch.ones(2, 19, 3, 5), C=torch.ones(2, 19, 3, 5)), ValueError, "3 groups, which do not divide 4 heads"),
    (dict(C=torch.ones(2, 19, 2, 6)), ValueError, r"ssd: C has shape"),
    (dict(D=torch.ones(5)), ValueError, r"D has shape \(5,\); accepted: \(4,\) or \(4, 3\)"),
    (dict(delta_limit=(1.0, 0.0)), ValueError, "delta_limit must be"),
    (dict(chunk_size=0), ValueError, "chunk_size must be at least 1"),
    (dict(offsets=torch.tensor([0, 19])), ValueError, "batch of 1"),
    (dict(initial_state=torch.ones(2, 4, 5, 3)), ValueError, "initial_state has shape"),
])  # fmt: skip
def test_bad_input_is_named(change, error, message):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(extras=False).items()}
    with pytest.raises(error, match=message):
        ops.ssd(**{**made, **change})
