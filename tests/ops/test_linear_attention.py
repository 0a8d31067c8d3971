"""`taylor_linear_attention`: its forms against the recurrence in float64, and its features."""

import math

import pytest
import torch

from statescan import ops
from tests.ops._cases import HALF, assert_agree, check_against_reference, random, run


def arguments(batch=2, length=19, heads=3, feature_dim=4, head_dim=5, *, state=True, **options):
    """Named arguments; options are passed on."""
    sequences = len(options["offsets"]) - 1 if options.get("offsets") is not None else batch
    made = {
        "q": random(batch, length, heads, feature_dim),
        "k": random(batch, length, heads, feature_dim, seed=1),
        "v": random(batch, length, heads, head_dim, seed=2),
        "return_last_state": True,
    }
    if state:
        # What a state may be: the sums of some keys' features.
        keys = ops.taylor_features(random(sequences, 4, heads, feature_dim, seed=3))
        values = torch.nn.functional.pad(random(sequences, 4, heads, head_dim, seed=4), (0, 1), value=1.0)
        made["initial_state"] = torch.einsum("bjhe,bjhf->bhef", values, keys)
    return made | options


def marks(batch, length, *positions):
    resets = torch.zeros(batch, length, dtype=torch.bool)
    for row, position in positions:
        resets[row, position] = True
    return resets


CASES = {
    "plain": dict(state=False),
    "from a state": dict(),
    "one channel": dict(feature_dim=1, head_dim=1),
    "wide": dict(batch=1, length=70, heads=2, feature_dim=16, head_dim=33),
    "chunk 1": dict(chunk_size=1),
    "chunk 7": dict(chunk_size=7),
    "resets": dict(chunk_size=8, resets=marks(2, 19, (0, 0), (0, 5), (0, 8), (1, 7), (1, 18))),
    "packed": dict(batch=1, chunk_size=4, offsets=torch.tensor([0, 6, 6, 7, 19])),
    "length 1": dict(length=1),
    "length 0": dict(length=0),
    "batch 0": dict(batch=0),
}


def reference(**given):
    for name in ("form", "chunk_size"):
        given.pop(name, None)
    return ops.taylor_linear_attention_reference(**given)


@pytest.mark.parametrize("form", ["chunked", "parallel"])
@pytest.mark.parametrize("case", CASES)
def test_forms_agree_with_the_recurrence(case, form):
    check_against_reference(ops.taylor_linear_attention, reference, arguments(**CASES[case], form=form))


@pytest.mark.parametrize("form", ["chunked", "parallel"])
def test_float64_is_exact(form):
    made = arguments(length=60, form=form)
    assert_agree(run(ops.taylor_linear_attention, made), run(reference, made), 1e-12)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("form", ["chunked", "parallel"])
def test_half_precision_sums_in_float32(form, dtype):
    made = arguments(form=form)
    check_against_reference(
        ops.taylor_linear_attention, reference, made, dtype=dtype, narrow=("q", "k", "v"), tolerance=HALF[dtype]
    )
    half = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in made.items()}
    y, state = ops.taylor_linear_attention(**half)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)


@torch.no_grad()
def test_a_long_sequence():
    made = arguments(batch=1, length=4096, heads=2, feature_dim=8, head_dim=4, state=False)
    want, last = ops.taylor_linear_attention(**made, form="parallel")
    narrow = {name: value.float() if torch.is_tensor(value) else value for name, value in made.items()}
    y, state = ops.taylor_linear_attention(**narrow)
    torch.testing.assert_close(y, want.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, last.float(), atol=1e-4 * float(last.abs().max()), rtol=0)


@torch.no_grad()
def test_steps():
    made = arguments(length=9)
    want, last = ops.taylor_linear_attention_reference(**made)
    state = made["initial_state"]
    for t in range(9):
        y, state = ops.taylor_linear_attention_step(state, *(made[name][:, t] for name in "qkv"))
        torch.testing.assert_close(y, want[:, t], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(state, last, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("dim", [1, 3, 16])
def test_features_are_the_series_of_the_exponential(dim, reduced):
    q, k = random(7, dim), random(7, dim, seed=1)
    features = [ops.taylor_features(x, reduced=reduced) for x in (q, k)]
    assert features[0].shape == (7, ops.taylor_feature_count(dim, reduced=reduced))
    s = (q * k).sum(-1) / math.sqrt(dim)
    torch.testing.assert_close((features[0] * features[1]).sum(-1), 1 + s + s**2 / 2)
    assert ops.taylor_feature_count(16, reduced=False) == 273
    assert ops.taylor_feature_count(16) == 153


def test_the_mean_of_equal_values_is_that_value():
    made = arguments(state=False) | {"v": torch.full((2, 19, 3, 5), 2.5, dtype=torch.float64)}
    y, _ = ops.taylor_linear_attention(**made)
    torch.testing.assert_close(y, made["v"])


def test_gradients_against_finite_differences():
    made = arguments(batch=1, length=5, heads=1, feature_dim=2, head_dim=2)
    leaves = [made[name].clone().requires_grad_() for name in ("q", "k", "v", "initial_state")]

    for form in ("chunked", "parallel"):

        def function(q, k, v, state, form=form):
            return ops.taylor_linear_attention(q, k, v, form=form, initial_state=state, return_last_state=True)

        assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(q=random(2, 19, 3)), ValueError, "q has shape"),
        (dict(k=random(2, 19, 3, 5)), ValueError, "k has shape"),
        (dict(v=random(2, 18, 3, 5)), ValueError, "v has shape"),
        (dict(v=torch.zeros(2, 19, 3, 5, dtype=torch.int64)), TypeError, "v has dtype int64"),
        (dict(initial_state=random(2, 3, 5, 15)), ValueError, r"initial_state has shape .*expected \(2, 3, 6, 15\)"),
        (dict(form="linear"), ValueError, "form must be 'chunked' or 'parallel', not 'linear'"),
        (dict(chunk_size=0), ValueError, "chunk_size must be at least 1, not 0"),
        (dict(offsets=torch.tensor([0, 19])), ValueError, "offsets pack sequences"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=f"taylor_linear_attention: {message}"):
        ops.taylor_linear_attention(**(arguments() | changes))
