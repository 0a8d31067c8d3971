"""A step in buffers that stay where they are: it gives what the layers' own step gives, token after token.

Here it runs launch by launch, on the CPU; recorded as a CUDA graph it is the same step, tested where there is a GPU.
"""

from __future__ import annotations

import functools

import pytest
import torch

import statescan
from statescan.generation import StepGraph, _engine, _static_step, generate, graph_reason, stream
from statescan.layers import State

#: Every option that the layers of such a step have.
MODELS = {
    "mamba": ("mamba_tiny", {}),
    "mamba odd": (
        "mamba_tiny",
        dict(dim=40, vocab_size=250, expand=1.5, state_dim=13, conv_kernel=3, dt_rank=7, bias=True, conv_bias=False),
    ),
    "falcon_mamba": ("falcon_mamba_tiny", dict(depth=2)),
    "mamba2": ("mamba2_tiny", dict(depth=2)),
    "mamba2 odd": (
        "mamba2_tiny",
        dict(dim=96, head_dim=16, state_dim=20, groups=3, ssm_dim=96, D_per_channel=True, norm_before_gate=True)
        | dict(dt_limit=(0.01, 0.05), bias=True, residual_in_float32=False),
    ),
    "mamba2 plain": ("mamba2_tiny", dict(depth=2, gated_norm=False, learned_initial_state=True)),
    "mlp and layer norm": ("mamba_tiny", dict(depth=2, mlp_dim=50, norm="layer")),
    "hybrid": ("hybrid_tiny", dict(depth=3, layout=("mamba2", "mlp", "mamba"))),
}
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.05}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@functools.cache
def build(name, dtype=torch.float32, device="cpu"):
    family, options = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = statescan.create_model(family, **options).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # fresh vectors are all ones or zeros
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(device, dtype)


def graph(model, state=1):
    """As it is on a CUDA device, directly elsewhere."""
    if model.device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return StepGraph(model, state, record=model.device.type == "cuda")


def prepared(name, device, dtype=torch.float32):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return build(name, dtype, device)


