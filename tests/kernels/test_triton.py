"""Triton kernels against the float64 references: values and every gradient, for the options of every operator.

The interpreter takes milliseconds for what a GPU does in none, so here sizes are the least that reach every branch:
more than one chunk, tile and block, and lengths that fill none of them. On a GPU all cases of the operators' own
tests run too, and large ones.
"""

from __future__ import annotations

import pytest
import torch

from statescan import ops
from tests.ops import test_causal_conv1d as conv
from tests.ops import test_gated_rms_norm as norm
from tests.ops import test_kernels_of_convolutions as convolutions
from tests.ops import test_linear_scan as linear
from tests.ops import test_route_scan as route
from tests.ops import test_selective_scan as scan
from tests.ops import test_selective_state_step as scan_step
from tests.ops import test_ssd as ssd
from tests.ops import test_tree_scan as tree
from tests.ops._cases import FLOAT32, HALF, cast, check_against_reference, random

MODULES = {
    "selective_scan": scan,
    "route_scan": route,
    "ssd": ssd,
    "causal_conv1d": conv,
    "linear_scan": linear,
    "gated_rms_norm": norm,
    "tree_scan": tree,
}

#: What half precision stores; parameters and states stay float32.
NARROW = {
    "selective_scan": ("x", "delta", "z", "B", "C"),
    "route_scan": ("x", "delta", "B", "C"),
    "ssd": ("x", "z", "B", "C"),
    "causal_conv1d": ("x", "weight", "bias", "initial_state"),
    "gated_rms_norm": ("x", "weight", "gate"),
    "tree_scan": ("x", "z", "B", "C"),
}


def offsets(*values):
    return torch.tensor(values)


#: Two walks of 131 positions past a part of 90 cells: the first comes to the even ones, backwards, and to padding where
#: a chunk ends; the second ends in padding alone.
LONG = torch.full((2, 131), -1)
LONG[0, 20:65], LONG[1, :90] = torch.arange(88, -2, -2), torch.arange(90).roll(7)


