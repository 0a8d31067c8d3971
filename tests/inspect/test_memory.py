"""Memory fidelity: near one where a stream keeps its tokens, near zero where it holds nothing of them; the command."""

from __future__ import annotations

import json

import pytest
import torch

import statescan
from statescan import inspect
from statescan.cli import main


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_stream_that_keeps_its_tokens_gives_them_back():
    tokens = 3.0 + drawn(8, 64, 6)
    kept = torch.cat([torch.roll(tokens, shift, dims=1) for shift in range(5)], dim=-1)  # this one and the last four
    mixed = kept @ drawn(30, 30, seed=1)
    found = inspect.stream_fidelity([tokens, mixed, mixed @ drawn(30, 40, seed=2)], distances=(0, 1, 4, 6))
    assert found.layers == (0, 1, 2)
    assert min(found.etmf[distance] for distance in (0, 1, 4)) > 0.97
    assert abs(found.etmf[6]) < 0.2
    assert found.tokens[0, 0] > 0.99
    assert found.tokens[0, 1:].abs().max() < 0.2
    assert found.shuffled.abs().max() < 0.2
    assert set(found.eclmf) == {1, 2}
    assert min(found.eclmf.values()) > 0.97
    assert torch.isnan(found.pairs[1, 0]) and torch.isnan(found.pairs[1, 1])


def test_random_states_give_nothing_back():
    # A large mean, which every sample shares, is no memory.
    found = inspect.stream_fidelity([10 + drawn(8, 64, 6, seed=seed) for seed in range(3)])
    assert found.distances == (0, 1, 2, 4, 8, 16, 32)
    assert found.tokens[1:].abs().max() < 0.15
    assert max(map(abs, found.eclmf.values())) < 0.15


def test_the_regression_is_that_of_the_formula():
    x, y = drawn(50, 3).double(), drawn(50, 2, seed=1).double()
    x, y = x - x.mean(0), y - y.mean(0)
    x = x / x.square().mean().sqrt()
    weights = torch.linalg.inv(x.T @ x / 50 + 0.1 * torch.eye(3)) @ (x.T @ y / 50)
    want = torch.cosine_similarity(x @ weights, y, dim=-1).mean()
    assert inspect.ridge_fidelity((x, y), (x, y), penalty=0.1) == pytest.approx(float(want))
    assert inspect.ridge_fidelity((7 * x + 3, y + 1), (7 * x + 3, y + 1), penalty=0.1) == pytest.approx(float(want))
    still = torch.ones(50, 3)
    assert inspect.ridge_fidelity((still, y), (still, y)) == 0.0  # nothing varies: nothing is said


@pytest.mark.parametrize("name", ["mamba_tiny", "memmamba_tiny", "transformer_tiny", "zamba2_tiny", "s4d"])
def test_models_of_all_kinds(name):
    torch.manual_seed(0)
    if name == "s4d":
        model = statescan.create_model("hybrid_tiny", dim=16, depth=2, vocab_size=16, layout=("s4d",), mixers={})
    else:
        model = statescan.create_model(name, vocab_size=16)
    tokens = torch.randint(16, (6, 40), generator=torch.Generator().manual_seed(0))
    found = inspect.memory_fidelity(model, tokens, distances=(0, 1, 5), most_layers=3)
    assert len(found.layers) == 3
    assert found.layers[0] == 0
    assert found.tokens[0, 0] > 0.9  # the embedding is what is read back
    assert found.tokens[-1, 0] > 0.15  # the residual stream carries it on
    assert torch.isfinite(found.tokens).all()
    assert not any(module._forward_hooks for module in model.modules())


def test_wrong_input_is_named():
    with pytest.raises(
        ValueError, match=r"streams: two or more of \(sequences, length, width\), got \(2, 4, 3\), \(2, 5, 3\)"
    ):
        inspect.stream_fidelity([drawn(2, 4, 3), drawn(2, 5, 3)])
    with pytest.raises(ValueError, match="sequences: at least 2, one to fit to and one to score, got 1"):
        inspect.stream_fidelity([drawn(1, 4, 3)] * 2)
    with pytest.raises(ValueError, match=r"distances: from 0 to 3, got \(4,\)"):
        inspect.stream_fidelity([drawn(2, 4, 3)] * 2, distances=(4,))
    with pytest.raises(ValueError, match="model: a language model with an embedding, got Linear"):
        inspect.memory_fidelity(torch.nn.Linear(2, 2), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="most_layers: at least 2, got 1"):
        inspect.memory_fidelity(
            statescan.create_model("mamba_tiny", dim=8, depth=1), torch.zeros(2, 4).long(), most_layers=1
        )


def test_the_command_draws_and_prints(tmp_path, capsys):
    statescan.create_model("memmamba_tiny", dim=16, depth=2, pool_size=4).save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 12)
    out = tmp_path / "memory.png"
    arguments = ["inspect", "memory", str(tmp_path / "model"), "--out", str(out), "--length", "32", "--sequences", "8"]
    assert main([*arguments, "--text", str(text), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == ""
    assert found["distances"] == [0, 1, 2, 4, 8, 16]
    assert found["layers"] == [0, 1, 2]
    assert set(found["eclmf"]) == {"1", "2"}
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments]) == 0
    assert "ETMF" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vim_tiny"], "MODEL: 'vim_tiny' is no language model"),
        (["mamba_tiny", "--length", "1"], "length: at least 2, got 1"),
        (["mamba_tiny", "--text", "nowhere.txt"], "text: no file 'nowhere.txt'"),
        (["mamba_tiny", "--text", __file__, "--sequences", "9999"], "but 9999 sequences of 256 were asked for"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["inspect", "memory", *arguments, "--out", str(tmp_path / "p.png")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
