"""The benchmark of contexts: models of equal size, caches that hold what they should, a GGUF file with every weight."""

import argparse

import pytest
import torch

import statescan
from benchmarks import contexts
from statescan.generation import compile_for_generation

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models():
    mamba = statescan.create_model("mamba_tiny").eval()
    with torch.no_grad():
        yield mamba, contexts.transformer(mamba)


def test_the_transformer_has_as_many_parameters(models):
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    with torch.device("meta"):
        large = statescan.create_model("mamba_130m")
        sizes = [sum(p.numel() for p in model.parameters()) for model in (large, contexts.transformer(large))]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)


def test_a_token_sees_the_whole_cache_and_only_it(models):
    cached = contexts.Cached(models[1], 24)
    assert cached.nbytes == sum(2 * 25 * models[1].config.hidden_size * 4 for _ in cached.cache.layers)
    with torch.no_grad():
        first = cached.step().logits
        torch.testing.assert_close(cached.step().logits, first)  # at the same place again
        cached.cache.layers[0].values[:, :, 0] += 1  # the oldest
        assert not torch.allclose(cached.step().logits, first)


def test_a_llama_in_gguf_has_every_weight(models, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = models[1]
    contexts.write_llama(model, str(tmp_path / "model.gguf"), "float16")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert sum(t.n_elements for t in tensors.values()) == sum(p.numel() for p in model.parameters())
    layer = model.model.layers[0].self_attn
    value, query = (torch.tensor(tensors[f"blk.0.attn_{name}.weight"].data) for name in "vq")
    torch.testing.assert_close(value, layer.v_proj.weight.detach().half())
    heads = model.config.num_attention_heads
    half = model.config.head_dim // 2
    theirs = query.unflatten(0, (heads, half, 2))  # pairs of neighbours are rotated together
    torch.testing.assert_close(
        torch.cat([theirs[:, :, 0], theirs[:, :, 1]], 1), layer.q_proj.weight.detach().half().unflatten(0, (heads, -1))
    )


def test_rows_are_of_every_engine_and_drawn(models, tmp_path, capsys):
    mamba, llama = models
    sessions = {"float32": compile_for_generation(mamba).session()}
    options = argparse.Namespace(clock="process", rounds=2)
    with torch.no_grad():
        rows = [
            row for context in (16, 32) for row in contexts.measure(context, sessions, {"float32": llama}, {}, options)
        ]
    assert [(row["context"], row["model"]) for row in rows] == [
        (context, name) for context in (16, 32) for name in (contexts.OURS, "Transformer, transformers")
    ]
    ours, theirs = [[row["cache or state, MB"] for row in rows[first::2]] for first in (0, 1)]
    assert ours[0] == ours[1] and theirs[0] < theirs[1]
    assert all(row["Mamba is faster by"] == 1 for row in rows[::2])
    made = [row | {"Mamba is faster by": 6.0} for row in rows]
    assert [(row["context"], row["held"]) for row in contexts.targets(made)] == [(32, "yes")]
    contexts.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_quick_form_prints_its_tables(monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.argv", ["contexts", "--quick"])
    monkeypatch.delenv("LLAMA_PYTHON", raising=False)
    contexts.main()
    printed = capsys.readouterr().out
    assert "Targets" in printed and "written to" not in printed
