"""Operators on token trees: every path gives what the plain operator gives along it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import HALF, cast, check_against_reference, random

TREE = torch.tensor([-1, 0, 0, 1, 1, 2, 3, 3, 5, 8])


def arguments(batch=2, parents=TREE, heads=4, head_dim=3, groups=2, state_dim=5, *, D="head", extras=True, **options):
    """Named arguments of `tree_scan`; options are passed on."""
    nodes = parents.shape[-1]
    made = {
        "x": random(batch, nodes, heads, head_dim),
        "delta": 0.5 * random(batch, nodes, heads, seed=1),
        "A": -0.1 - 2 * random(heads, seed=2).abs(),
        "B": random(batch, nodes, groups, state_dim, seed=3),
        "C": random(batch, nodes, groups, state_dim, seed=4),
        "delta_softplus": True,
        "parents": parents,
    }
    if D is not None:
        made["D"] = random(heads, seed=5) if D == "head" else random(heads, head_dim, seed=5)
    if extras:
        made["z"] = random(batch, nodes, heads, head_dim, seed=6)
        made["delta_bias"] = -2 + 0.5 * random(heads, seed=7)
        made["initial_state"] = random(batch, heads, head_dim, state_dim, seed=8)
    return made | options


def selective_arguments(batch=2, parents=TREE, channels=6, states=5, *, extras=True, **options):
    """Named arguments of `selective_tree_scan`; options are passed on."""
    nodes = parents.shape[-1]
    made = {
        "x": random(batch, nodes, channels),
        "delta": 0.5 * random(batch, nodes, channels, seed=1),
        "A": -0.1 - 2 * random(channels, states, seed=2).abs(),
        "B": random(batch, nodes, states, seed=3),
        "C": random(batch, nodes, states, seed=4),
        "delta_softplus": True,
        "parents": parents,
    }
    if extras:
        made["D"] = random(channels, seed=5)
        made["z"] = random(batch, nodes, channels, seed=6)
        made["delta_bias"] = -2 + 0.5 * random(channels, seed=7)
        made["initial_state"] = random(batch, channels, states, seed=8)
    return made | options


#: Two trees side by side, one of them with three roots.
TWO = torch.stack([TREE, torch.tensor([-1, 0, 1, 2, -1, 4, 4, -1, 7, 0])])
CASES = {
    "plain": dict(extras=False, D=None),
    "every option": dict(),
    "a tree a sequence": dict(parents=TWO),
    "D per channel": dict(D="channel"),
    "chain": dict(parents=ops.complete_tree(1, 12)),
    "wide": dict(parents=ops.branching_tree((4, 3)), heads=2, head_dim=37, groups=1, state_dim=33),
    "clamped steps": dict(delta_limit=(0.1, 0.3)),
    "one node": dict(parents=torch.tensor([-1])),
    "no node": dict(parents=torch.tensor([], dtype=torch.int64)),
    "batch 0": dict(batch=0),
}
SELECTIVE_CASES = {
    "plain": dict(extras=False),
    "every option": dict(),
    "a tree a sequence": dict(parents=TWO),
    "wide": dict(parents=ops.branching_tree((4, 3)), channels=19, states=33),
    "one node": dict(parents=torch.tensor([-1])),
    "no node": dict(parents=torch.tensor([], dtype=torch.int64)),
    "batch 0": dict(batch=0),
}


def along_paths(function, made, **options):
    """The plain operator on every path from a root to a node; its last output."""
    parents = made["parents"].expand(made["x"].shape[0], -1)
    y = torch.empty_like(made["x"])
    for row in range(y.shape[0]):
        for node in range(y.shape[1]):
            path = [node]
            while parents[row, path[0]] >= 0:
                path.insert(0, int(parents[row, path[0]]))
            given = {name: value for name, value in made.items() if name != "parents"}
            for name in ("x", "delta", "B", "C", "z"):
                if name in given:
                    given[name] = given[name][row : row + 1, path]
            if "initial_state" in given:
                given["initial_state"] = given["initial_state"][row : row + 1]
            y[row, node] = function(**given, **options)[0, -1]
    return y


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_recurrence(case):
    check_against_reference(ops.tree_scan, ops.tree_scan_reference, arguments(**CASES[case]))


@pytest.mark.parametrize("case", SELECTIVE_CASES)
def test_selective_kernel_agrees_with_the_levels(case):
    made = selective_arguments(**SELECTIVE_CASES[case])
    check_against_reference(ops.selective_tree_scan, ops.selective_tree_scan_reference, made)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("case", ["plain", "every option", "a tree a sequence", "clamped steps"])
def test_every_path_is_the_plain_scan(case, backend):
    made = arguments(**CASES[case])
    given = {name: cast(value, torch.float32) for name, value in made.items()}
    with ops.backend(backend):
        have = ops.tree_scan(**given)
    torch.testing.assert_close(have.double(), along_paths(ops.ssd_reference, made), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["plain", "every option", "a tree a sequence"])
def test_every_path_is_the_plain_selective_scan(case):
    made = selective_arguments(**SELECTIVE_CASES[case])
    torch.testing.assert_close(
        ops.selective_tree_scan(**made), along_paths(ops.selective_scan_reference, made), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("parents", [TREE, TWO])
@pytest.mark.parametrize("state", [True, False])
def test_every_path_is_the_plain_convolution(parents, state):
    made = {
        "x": random(2, 10, 6),
        "weight": random(6, 4, seed=1),
        "bias": random(6, seed=2),
        "parents": parents,
        "activation": "silu",
    }
    if state:
        made["initial_state"] = random(2, 3, 6, seed=3)
    want = along_paths(ops.causal_conv1d_reference, made)
    torch.testing.assert_close(ops.tree_causal_conv1d(**made), want)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype):
    check_against_reference(
        ops.tree_scan,
        ops.tree_scan_reference,
        arguments(),
        dtype=dtype,
        narrow=("x", "B", "C", "z"),
        tolerance=HALF[dtype],
    )


@pytest.mark.parametrize("made", [arguments(), selective_arguments()], ids=["tree_scan", "selective_tree_scan"])
def test_registration(made):
    name = "tree_scan" if made["x"].ndim == 4 else "selective_tree_scan"
    args = getattr(ops, f"_{name}")._bind(
        **{n: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in made.items()}
    )
    args = tuple(a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(getattr(torch.ops.statescan, name).default, args)


def test_gradcheck_of_the_quadratic_form():
    made = arguments(batch=1, parents=TREE[:5], heads=2, head_dim=2, groups=1, state_dim=2)
    names = [n for n, v in made.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    rest = {n: v for n, v in made.items() if n not in names}
    assert torch.autograd.gradcheck(
        lambda *values: ops.tree_scan(**dict(zip(names, values, strict=True)), **rest),
        [made[n].requires_grad_() for n in names],
    )


def test_strong_decay_off_the_path_does_not_overflow():
    made = arguments(extras=False, delta_softplus=False)
    made["delta"] = torch.full_like(made["delta"], 400.0)  # siblings differ by exp(+400 A) off the path
    made["delta"][:, 1::2] = 1e-3
    with ops.backend("reference"):
        y = ops.tree_scan(**made)
    torch.testing.assert_close(y, ops.tree_scan_reference(**made))


@given(nodes=st.integers(1, 24), seed=st.integers(0, 999))
def test_masks_depths_and_paths_of_any_tree(nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    parents = torch.tensor(
        [int(torch.randint(-1, max(node, 1), (), generator=generator)) if node else -1 for node in range(nodes)]
    )
    mask, depths = ops.tree_mask(parents), ops.tree_depths(parents)
    for node in range(nodes):
        path = [node]
        while parents[path[-1]] >= 0:
            path.append(int(parents[path[-1]]))
        assert mask[node].nonzero()[:, 0].tolist() == sorted(path)
        assert int(depths[node]) == len(path)
        found = ops.tree_path_indices(parents, 6)[node].tolist()
        assert found == (list(range(-6, 0)) + path[::-1])[-6:]
    leaves = ops.unroll_tree(parents)
    assert leaves[:, -1].tolist() == [node for node in range(nodes) if node not in parents.tolist()]


def test_trees_by_shape():
    assert ops.complete_tree(2, 6).tolist() == [-1, 0, 0, 1, 1, 2]
    assert ops.branching_tree((2, 1)).tolist() == [-1, 0, 0, 1, 2]
    assert ops.branching_tree(()).tolist() == [-1]


@pytest.mark.parametrize(
    ("parents", "error", "message"),
    [
        (TREE.int(), TypeError, "parents must be an int64 tensor, not int32"),
        (TREE[:4], ValueError, r"parents has shape \(4,\); expected \(10,\) or \(batch, 10\)"),
        (torch.tensor([-1, 0, 2, 0, 0, 0, 0, 0, 0, 0]), ValueError, "node 2 has parent"),
        (TREE.expand(3, -1), ValueError, "parents has 3 trees for a batch of 2"),
    ],
)
def test_what_is_no_tree_is_refused(parents, error, message):
    made = arguments()
    with pytest.raises(error, match=message):
        ops.tree_scan(**made | {"parents": parents})
    with pytest.raises(error, match=message):
        ops.selective_tree_scan(**selective_arguments() | {"parents": parents})
    with pytest.raises(error, match=message):
        ops.tree_causal_conv1d(random(2, 10, 6), random(6, 4), parents=parents)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="children, nodes: at least 1 of each, got 0 and 3"):
        ops.complete_tree(0, 3)
    with pytest.raises(ValueError, match="branching: at least 1 child a level"):
        ops.branching_tree((2, 0))
    with pytest.raises(ValueError, match="tree_scan: B has 3 groups, which do not divide 4 heads"):
        ops.tree_scan(**arguments() | {"B": random(2, 10, 3, 5), "C": random(2, 10, 3, 5)})
    with pytest.raises(ValueError, match="activation must be 'silu' or None"):
        ops.tree_causal_conv1d(random(2, 10, 6), random(6, 4), parents=TREE, activation="relu")