#: operator, case: options of the `arguments` of the operator's test module.
CASES = {
    ("selective_scan", "every option"): dict(states=3),
    ("selective_scan", "without softplus"): dict(batch=1, extras=False, delta_softplus=False),
    ("selective_scan", "groups"): dict(batch=1, B="group", C="group", channels=18),
    ("selective_scan", "constant B"): dict(batch=1, B="constant", C="group"),
    ("selective_scan", "constant C"): dict(batch=1, C="constant"),
    ("selective_scan", "chunks"): dict(length=70, channels=3, states=2),
    ("selective_scan", "chunks, resets"): dict(
        length=70, channels=2, states=2, resets=scan.marks(2, 70, (0, 0), (0, 5), (0, 63), (1, 64), (1, 69))
    ),
    ("selective_scan", "chunks, packed"): dict(
        batch=1, length=140, channels=2, states=1, offsets=offsets(0, 64, 64, 130, 140)
    ),
    ("selective_scan", "complex"): dict(batch=1, length=70, channels=3, states=2, complex_valued=True),
    ("selective_scan", "complex, resets"): dict(
        batch=1,
        length=70,
        channels=2,
        states=2,
        complex_valued=True,
        B="group",
        groups=2,
        resets=scan.marks(1, 70, (0, 3), (0, 66)),
    ),
    ("selective_scan", "complex, constant"): dict(
        batch=1, complex_valued=True, B="constant", C="constant", offsets=offsets(0, 7, 7, 19)
    ),
    ("selective_scan", "length 1"): dict(length=1),
    ("selective_scan", "length 0"): dict(length=0),
    ("selective_scan", "batch 0"): dict(batch=0),
    ("route_scan", "every option"): dict(height=3, width=7, channels=5),
    ("route_scan", "no extras"): dict(height=3, width=4, channels=2, batch=1, extras=False),
    ("route_scan", "steps as they are"): dict(
        height=3, width=4, channels=2, batch=1, extras=False, delta_softplus=False
    ),
    ("route_scan", "one walk, one state"): dict(height=2, width=5, order="raster", states=1, channels=9),
    ("route_scan", "chunks"): dict(height=10, width=7, channels=3, states=2, order="bidirectional"),
    ("route_scan", "padding"): dict(height=3, width=4, order=route.PADDED),
    ("route_scan", "chunks, padding"): dict(height=9, width=10, channels=2, states=2, order=LONG),
    ("route_scan", "one cell"): dict(height=1, width=1, channels=3),
    ("route_scan", "one channel"): dict(height=3, width=2, channels=1),
    ("route_scan", "length 0"): dict(height=2, width=2, order=torch.zeros(2, 0, dtype=torch.int64)),
    ("route_scan", "no cells"): route.CASES["no cells"],
    ("route_scan", "batch 0"): dict(batch=0),
    ("ssd", "every option"): dict(length=37, chunk_size=16),
    ("ssd", "one group"): dict(batch=1, groups=1, chunk_size=16, D="channel", state_dim=33),
    ("ssd", "wide heads"): dict(batch=1, length=20, heads=1, groups=1, head_dim=70, chunk_size=32),
    ("ssd", "resets"): dict(
        length=37, chunk_size=16, resets=ssd.marks(2, 37, (0, 0), (0, 5), (0, 16), (1, 31), (1, 36))
    ),
    ("ssd", "packed"): dict(batch=1, length=40, chunk_size=16, offsets=offsets(0, 16, 16, 35, 40)),
    ("ssd", "plain"): dict(batch=1, extras=False, D=None),
    ("ssd", "length 1"): dict(length=1),
    ("ssd", "length 0"): dict(length=0),
    ("ssd", "batch 0"): dict(batch=0),
    ("causal_conv1d", "silu"): dict(activation="silu", channels=19),
    ("causal_conv1d", "state"): dict(state=5, activation="silu"),
    ("causal_conv1d", "wide"): dict(width=8, state=7, length=5, bias=False),
    ("causal_conv1d", "resets"): conv.CASES["resets"],
    ("causal_conv1d", "packed"): conv.CASES["packed"],
    ("causal_conv1d", "width 1"): dict(width=1, state=0),
    ("causal_conv1d", "length 1"): dict(length=1, state=3),
    ("causal_conv1d", "length 0"): dict(length=0, state=3),
    ("causal_conv1d", "batch 0"): dict(batch=0),
    ("linear_scan", "chunks"): dict(length=70, channels=19),
    ("linear_scan", "chunks, constant, reverse"): dict(length=70, constant=True, reverse=True),
    ("linear_scan", "chunks, resets, reverse"): dict(
        length=70, channels=3, reverse=True, resets=linear.marks(2, 70, (0, 0), (0, 31), (0, 32), (1, 69))
    ),
    ("linear_scan", "packed"): dict(batch=1, length=70, offsets=offsets(0, 32, 32, 69, 70)),
    ("linear_scan", "packed, reverse"): dict(
        batch=1, length=70, constant=True, reverse=True, offsets=offsets(0, 1, 40, 70)
    ),
    ("linear_scan", "complex"): dict(batch=1, length=40, complex_valued=True, reverse=True),
    ("linear_scan", "complex, resets"): dict(
        batch=1, length=40, constant=True, complex_valued=True, resets=linear.marks(1, 40, (0, 2), (0, 33))
    ),
    ("linear_scan", "length 1"): dict(length=1, state=False),
    ("linear_scan", "length 0"): dict(length=0),
    ("linear_scan", "batch 0"): dict(batch=0),
    ("tree_scan", "every option"): dict(),
    ("tree_scan", "a tree a sequence"): dict(parents=tree.TWO, D="channel", groups=1, state_dim=19),
    ("tree_scan", "plain"): dict(batch=1, extras=False, D=None, parents=ops.branching_tree((4, 3)), head_dim=17),
    ("tree_scan", "one node"): dict(parents=torch.tensor([-1])),
    ("tree_scan", "batch 0"): dict(batch=0),
} | {("gated_rms_norm", case): made for case, made in norm.CASES.items()}

