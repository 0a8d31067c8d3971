"""Training exits of a finished model: what a run leaves, what it learns, what the commands do with it."""

from __future__ import annotations

import json
import math

import pytest
import torch

import statescan
from statescan import checkpoints
from statescan.cli import main
from statescan.generation import EarlyExit, ExitConfig
from statescan.layers import State
from statescan.tasks import ExitTraining, distil_exits, train_exits
from statescan.tasks.exits import default_layers
from tests.generation._models import build
from tests.tasks._runs import SMALL, metrics, run_language, write_text

pytest.importorskip("pytorch_lightning")

OWN = {name: value for name, value in SMALL.items() if name != "set"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def backbone(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("backbone") / "out"
    run_language(text, out, set=("dim=16", "depth=4", "state_dim=4"), steps=40)
    return out


def exit_run(text, backbone, out, **changes):
    return train_exits(ExitTraining(**{**OWN, "data": (str(text),), "init_from": str(backbone), "out": out, **changes}))


@pytest.fixture(scope="module")
def finished(text, backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("exits") / "out"
    return exit_run(text, backbone, out, steps=30, validate_every=10, quality=0.9), out


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_run_leaves_the_model_as_it_was_and_exits_that_learned(finished, backbone):
    result, out = finished
    before, after = checkpoints.load(backbone), checkpoints.load(out)
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name
    losses = [row["validation_loss"] for row in metrics(out) if not math.isnan(row["validation_loss"])]
    assert losses[-1] < losses[0]
    made = EarlyExit.load(after, out)
    assert made.exits.layers == (2, 3)
    assert result.validation["calibrated_agreement"] >= 0.9
    assert set(result.test) == {"agreement", "saved_blocks"}
    assert (out / "exits.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_goes_on(text, backbone, finished, tmp_path, monkeypatch):
    settings = dict(steps=30, validate_every=10, quality=0.9)
    whole = distil_exits(3)
    calls = [0]

    def interrupted(model, batch, state):
        calls[0] += 1
        if calls[0] == 20:
            raise KeyboardInterrupt
        return whole(model, batch, state)

    with monkeypatch.context() as patched:
        patched.setattr("statescan.tasks.exits.distil_exits", lambda top_k: interrupted)
        with pytest.raises(KeyboardInterrupt):
            exit_run(text, backbone, tmp_path, **settings)
    assert not (tmp_path / "exits.safetensors").exists()
    exit_run(text, backbone, tmp_path, **settings, resume=True)
    model = checkpoints.load(backbone)
    first, second = EarlyExit.load(model, finished[1]), EarlyExit.load(model, tmp_path)
    assert first.thresholds == second.thresholds
    for name, tensor in first.heads.state_dict().items():
        assert torch.equal(tensor, second.heads.state_dict()[name]), name


def test_the_first_exit_weighs_most_and_targets_are_the_whole_models():
    made = EarlyExit(build("mamba_tiny", depth=3), ExitConfig(layers=(1, 2), kind="linear", confidence="learned"))
    tokens = torch.arange(10).reshape(1, 10)
    batch = {"tokens": tokens, "targets": torch.full_like(tokens, 3), "resets": None}
    found, whole = made.outputs(tokens)
    best = whole.argmax(-1)
    expected, right = torch.zeros(()), 0
    for weight, (_, logits) in zip((2 / 3, 1 / 3), found, strict=True):
        entropy = -(whole.softmax(-1) * logits.log_softmax(-1)).sum()
        expected += weight * (entropy + 10 * math.log(2))  # a confidence that has learned nothing says 1/2
        right += int((logits.argmax(-1) == best).sum())
    loss, sums, _ = distil_exits(3)(made, batch, None)
    assert loss.item() == pytest.approx(float(expected.detach()), rel=1e-5)
    assert sums.tolist() == pytest.approx([loss.item(), 10, right / 2])


class _Before(torch.nn.Module):
    """A last block that replaces every token's stream by that of the token before it."""

    def forward(self, residual, state=None, **options):
        return torch.nn.functional.pad(residual, (0, 0, 1, 0))[:, :-1], State()


def test_a_mamba_exit_knows_more_where_the_answer_lies_in_earlier_tokens():
    """The stream at the exit is that of one token; what the whole model says is a function of the token before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = statescan.create_model(
            "hybrid_tiny", dim=16, depth=2, layout=("mlp", "mlp"), mlp_layer_dim=16, vocab_size=8, tie_embeddings=False
        ).requires_grad_(False)
        torch.nn.init.normal_(model.embedding.weight)
        model.head.weight.copy_(model.embedding.weight)
        model.stack.blocks[1] = _Before()
        agreements = {}
        for kind in ("linear", "mamba"):
            made = EarlyExit(model, ExitConfig(layers=(1,), kind=kind))
            optimizer = torch.optim.Adam(made.heads.parameters(), lr=2e-2)
            for _ in range(60):
                tokens = torch.randint(0, 8, (16, 16))
                loss, sums, _ = distil_exits(3)(made, {"tokens": tokens, "targets": tokens, "resets": None}, None)
                optimizer.zero_grad()
                loss.div(256).backward()
                optimizer.step()
            agreements[kind] = float(sums[2] / sums[1])
    assert agreements["linear"] < 0.4, agreements
    assert agreements["mamba"] > 0.8, agreements


def test_commands_calibrate_and_generate(finished, text, capsys):
    _, out = finished
    data = ("--data", text, "--length", 24, "--prompt", 4, "--sequences", 2, "--thresholds", 0.5, 0)
    status, printed, _ = run(capsys, "calibrate", "exits", out, *data, "--quality", 0, "--json")
    assert status == 0
    found = json.loads(printed)
    assert [point["threshold"] for point in found["points"]] == [1, 0.5, 0]
    assert found["threshold"] == 0
    assert found["points"][-1]["saved_blocks"] == 0.5
    assert "blocks saved" in run(capsys, "calibrate", "exits", out, *data, "--quality", 0)[1]
    prompt = ("--prompt", "9 bottles", "--max-new-tokens", 6, "--temperature", 0, "--json")
    (row,) = json.loads(run(capsys, "generate", out, *prompt, "--exits", "auto")[1])
    assert row["saved_blocks"] == 0.5
    (whole,) = json.loads(run(capsys, "generate", out, *prompt, "--exits", "auto", "--exit-threshold", 1)[1])
    (plain,) = json.loads(run(capsys, "generate", out, *prompt, "--native", "off")[1])
    assert whole["saved_blocks"] == 0
    assert whole["tokens"] == plain["tokens"]


def test_a_run_is_started_from_the_command_line(text, backbone, tmp_path, capsys):
    flags = ("--steps", 2, "--length", 16, "--batch-size", 2, "--kind", "linear", "--layers", 1, "--accelerator", "cpu")
    status, out, _ = run(
        capsys, "train", "exits", "--init-from", backbone, "--data", text, "--out", tmp_path / "run", *flags
    )
    assert status == 0
    assert "calibrated agreement" in out
    assert EarlyExit.load(checkpoints.load(backbone), tmp_path / "run").exits.layers == (1,)


def test_exits_are_placed_in_the_latter_half():
    assert default_layers(12) == (6, 7, 9, 10)
    assert default_layers(2) == (1,)
    with pytest.raises(ValueError, match="a model of 1 block has no place for an exit"):
        default_layers(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(init_from=None), "init_from: name the trained model"),
        (dict(quality=2.0), "quality: expected an agreement from 0 to 1"),
        (dict(top_k=0), "top_k: expected at least 1"),
        (dict(compile=True), "compile: exits are trained on a frozen model"),
        (dict(devices=2), "devices, nodes: one process"),
        (dict(layers=(7,)), "layers: an exit after block 7 of 4"),
    ],
)
def test_bad_settings_are_refused(changes, message, text, backbone, tmp_path):
    with pytest.raises(ValueError, match=message):
        exit_run(text, backbone, tmp_path / "run", **changes)


def test_commands_say_what_is_wrong(finished, backbone, text, capsys):
    _, out = finished
    assert "statescan train exits" in run(capsys, "generate", backbone, "--prompt", "a", "--exits", "auto")[2]
    both = ("--exits", "auto", "--draft", "ngram")
    assert "leave --draft out" in run(capsys, "generate", out, "--prompt", "a", *both)[2]
    native = ("--exits", "auto", "--native", "int8")
    assert "the decode engine takes no --exits" in run(capsys, "generate", out, "--prompt", "a", *native)[2]
    status, _, error = run(capsys, "calibrate", "exits", out, "--data", text, "--length", 9_999)
    assert status == 2
    assert "calibration needs a sequence of them, 9999" in error
