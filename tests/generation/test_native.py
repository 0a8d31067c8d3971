"""The native decode engine: it gives what the layers give, from any state and in any batch, within its weights' bounds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import statescan
from statescan.generation import Session, _native_plan, compile_for_generation, generate, native_reason, stream
from statescan.kernels import cpu
from tests.generation import _models

ATTENTION = dict(heads=4, kv_heads=2, conv_kernel=4, rotary_dim=16, mlp_dim=100, qkv_bias=True, output_bias=True)
#: Models with every option that a layer of the engine has, at widths that fill no block.
MODELS = {
    "mamba": ("mamba_tiny", {}),
    "mamba odd": (
        "mamba_tiny",
        dict(dim=72, vocab_size=250, expand=1.5, state_dim=13, conv_kernel=3, dt_rank=7, bias=True, conv_bias=False),
    ),
    "mamba wide": ("mamba_tiny", dict(dim=80, depth=1, inner_norm="weighted", state_dim=16, tie_embeddings=False)),
    "falcon_mamba": ("falcon_mamba_tiny", dict(depth=2)),
    "mamba2": ("mamba2_tiny", dict(depth=2)),
    "mamba2 odd": (
        "mamba2_tiny",
        dict(dim=96, head_dim=16, state_dim=20, groups=3, ssm_dim=96, D_per_channel=True, norm_before_gate=True)
        | dict(dt_limit=(0.01, 0.05), bias=True, residual_in_float32=False),
    ),
    "mamba2 plain": ("mamba2_tiny", dict(depth=2, gated_norm=False, learned_initial_state=True)),
    "mamba2 attention": (
        "mamba2_tiny",
        dict(attention_layers=(1,), attention=ATTENTION, mlp_dim=100, mlp_bias=True, norm="layer", depth=3),
    ),
    "bamba": ("bamba_tiny", {}),
    "transformer": ("transformer_tiny", dict(depth=2)),
    "hybrid": ("hybrid_tiny", {}),
}
#: Largest difference of a logit over the largest logit, after 23 tokens of random weights.
BOUNDS = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.04, "int4": 0.5}


def build(name):
    family, options = MODELS[name]
    torch.manual_seed(0)
    model = statescan.create_model(family, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # fresh vectors are all ones or zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_states_are_the_layers(name, dtype):
    model = build(name)
    compiled = compile_for_generation(model, dtype)
    for batch in (1, 3):
        tokens = torch.randint(0, model.config.vocab_size, (batch, 23))
        with torch.no_grad():
            expected, state = model(tokens)
            session = compiled.session(batch)
            parts = [session.read(tokens[:, :9], last=9)]
            parts += [session.step(tokens[:, i])[:, None] for i in range(9, 13)]
            parts.append(session.read(tokens[:, 13:], last=10))
        assert distance(torch.cat(parts, dim=1), expected) < BOUNDS[dtype]
        found = dict(session.state().tensors())
        wanted = dict(state.tensors())
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert found[key].shape == tensor.shape and found[key].dtype == tensor.dtype
            if tensor.numel() and tensor.abs().max() > 0:
                assert distance(found[key], tensor) < BOUNDS[dtype], key


@pytest.mark.parametrize("name", MODELS)
def test_layers_and_engine_take_over_from_each_other(name):
    model = build(name)
    compiled = compile_for_generation(model)
    tokens = torch.randint(0, model.config.vocab_size, (2, 12))
    with torch.no_grad():
        expected, _ = model(tokens)
        _, state = model(tokens[:, :4])
        before = {key: tensor.clone() for key, tensor in state.tensors()}
        middle, after = compiled(tokens[:, 4:8], state)
        end, _ = model(tokens[:, 8:], after)
    assert distance(middle, expected[:, 4:8]) < 1e-5
    assert distance(end, expected[:, 8:]) < 1e-5
    for key, tensor in state.tensors():
        assert torch.equal(tensor, before[key]), "a state is a value"


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(level):
    if not cpu._load()[0].handle.statescan_level_supported(level.encode()):
        return  # this processor has none of it
    program = (
        "import torch\n"
        "from tests.generation import test_native as t\n"
        "from statescan.generation import compile_for_generation\n"
        "torch.manual_seed(1)\n"
        "for name in ('mamba odd', 'hybrid'):\n"
        "    model = t.build(name)\n"
        "    for dtype, bound in t.BOUNDS.items():\n"
        "        tokens = torch.randint(0, model.config.vocab_size, (7, 9))\n"
        "        compiled = compile_for_generation(model, dtype)\n"
        "        with torch.no_grad():\n"
        "            assert t.distance(compiled(tokens)[0], model(tokens)[0]) < bound, (name, dtype)\n"
        "            assert t.distance(compiled(tokens[:1])[0], model(tokens[:1])[0]) < bound, (name, dtype)\n"
    )
    environment = os.environ | {"STATESCAN_CPU_LEVEL": level, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same(threads):
    model = build("hybrid")
    tokens = torch.randint(0, 256, (2, 7))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        compiled = compile_for_generation(model)
        session = compiled.session(2)
        found = torch.stack([session.step(tokens[:, i]) for i in range(7)], dim=1)
        together, _ = compiled(tokens)
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        expected, _ = model(tokens)
    assert distance(found, expected) < 1e-5
    assert distance(together, expected) < 1e-5


def test_a_prompt_longer_than_the_workspace_is_read_in_parts():
    model = build("hybrid")
    compiled = compile_for_generation(model)
    tokens = torch.randint(0, 256, (1, 1100))
    with torch.no_grad():
        expected, _ = model(tokens)
    assert distance(compiled.session().read(tokens, last=600), expected[:, -600:]) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_follow_each_other_through_a_long_prompt(threads, dtype, monkeypatch):
    model = build("hybrid")
    tokens = torch.randint(0, 256, (1, 450))
    monkeypatch.setattr(Session, "_apart", lambda session, length: length > 64)  # however few layers there are
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        session = compile_for_generation(model, dtype).session()
        some = session.read(tokens[:, :321], last=131)
        none = session.read(tokens[:, 321:448], last=0)
        found = torch.cat([some, session.read(tokens[:, 448:], last=2)], dim=1)
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        expected, _ = model(tokens)
    assert none.shape[1] == 0
    assert distance(found, torch.cat([expected[:, 190:321], expected[:, 448:]], dim=1)) < BOUNDS[dtype]


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny", "transformer_tiny", "hybrid_tiny"])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}])
def test_generation_draws_the_same_tokens(name, settings):
    model = _models.build(name)
    compiled = compile_for_generation(model)
    prompts = [[3], list(b"a longer prompt, of many tokens"), [9, 8, 7, 6], list(b"another")]
    stop = generate(model, prompts, max_new_tokens=12, **settings)[1].tokens[5]
    expected = generate(model, prompts, max_new_tokens=12, stop=[stop], keep_states=True, **settings)
    found = generate(compiled, prompts, max_new_tokens=12, stop=[stop], keep_states=True, **settings)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens and one.finish_reason == other.finish_reason
        further = generate(model, state=other.state, max_new_tokens=5, **settings)
        again = generate(compiled, state=one.state, max_new_tokens=5, **settings)
        assert again[0].tokens == further[0].tokens


def test_a_stream_tells_its_state_between_tokens():
    model = _models.build("hybrid_tiny")
    compiled = compile_for_generation(model)
    whole = generate(compiled, [[1, 2, 3]], max_new_tokens=9, temperature=0.0)[0].tokens
    pieces = stream(compiled, [[1, 2, 3]], max_new_tokens=4, temperature=0.0)
    begun = [next(pieces).token, next(pieces).token]
    state = pieces.state_of()
    next(pieces)
    assert begun + generate(model, state=state, max_new_tokens=7, temperature=0.0)[0].tokens == whole


def test_half_precision_models_keep_their_states_types():
    model = build("hybrid").to(torch.bfloat16)
    compiled = compile_for_generation(model)
    assert compiled.dtype == "bfloat16"
    tokens = torch.randint(0, 256, (1, 6))
    with torch.no_grad():
        expected, state = model(tokens)
        found, after = compiled(tokens)
    assert distance(found, expected.float()) < 0.05
    kinds = {key: tensor.dtype for key, tensor in state.tensors()}
    assert {key: tensor.dtype for key, tensor in after.tensors()} == kinds


def test_released_weights_are_gone_and_the_engine_goes_on():
    model = build("hybrid")
    tokens = torch.randint(0, 256, (1, 6))
    with torch.no_grad():
        expected, _ = model(tokens)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    compiled = compile_for_generation(model, release=True)
    assert distance(compiled(tokens)[0], expected) < 1e-5
    assert sum(parameter.nbytes for parameter in model.parameters()) < whole / 2


@pytest.mark.parametrize("group", [32, 64])
def test_int4_is_a_scale_times_a_code(group):
    weight = torch.randn(24, 2 * group)
    codes, scales = _native_plan.int4_groups(weight, group)
    assert codes.min() >= -8 and codes.max() <= 7
    restored = (codes * scales.float()[..., None]).flatten(1)
    assert (restored - weight).norm() / weight.norm() < 0.12
    codes = torch.randint(-8, 8, (24, 2, group))
    codes[..., 0] = -8
    exact = codes * 2.0 ** torch.randint(-3, 3, (24, 2, 1))  # what fits is kept
    again, same = _native_plan.int4_groups(exact.flatten(1), group)
    torch.testing.assert_close(again * same.float()[..., None], exact, rtol=0, atol=0)


def test_products_of_packed_weights_are_exact_where_the_weights_are():
    # Weights that int8 and int4 hold exactly: what is left is the rounding of activations to 16 bits.
    model = build("mamba")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "projection" in name:
                parameter.copy_(torch.randint(-7, 8, parameter.shape) * 0.0078125)
                parameter[:, ::32] = -8 * 0.0078125
            if "embedding" in name:
                parameter.copy_(torch.randint(-7, 8, parameter.shape) * 0.0078125)
                parameter[:, ::32] = -8 * 0.0078125
    tokens = torch.randint(0, 256, (1, 11))
    session = compile_for_generation(model, "int4").session()
    with torch.no_grad():
        expected, _ = model(tokens)
    found = torch.cat([session.step(tokens[:, i]) for i in range(11)])
    assert distance(found, expected[0]) < 2e-3


def test_cross_entropy_on_text_hardly_changes():
    """A model of a few hundred steps on real text: what smaller weights cost it, in nats a byte."""
    from statescan.data import read_text

    path = os.path.join(os.path.dirname(__file__), "../../examples/king_james_bible.txt")
    text = torch.tensor(list("".join(p.text for p in read_text([path]))[:40_000].encode()))
    torch.manual_seed(0)
    model = statescan.create_model("mamba_tiny", dim=64, depth=2)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        starts = torch.randint(0, 30_000, (8,))
        batch = torch.stack([text[s : s + 65] for s in starts])
        loss = F.cross_entropy(model(batch[:, :-1])[0].flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    held = text[32_000:36_001]

    def entropy(logits):
        return float(F.cross_entropy(logits[0], held[1:]))

    with torch.no_grad():
        expected = entropy(model(held[None, :-1])[0])
    assert expected < 3.0
    for dtype, margin in {"float32": 1e-4, "bfloat16": 0.005, "int8": 0.005, "int4": 0.05}.items():
        found = entropy(compile_for_generation(model, dtype)(held[None, :-1])[0])
        assert abs(found - expected) < margin, dtype


def test_what_the_engine_does_not_know_is_named():
    model = _models.build("mamba_tiny")
    with pytest.raises(ValueError, match="dtype: unknown 'int3'; known: float32, bfloat16, int8, int4"):
        compile_for_generation(model, "int3")
    with pytest.raises(ValueError, match="group_size: expected one of 32, 64, got 16"):
        compile_for_generation(model, "int4", group_size=16)
    other = statescan.create_model("hybrid_tiny", layout=("s4d",), depth=2)
    with pytest.raises(ValueError, match="cannot run it: block 0: its mixer is S4D; known: Mamba, Mamba2, Attention"):
        compile_for_generation(other)
    assert "not selective" in native_reason(statescan.create_model("mamba_tiny", selective=False))
    assert "float64" in native_reason(_models.build("mamba_tiny").double())
    assert "no stack" in native_reason(torch.nn.Linear(2, 2))


def test_bad_calls_are_refused():
    compiled = compile_for_generation(_models.build("mamba_tiny"))
    session = compiled.session(2)
    with pytest.raises(ValueError, match="the session has 2 sequences, got 3"):
        session.step(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="from 0 to 256, but the vocabulary is 0 to 255"):
        session.step(torch.tensor([0, 256]))
    with pytest.raises(ValueError, match="tokens: there are none"):
        session.read(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="last: from 0 to the 2 positions read, got 3"):
        session.read(torch.zeros(2, 2, dtype=torch.int64), last=3)
    with pytest.raises(ValueError, match="resets: the native engine has none"):
        compiled(torch.zeros(1, 2, dtype=torch.int64), resets=torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="prefill_chunk: expected at least 1 token, got 0"):
        stream(compiled, [[1]], prefill_chunk=0)


@pytest.mark.parametrize("option", ["draft", "long_context"])
def test_what_the_engine_cannot_do_is_refused(option):
    compiled = compile_for_generation(build("mamba"))
    with pytest.raises(ValueError, match=f"{option}: the native engine takes none"):
        statescan.generate(compiled, [[1, 2]], max_new_tokens=2, **{option: object()})