#: For a GPU only: what takes the interpreter too long.
LARGE = {
    ("selective_scan", "large, long"): dict(batch=3, length=1000, channels=200, states=16),
    ("selective_scan", "large, many sequences"): dict(batch=600, length=67, channels=64, states=4),
    ("selective_scan", "large, many groups"): dict(
        batch=2, length=130, channels=768, states=16, B="group", C="group", groups=4
    ),
    ("selective_scan", "large, packed"): dict(
        batch=1, length=1000, channels=70, offsets=offsets(0, 1, 64, 64, 500, 501, 1000)
    ),
    ("selective_scan", "large, complex"): dict(batch=2, length=500, channels=100, states=16, complex_valued=True),
    ("route_scan", "large, four walks"): dict(height=37, width=41, channels=200, states=16),
    ("route_scan", "large, one state"): dict(batch=40, height=14, width=14, channels=96, states=1),
    ("route_scan", "large, padding"): dict(batch=3, height=9, width=10, channels=130, states=4, order=LONG),
    ("ssd", "large, mamba-2"): dict(batch=2, length=300, heads=8, head_dim=64, groups=1, state_dim=128, chunk_size=256),
    ("ssd", "large, wide heads"): dict(batch=1, length=200, heads=4, head_dim=128, groups=2, state_dim=64, D="channel"),
    ("ssd", "large, packed"): dict(
        batch=1, length=700, heads=4, head_dim=64, offsets=offsets(0, 64, 64, 500, 501, 700)
    ),
    ("causal_conv1d", "large, wide"): dict(batch=4, length=1000, channels=1536, state=3, activation="silu"),
    ("linear_scan", "large, long"): dict(batch=2, length=3000, channels=100),
    ("linear_scan", "large, complex"): dict(batch=2, length=1000, channels=100, complex_valued=True, reverse=True),
    ("tree_scan", "large"): dict(parents=ops.complete_tree(2, 63), heads=24, head_dim=64, groups=1, state_dim=128),
    ("tree_scan", "large, many nodes"): dict(parents=ops.complete_tree(3, 128), heads=4, head_dim=64, state_dim=64),
    ("gated_rms_norm", "large, wide"): norm.arguments(500, 5120),
    ("gated_rms_norm", "large, groups"): norm.arguments(500, 4096, group_size=512),
}


#: Sizes of Vandermonde and Cauchy products: rows, heads, states, positions or nodes.
PRODUCTS = {
    "one of each": (1, 1, 1, 1),
    "odd": (3, 2, 5, 63),
    "a block": (1, 2, 2, 64),
    "blocks": (2, 2, 3, 150),
    "more rows than a program": (18, 1, 2, 9),
    "no rows": (0, 2, 3, 8),
    "no states": (2, 2, 0, 8),
    "no length": (2, 2, 3, 0),
}
LARGE_PRODUCTS = {"a layer": (2, 64, 32, 4096), "long": (1, 3, 4, 65_537), "many rows": (40, 8, 5, 777)}


