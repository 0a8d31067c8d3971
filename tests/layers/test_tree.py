"""A tree of tokens read in one pass is every path read by itself, and replay is the state after the path."""

import pytest
import torch

import statescan
from statescan import ops
from statescan.layers import MIXERS, Attention, Mamba, Mamba2, build_mixer
from statescan.layers._tree import forward_tree, replay
from tests.generation import _models

TREE = torch.tensor([-1, 0, 0, 1, 1, 2, 3, 3, 5, 8])
TWO = torch.stack([TREE, torch.tensor([-1, 0, 1, 2, 0, 4, 4, 5, 7, 0])])
DIM = 16
BUILT = {
    "mamba": lambda: Mamba(DIM, state_dim=4),
    "mamba, inner norms": lambda: Mamba(DIM, state_dim=4, inner_norm="weighted"),
    "mamba, constant": lambda: Mamba(DIM, state_dim=4, selective=False),
    "mamba2": lambda: Mamba2(DIM, state_dim=8, head_dim=8, groups=2),
    "mamba2, every option": lambda: Mamba2(
        DIM, state_dim=8, head_dim=8, ssm_dim=16, D_per_channel=True, gated_norm=False, dt_limit=(0.01, 0.2)
    ),
    "attention": lambda: Attention(DIM, 4, kv_heads=2, rotary_dim=4, conv_kernel=3, mlp_dim=8),
    "attention, no positions": lambda: Attention(DIM, 2),
    "s4d": lambda: build_mixer("s4d", DIM, state_dim=4),
    "gru": lambda: build_mixer("gru", DIM),
    "h3": lambda: build_mixer("h3", DIM, state_dim=4),
}


def path_to(parents, node):
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, int(parents[path[0]]))
    return path


def assert_same_state(have, want):
    for (name, tensor), (_, wanted) in zip(have.tensors(), want.tensors(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("parents", [TREE, TWO], ids=["one tree", "a tree a sequence"])
@pytest.mark.parametrize("name", BUILT)
@torch.no_grad()
def test_every_path_is_the_sequence(name, parents):
    torch.manual_seed(0)
    mixer = BUILT[name]().eval()
    prefix, nodes = torch.randn(2, 6, DIM), torch.randn(2, 10, DIM)
    _, state = mixer(prefix)
    y, trace = forward_tree(mixer, nodes, parents, state)
    last = torch.tensor([7, 9])
    paths = []
    for row in range(2):
        above = parents.expand(2, -1)[row]
        for node in range(10):
            path = path_to(above, node)
            want, after = mixer(torch.cat([prefix, nodes[:, path]], dim=1)[row : row + 1])
            torch.testing.assert_close(y[row, node], want[0, -1], rtol=1e-4, atol=1e-4)
            if node == last[row]:
                paths.append((path, after))
    for row, (path, after) in enumerate(paths):  # alone
        alone = replay(mixer, trace.select([row]), torch.tensor([path]), state.select([row]))
        assert_same_state(alone, after)
    longest = max(len(path) for path, _ in paths)  # side by side, the shorter one padded
    together = torch.tensor([path + [-1] * (longest - len(path)) for path, _ in paths])
    after = replay(mixer, trace, together, state)
    for row, (path, _) in enumerate(paths):
        rest = torch.randn(1, 3, DIM)
        first, _ = mixer(rest, after.select([row]))
        whole, _ = mixer(torch.cat([prefix[row : row + 1], nodes[row : row + 1, path], rest], dim=1))
        torch.testing.assert_close(first, whole[:, -3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mamba_tiny",
            "mamba2_tiny",
            "hybrid_tiny",
            "zamba2_tiny",
            "transformer_tiny",
            "zamba_tiny",
            "falcon_h1_tiny",
        ),
        *("jamba_tiny", "nemotron_h_moe_tiny", "granite_hybrid_tiny"),
    ],
)
@torch.no_grad()
def test_language_models_read_trees(name):
    torch.manual_seed(0)
    small = {"zamba2_tiny": dict(dim=32, state_dim=8, head_dim=16, heads=2, shared_mlp_dim=32, adapter_rank=4)}
    sizes = _models.SIZES.get(name, small.get(name, {}))
    model = statescan.create_model(name, **{**sizes, "vocab_size": 64}).eval()
    torch.nn.init.normal_(model.head.weight)
    tokens, nodes = torch.randint(64, (1, 7)), torch.randint(64, (1, 10))
    _, state = model(tokens)
    before = state.clone()
    logits, trace = model.forward_tree(nodes, TREE, state)
    assert_same_state(state, before)
    for node in (0, 4, 7, 9):
        path = path_to(TREE, node)
        want, after = model(torch.cat([tokens, nodes[:, path]], dim=1))
        torch.testing.assert_close(logits[0, node], want[0, -1], rtol=1e-3, atol=1e-3)
        assert_same_state(model.replay(trace, torch.tensor([path]), state), after)
    assert model.replay(trace, torch.tensor([[0]]), state).nbytes >= state.nbytes


@torch.no_grad()
def test_the_unrolled_tree_gives_the_same():
    torch.manual_seed(0)
    model = _models.build("mamba2_tiny")
    _, state = model(torch.randint(256, (1, 5)))
    nodes = torch.randint(256, (1, 10))
    logits, _ = model.forward_tree(nodes, TREE, state)
    for leaf in ops.unroll_tree(TREE):
        path = leaf[leaf >= 0]
        rows, _ = model(nodes[:, path], state)
        torch.testing.assert_close(logits[:, path], rows, rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_a_tree():
    mixer = Mamba2(DIM, state_dim=8, head_dim=8)
    y, _ = mixer.forward_tree(torch.randn(1, 10, DIM), TREE, mixer.initial_state(1))
    y.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in mixer.parameters())


def test_what_cannot_read_a_tree_says_so():
    model = _models.build("mamba_tiny")
    state = model.initial_state(1)
    with pytest.raises(ValueError, match="node 1 has parent"):
        model.forward_tree(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([-1, 1]), state)
    _, trace = model.forward_tree(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([-1, 0]), state)
    with pytest.raises(ValueError, match="path: nodes below"):
        model.replay(trace, torch.tensor([[-1, 0]]), state)
    both_ways = MIXERS["attention"](DIM, causal=False)
    with pytest.raises(ValueError, match="causal=False sees one whole sequence"):
        both_ways.forward_tree(torch.zeros(1, 2, DIM), torch.tensor([-1, 0]), both_ways.initial_state(1))

    class Blind(torch.nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Blind has no step"):
        forward_tree(Blind(), torch.zeros(1, 2, DIM), torch.tensor([-1, 0]), state)