def assert_near(found, expected, bound):
    assert (found.float() - expected.float()).abs().max() <= bound * expected.float().abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_64_tokens_are_those_of_the_layers(name, dtype, device):
    model = prepared(name, device, dtype)
    tokens = torch.randint(0, model.config.vocab_size, (3, 73), device=device)
    with torch.no_grad():
        _, state = model(tokens[:, :9])
        decoder = graph(model, state)
        places = [tensor.data_ptr() for _, tensor in decoder._static.state.tensors()]
        kept = []
        for column in range(9, 73):
            expected, state = model.step(tokens[:, column], state)
            kept.append(decoder.step(tokens[:, column]))
            assert_near(kept[-1], expected, DTYPES[dtype])
        first = decoder.step(tokens[:, 0])
        assert not torch.equal(first, kept[-1])  # what was handed out is not overwritten
        _, state = model.step(tokens[:, 0], state)
    assert [tensor.data_ptr() for _, tensor in decoder._static.state.tensors()] == places
    found = dict(decoder.state().tensors())
    for key, tensor in state.tensors():
        assert found[key].shape == tensor.shape and found[key].dtype == tensor.dtype
        assert_near(found[key], tensor, DTYPES[dtype])
    assert decoder.nbytes == state.nbytes


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_given_stays_as_it_is_and_beginnings_are_the_models(device):
    model = prepared("mamba2 plain", device)
    state = model.initial_state(2)
    before = state.clone()
    decoder = graph(model, state)
    token = torch.ones(2, dtype=torch.int64, device=device)
    first = decoder.step(token)
    for (_, one), (_, two) in zip(state.tensors(), before.tensors(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(graph(model, 2).step(token), first)
    copied = decoder.state()
    decoder.step(token)
    assert any(
        not torch.equal(a, b) for (_, a), (_, b) in zip(copied.tensors(), decoder.state().tensors(), strict=True)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_states_in_half_precision_stay_near(name, device):
    model = prepared(name, device)
    decoder = StepGraph(model, 2, state_dtype=torch.bfloat16, record=device == "cuda")
    state = model.initial_state(2)
    assert 2 * decoder.nbytes == state.nbytes
    tokens = torch.randint(0, 250, (2, 30), device=device)
    with torch.no_grad():
        for column in range(30):
            expected, state = model.step(tokens[:, column], state)
            found = decoder.step(tokens[:, column])
    assert_near(found, expected, 0.03)
    assert decoder.select([1])._static.state["0"]["ssm"].dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [[3, 0, 1], [4], [2, 2, 0, 1, 3, 4, 4]])
def test_sequences_leave_and_fork(rows, device):
    model = prepared("mamba", device)
    tokens = torch.randint(0, 250, (5, 4), device=device)
    with torch.no_grad():
        _, state = model(tokens)
        decoder = graph(model, state).select(torch.tensor(rows, device=device))
        assert decoder.batch_size == len(rows)
        expected, after = model.step(tokens[rows, 0], state.select(rows))
        assert_near(decoder.step(tokens[rows, 0]), expected, 1e-5)
        again = [len(rows) - 1]
        expected, _ = model.step(tokens[:1, 1], after.select(again))
        assert_near(decoder.select(again).step(tokens[:1, 1]), expected, 1e-5)
    with pytest.raises(ValueError, match="there are"):
        decoder.step(tokens[:2, 0])


def test_what_does_not_fit_is_named():
    class Filter:
        def __call__(self, steps):
            return steps

    for name, options, words in (
        ("transformer_tiny", dict(depth=1), "block 0: its mixer is Attention; its cache grows with every token"),
        ("mamba3_tiny", dict(depth=1), "known: Mamba, Mamba2"),
    ):
        model = statescan.create_model(name, **options)
        assert words in graph_reason(model)
        with pytest.raises(ValueError, match="no step in place"):
            StepGraph(model, record=False)
    assert "the model is on cpu" in graph_reason(build("mamba"))
    with pytest.raises(ValueError, match="the model is on cpu"):
        StepGraph(build("mamba"))
    filtered = statescan.create_model("mamba_tiny", depth=1)
    filtered.stack.blocks[0].mixer.token_filter = Filter()
    assert "tokens are filtered" in graph_reason(filtered)
    assert "no stack of residual blocks" in graph_reason(torch.nn.Linear(1, 1))


@pytest.fixture
def directly(monkeypatch):
    """The engine as on a CUDA device, with graphs that are run launch by launch; gives the batch sizes of those made."""
    made = []

    def direct(model, state):
        decoder = StepGraph(model, state, record=False)
        made.append(decoder.batch_size)
        return decoder

    monkeypatch.setattr(_engine, "StepGraph", direct)
    monkeypatch.setattr(_engine, "graph_reason", _static_step.static_reason)
    return made


PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def test_generation_is_what_it_is_without(directly):
    model = build("mamba")
    options = dict(max_new_tokens=40, temperature=0.9, top_k=20, seed=1, keep_states=True, repetition_penalty=1.1)
    with_graph = generate(model, PROMPTS, **options)
    assert directly == [3]
    without = generate(model, PROMPTS, cuda_graph=False, **options)
    assert directly == [3]
    for one, two in zip(with_graph, without, strict=True):
        assert one.tokens == two.tokens
        for (_, a), (_, b) in zip(one.state.model.tensors(), two.state.model.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not a.is_inference()
    (resumed,) = generate(model, state=with_graph[0].state, max_new_tokens=17, temperature=0.9, top_k=20, seed=None,
                          repetition_penalty=1.1)  # fmt: skip
    assert len(resumed.tokens) == 17 and directly == [3, 1]


def test_sequences_that_end_leave_the_graph(directly):
    model = build("mamba")
    stops = [generate(model, [prompt], max_new_tokens=30, temperature=0, cuda_graph=False)[0] for prompt in PROMPTS]
    stop = stops[0].tokens[4]
    wanted = [
        generate(model, [prompt], max_new_tokens=30, temperature=0, stop=[stop], cuda_graph=False)[0].tokens
        for prompt in PROMPTS
    ]
    found = generate(model, PROMPTS, max_new_tokens=30, temperature=0, stop=[stop])
    assert [result.tokens for result in found] == wanted
    assert len({len(tokens) for tokens in wanted}) > 1


def test_a_graph_is_made_where_it_is_worth_it_and_asked_for(directly, monkeypatch):
    model = build("mamba")
    generate(model, PROMPTS, max_new_tokens=_static_step.WORTHWHILE, temperature=0)
    assert directly == []
    generate(model, PROMPTS, max_new_tokens=3, temperature=0, cuda_graph=True)
    assert directly == [3]
    generate(statescan.create_model("transformer_tiny", depth=1).eval(), PROMPTS, max_new_tokens=20, temperature=0)
    assert directly == [3]
    with pytest.raises(ValueError, match=r"cuda_graph: .*cache grows"):
        stream(statescan.create_model("transformer_tiny", depth=1), [[1]], cuda_graph=True)

    def broken(model, state):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(_engine, "StepGraph", broken)
    with pytest.warns(RuntimeWarning, match=r"out of memory.*cuda_graph=False"):
        (result,) = generate(model, [[1]], max_new_tokens=20, temperature=0)
    assert result.tokens == generate(model, [[1]], max_new_tokens=20, temperature=0, cuda_graph=False)[0].tokens
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(model, [[1]], max_new_tokens=20, temperature=0, cuda_graph=True)


def test_where_graphs_cannot_be_it_is_said():
    with pytest.raises(ValueError, match=r"cuda_graph: .*the model is on cpu"):
        generate(build("mamba"), [[1]], max_new_tokens=2, cuda_graph=True)
    assert isinstance(build("mamba").initial_state(1), State)


@pytest.mark.gpu
def test_generation_on_a_gpu_takes_the_graph_by_itself():
    model = prepared("mamba2", "cuda")
    pieces = stream(model, PROMPTS, max_new_tokens=40, temperature=0)
    tokens = [piece.token for piece in pieces]
    assert isinstance(pieces._session, StepGraph) or not pieces._running
    assert tokens == [
        piece.token for piece in stream(model, PROMPTS, max_new_tokens=40, temperature=0, cuda_graph=False)
    ]