def check_product(name, sizes, device, dtype=torch.complex64, tolerance=convolutions.TOLERANCE):
    rows, heads, states, count = sizes
    numerators = convolutions._weights(rows, heads, states)
    if name == "vandermonde":
        given = [numerators, convolutions._decays(heads, states)]

        def call(function):
            return lambda w, e: function(w.to(device), e.to(device), count).cpu()
    else:
        given, z = [numerators, convolutions._poles(heads, states)], convolutions._nodes(count)

        def call(function):
            return lambda v, w: function(v.to(device), z.to(v.dtype).to(device), w.to(device)).cpu()

    with ops.backend("reference"):
        wanted = convolutions._values_and_gradients(call(getattr(ops, name)), given)
    got = convolutions._values_and_gradients(call(getattr(ops, name)), [t.to(dtype) for t in given])
    for have, want in zip(got, wanted, strict=True):
        assert have.shape == want.shape
        scale = max(float(want.detach().abs().max()) if want.numel() else 0.0, 1e-3)
        assert torch.allclose(have.to(want.dtype), want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_convolution_kernels(name, case, device):
    check_product(name, PRODUCTS[case], device)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
@pytest.mark.parametrize("case", LARGE_PRODUCTS)
def test_large_products_of_convolution_kernels(name, case, device):
    check_product(name, LARGE_PRODUCTS[case], device, tolerance=1e-4)


def test_transposed_vandermonde_product(device):
    signal = convolutions._random(2, 2, 70)
    exponents = convolutions._decays(2, 3)
    wanted = ops.vandermonde_transpose_reference(signal, exponents)
    got = ops.vandermonde_transpose(signal.float().to(device), exponents.to(torch.complex64).to(device)).cpu()
    torch.testing.assert_close(got.to(wanted.dtype), wanted, rtol=1e-5, atol=1e-5)


def test_phases_far_along_a_kernel_are_exact(device):
    exponents = torch.tensor([[-1e-6 + 2.9j, 0.0 - 1.3j]], dtype=torch.complex64)
    weights = torch.ones(1, 1, 2, dtype=torch.complex64)
    length = 20_001
    got = ops.vandermonde(weights.to(device), exponents.to(device), length).cpu()
    wanted = ops.vandermonde_reference(weights.to(torch.complex128), exponents.to(torch.complex128), length)
    torch.testing.assert_close(got[..., -3:].double(), wanted[..., -3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
def test_strided_and_conjugated_products(name, device):
    rows, heads, states = 2, 2, 3
    numerators = convolutions._weights(rows, heads, 2 * states).to(torch.complex64)[..., ::2].conj()
    poles = convolutions._poles(heads, states).to(torch.complex64) / 10
    last = convolutions._nodes(9).to(torch.complex64) if name == "cauchy" else 9
    given = (numerators, last, poles.conj()) if name == "cauchy" else (numerators, poles.conj(), last)
    wanted = getattr(ops, f"{name}_reference")(*given)
    got = getattr(ops, name)(*(t.to(device) if isinstance(t, torch.Tensor) else t for t in given)).cpu()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def made(operator, case):
    options = (CASES | LARGE)[operator, case]
    return options if operator == "gated_rms_norm" else MODULES[operator].arguments(**options)


def check(operator, device, given, **options):
    """Arguments and outputs travel to the device and back inside the function, so that gradients come back too."""
    function = getattr(ops, operator)

    def travel(**given):
        result = function(**{n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()})
        return tuple(r.cpu() for r in result) if isinstance(result, tuple) else result.cpu()

    check_against_reference(travel, getattr(ops, f"{operator}_reference"), given, **options)


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_agrees_with_the_reference(operator, case, device):
    check(operator, device, made(operator, case))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(("operator", "case"), LARGE)
def test_large_sizes(operator, case, device):
    check(operator, device, made(operator, case))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(
    ("operator", "case"), [(n, c) for n, m in MODULES.items() if n != "gated_rms_norm" for c in m.CASES]
)
def test_cases_of_the_operators_own_tests(operator, case, device):
    module = MODULES[operator]
    check(operator, device, module.arguments(**module.CASES[case]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("operator", "case"),
    [
        ("selective_scan", "groups"),
        ("route_scan", "every option"),
        ("ssd", "one group"),
        ("causal_conv1d", "silu"),
        ("gated_rms_norm", "gate first"),
        ("tree_scan", "every option"),
    ],
)
def test_half_precision(operator, case, dtype, device):
    check(operator, device, made(operator, case), dtype=dtype, narrow=NARROW[operator], tolerance=2 * HALF[dtype])


@pytest.mark.parametrize("case", ["chunks", "chunks, resets", "chunks, packed", "complex"])
def test_walking_whole_sequences_gives_what_chunks_side_by_side_give(case, device, monkeypatch):
    from statescan.kernels.triton import selective_scan as kernels

    monkeypatch.setattr(kernels, "SERIAL_FROM", 0)
    check("selective_scan", device, made("selective_scan", case))


@pytest.mark.parametrize("case", ["chunks", "chunks, padding"])
def test_walking_whole_walks_gives_what_chunks_side_by_side_give(case, device, monkeypatch):
    from statescan.kernels.triton import selective_scan as kernels

    monkeypatch.setattr(kernels, "SERIAL_FROM", 0)
    check("route_scan", device, made("route_scan", case))


@pytest.mark.parametrize("case", ["chunks", "chunks, resets, reverse", "packed", "complex"])
def test_walking_whole_sequences_of_a_linear_scan(case, device, monkeypatch):
    from statescan.kernels.triton import linear_scan as kernels

    monkeypatch.setattr(kernels, "SERIAL_FROM", 0)
    check("linear_scan", device, made("linear_scan", case))


@pytest.mark.parametrize(
    ("operator", "case", "way"),
    [
        ("selective_scan", "chunks, resets", 1),
        ("selective_scan", "chunks", 2),
        ("selective_scan", "chunks, packed", 2),
        ("ssd", "wide heads", 1),
        ("causal_conv1d", "silu", 1),
        ("causal_conv1d", "packed", 1),
        # In the interpreter there are no more.
        *(pytest.param("selective_scan", "chunks, resets", way, marks=pytest.mark.gpu) for way in (2, 3)),
        *(pytest.param("ssd", "wide heads", way, marks=pytest.mark.gpu) for way in (2, 3)),
        *(pytest.param("causal_conv1d", "silu", way, marks=pytest.mark.gpu) for way in (2, 3, 4)),
    ],
)
def test_every_way_that_is_chosen_from(operator, case, way, device, monkeypatch):
    from statescan.kernels.triton import _tuning

    taken = []

    def chosen(name, x, sizes, ways, run):
        taken.append(min(way, len(ways) - 1))
        return run(ways[taken[-1]])

    monkeypatch.setattr(_tuning, "fastest", chosen)
    check(operator, device, made(operator, case))
    assert taken


def test_the_fastest_way_is_found_once_for_each_kind_of_problem(monkeypatch):
    pytest.importorskip("triton")
    from statescan.kernels.triton import _tuning

    runs, measured, ways = [], [], ("slow", "lacks room", "fast")

    def run(way):
        runs.append(way)
        return way

    def seconds(call):
        call()
        measured.append(runs.pop())
        return {"slow": 3.0, "fast": 1.0, "lacks room": float("inf")}[measured[-1]]

    def fastest(*shape, sizes=(), ways=ways, dtype=torch.float32):
        return _tuning.fastest("op", torch.ones(shape, dtype=dtype), sizes, ways, run)

    monkeypatch.setattr(_tuning, "_chosen", {})
    monkeypatch.setattr(_tuning, "_seconds", seconds)
    assert fastest(4, 100, 8) == "slow"  # the first, for on a CPU nothing is measured
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(_tuning, "_worthwhile", lambda x: True)
        assert fastest(4, 100, 8, ways=ways[:1]) == "slow" and measured == []
        assert fastest(4, 100, 8) == fastest(4, 120, 8) == "fast"  # of one power of two
        assert measured == list(ways)
        fastest(4, 200, 8), fastest(4, 100, 9), fastest(4, 100, 8, dtype=torch.float16), fastest(4, 100, 8, sizes=(3,))
        assert len(measured) == 5 * len(ways)
    assert fastest(4, 100, 8) == "fast"  # known, though it is not to be measured now: a CUDA graph is recorded, say
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert fastest(4, 100, 8) == "slow"


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_ways_are_timed_where_problems_are_large(device, monkeypatch):
    from statescan.kernels.triton import _tuning

    monkeypatch.setattr(_tuning, "_chosen", {})
    monkeypatch.setattr(_tuning, "WORTHWHILE", 0)
    check("causal_conv1d", device, made("causal_conv1d", "silu"))
    check("selective_scan", device, made("selective_scan", "chunks"))
    check("ssd", device, made("ssd", "plain"))
    assert {key[0].split(",")[0] for key in _tuning._chosen} == {"causal_conv1d", "selective_scan", "ssd"}


@pytest.mark.parametrize("options", [*scan_step.CASES.values(), dict(complex_valued=True, groups=2)], ids=str)
def test_step_of_the_scan(options, device):
    check("selective_state_step", device, scan_step.arguments(**options))


@pytest.mark.parametrize("D", [None, "head", "channel"])
def test_step_of_ssd(D, device):
    given = ssd.arguments(length=1, D=D, extras=True)
    given = {n: v[:, 0] if n in ("x", "delta", "B", "C", "z") else v for n, v in given.items()}
    given["state"] = given.pop("initial_state")
    del given["return_last_state"]
    check("ssd_step", device, given)


def check_in_place(name, state, *args, dtype=None, tolerance=FLOAT32, **options):
    """A step that overwrites its state gives y and the state that the step without the underscore does, twice in a row."""
    step_, step = getattr(ops, f"{name}_"), getattr(ops, name)
    wanted, place = state.clone(), state.data_ptr()
    softplus = {"delta_softplus": True} if name == "ssd_step" else {}
    for _ in range(2):
        with ops.backend("reference"):
            expected, wanted = step(wanted, *args, **softplus, **options)
        y = step_(state, *args, **options)
        assert y.dtype == args[0].dtype and state.data_ptr() == place
        torch.testing.assert_close(y.float(), expected.float(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(state, wanted.to(state.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_step_of_the_scan_in_place(batch, dtype, kept, device):
    x, delta, z, B, C = (
        random(batch, width, seed=seed).to(device, dtype) for seed, width in enumerate((18, 18, 18, 5, 5), 1)
    )
    projected = torch.cat([B, C], 1)  # rows of a wider tensor, as of a projection
    A, D, bias = (random(*shape, seed=9).to(device, torch.float32) for shape in ((18, 5), (18,), (18,)))
    state = random(batch, 18, 5, seed=8).to(device, kept)
    check_in_place(
        "selective_state_step",
        state,
        *(x, delta, -A.abs(), projected[:, :5], projected[:, 5:], D, z),
        delta_bias=bias,
        delta_softplus=True,
        tolerance=max(FLOAT32 if kind == torch.float32 else 2 * HALF[kind] for kind in (dtype, kept)),
    )


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limits", [(0.0, float("inf")), (0.4, 0.9)])
def test_step_of_ssd_in_place(limits, dtype, kept, device):
    x, z = (random(2, 4, 6, seed=seed).to(device, dtype) for seed in (1, 2))
    B, C = (random(2, 2, 5, seed=seed).to(device, dtype) for seed in (3, 4))
    delta, bias, A, D = (random(*shape, seed=5).to(device, torch.float32) for shape in ((2, 4), (4,), (4,), (4,)))
    state = random(2, 4, 6, 5, seed=6).to(device, kept)
    tolerance = max(FLOAT32 if kind == torch.float32 else 2 * HALF[kind] for kind in (dtype, kept))
    options = dict(delta_bias=bias, delta_limit=limits, tolerance=tolerance)
    check_in_place("ssd_step", state, x, delta.to(dtype), -A.abs(), B, C, D, z, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "activation"), [(4, "silu"), (2, None), (1, "silu")])
def test_step_of_the_convolution_in_place(width, activation, dtype, device):
    wide = random(3, 40, seed=1).to(device, dtype)
    weight, bias = (random(*shape, seed=2).to(device, dtype) for shape in ((19, width), (19,)))
    state = random(3, width - 1, 19, seed=3).to(device, dtype)
    tolerance = FLOAT32 if dtype == torch.float32 else 2 * HALF[dtype]
    options = dict(activation=activation, tolerance=tolerance)
    check_in_place("causal_conv1d_step", state, wide[:, 21:], weight, bias, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adds", [True, False])
def test_adding_to_the_residual_stream(adds, dtype, device):
    residual = random(3, 37, seed=1).to(device, torch.float32)
    x = random(3, 37, seed=2).to(device, dtype) if adds else None
    weight = random(37, seed=3).to(device, dtype)
    with ops.backend("reference"):
        wanted = residual if x is None else residual + x
        normed = ops.gated_rms_norm(wanted.to(dtype), weight, eps=1e-3)
    y = ops.add_rms_norm_(residual, x, weight, eps=1e-3)
    tolerance = FLOAT32 if dtype == torch.float32 else 2 * HALF[dtype]
    torch.testing.assert_close(residual, wanted)
    torch.testing.assert_close(y, normed, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("operator", ["selective_scan", "causal_conv1d", "ssd"])
def test_strided_input(operator, device):
    given = MODULES[operator].arguments(batch=2, length=20)
    whole = {n: v for n, v in given.items() if n in ("x", "z", "delta", "B", "C")}
    for name, value in whole.items():  # slices of a wider tensor, as of a projection, and one with time innermost
        wide = torch.cat([random(*value.shape, seed=20), value], dim=-1)
        given[name] = wide[..., value.shape[-1] :] if name != "delta" else value.mT.contiguous().mT
        assert not given[name].is_contiguous()
    check(operator, device, given)


@pytest.mark.parametrize("batch", [1, 3])
def test_routes_with_steps_walk_after_walk(batch, device):
    given = route.arguments(batch=batch, height=3, width=3)
    given["delta"] = given["delta"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    given["x"], given["B"] = (torch.cat([v, v], dim=-1)[..., v.shape[-1] :] for v in (given["x"], given["B"]))
    given["C"] = given["C"].transpose(0, 1).contiguous().transpose(0, 1)
    check("route_scan", device, given)


def test_gradients_repeat_to_the_bit(device):
    given = made("selective_scan", "chunks")
    given = {n: v.float().to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}

    def gradients():
        leaves = {n: v.detach().requires_grad_() for n, v in given.items() if isinstance(v, torch.Tensor)}
        y, last = ops.selective_scan(**{**given, **leaves})
        return torch.autograd.grad(y.square().sum() + last.square().sum(), list(leaves.values()))

    for one, two in zip(gradients(), gradients(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("operator", ["selective_scan", "linear_scan"])
def test_nan_stays_in_its_sequence(operator, device):
    given = MODULES[operator].arguments(batch=2, length=70, resets=linear.marks(2, 70, (0, 40)))
    name = "x" if operator == "selective_scan" else "b"
    given[name][0, 10], given[name][1, 69] = float("nan"), float("nan")
    given = {n: v.float().to(device) if isinstance(v, torch.Tensor) and n != "resets" else v for n, v in given.items()}
    y, _ = getattr(ops, operator)(**{**given, "resets": given["resets"].to(device)})
    assert y[0, 10].isnan().all()
    assert y[0, :10].isfinite().all()
    assert y[0, 40:].isfinite().all()
    assert y[1, :69].isfinite().all()


def test_decays_below_float32_cut_the_state(device):
    given = made("ssd", "plain") | {"delta_softplus": False}
    given["delta"] = given["delta"].abs()
    given["delta"][:, ::3] *= 1e4
    check("ssd", device, given, tolerance=10 * FLOAT32)


@pytest.mark.parametrize("operator", ["selective_scan", "ssd", "causal_conv1d", "linear_scan", "route_scan"])
def test_registration(operator, device):
    size = dict(height=2, width=3) if operator == "route_scan" else dict(length=5)
    given = MODULES[operator].arguments(batch=1, **size)
    given = {n: cast(v, torch.float32) for n, v in given.items()}
    given = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    bound = getattr(ops, f"_{operator}")._bind(**given)
    bound = [v.requires_grad_(v.is_floating_point()) if isinstance(v, torch.Tensor) else v for v in bound]
    torch.library.opcheck(getattr(torch.ops.statescan, operator).default, tuple(bound))


@pytest.mark.gpu
def test_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU or none")
    with ops.backend("triton"):
        check("selective_scan", torch.device("cuda:1"), made("selective_scan", "chunks"))


def test_where_triton_is_not_chosen():
    x = torch.ones(1, 3, 2)
    A = -torch.ones(2, 4)
    B = torch.ones(1, 3, 4)
    assert "triton: used" not in ops.explain("selective_scan", x, x, A, B, B)
    with ops.backend("triton"), pytest.raises(ValueError, match=r"no kernel for torch\.float64"):
        ops.selective_scan(x.double(), x.double(), A.double(), B.double(), B.double())
    wide = torch.ones(1, 2, 3, dtype=torch.complex128)
    with ops.backend("triton"), pytest.raises(ValueError, match=r"no kernel for torch\.complex128"):
        ops.vandermonde(wide, wide[0], 4)
    with ops.backend("triton"), pytest.raises(ValueError, match=r"no kernel for torch\.complex128"):
        ops.cauchy(wide, wide[0, 0], wide[0])
