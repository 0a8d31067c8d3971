"""Training on text: what a run leaves, what it learns, and what must change nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch

import statescan
from statescan.cli import main
from statescan.data import IGNORED
from statescan.tasks import LanguageTraining, train_language
from tests.tasks._runs import SMALL, command, metrics, run_language, write_text

pytest.importorskip("pytorch_lightning")

from statescan.tasks._module import Learner, next_token, schedule, token_sums


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run of 40 steps: its result, and its folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    return run_language(text, out, steps=40, validate_every=10, checkpoint_every=20), out


def test_a_run_leaves_model_metrics_settings_and_picture(finished):
    result, out = finished
    names = {path.name for path in out.iterdir()}
    assert {"metrics.csv", "speed.csv", "settings.json", "checkpoint.ckpt", "curves.png"} <= names
    assert result.steps == 40
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(2, 41, 2))
    assert [row["tokens"] for row in rows] == [step * 4 * 32 for step in range(2, 41, 2)]
    assert [row["step"] for row in rows if not math.isnan(row["validation_loss"])] == [10, 20, 30, 40]
    assert json.loads((out / "settings.json").read_text())["steps"] == 40


def test_a_run_learns(finished):
    result, out = finished
    first, last = metrics(out)[0], metrics(out)[-1]
    assert first["train_loss"] > 5
    assert last["train_loss"] < 3.5
    loss = last["validation_loss"]
    assert loss < 3.5
    assert last["validation_bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-6)
    assert last["validation_perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert result.validation["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_the_command_prints_the_result(text, tmp_path, capsys):
    line = command(text, tmp_path / "out", "--json", steps=2)[3:]
    assert main(line) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2
    assert printed["model"] == str(tmp_path / "out")
    assert main(line) == 2
    assert capsys.readouterr().err.startswith("statescan: out: ")


def test_the_trained_model_loads(finished):
    result, _ = finished
    model = statescan.load(result.model)
    assert model.config.dim == 16
    logits, _ = model(torch.tensor([list(b"bottles of ")]))
    assert logits.shape[-1] == 256


def test_training_goes_on_from_a_model(finished, text, tmp_path):
    result, out = finished
    run_language(text, tmp_path / "out", steps=1, learning_rate=1e-9, init_from=result.model, set=(), validate_every=1)
    tuned = metrics(tmp_path / "out")[-1]
    assert tuned["validation_loss"] == pytest.approx(metrics(out)[-1]["validation_loss"], rel=1e-4)


def test_a_tokenizer_must_fit_the_model(finished, text, tmp_path, monkeypatch):
    class Large:
        vocab_size = 300

        def encode(self, text):
            return list(text.encode())

        def decode(self, tokens):
            return bytes(tokens).decode()

    monkeypatch.setattr("statescan.tasks.language.tokenizer_of", lambda settings: Large())
    result, _ = finished
    with pytest.raises(ValueError, match="tokenizer: it has 300 tokens, the model embeds 256"):
        run_language(text, tmp_path / "out", init_from=result.model, set=())


def close(first, second, tolerance):
    for one, other in zip(metrics(first), metrics(second), strict=True):
        assert one == pytest.approx(other, rel=tolerance, nan_ok=True)


@pytest.fixture(scope="module")
def plain(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    run_language(text, out)
    return out


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        # Sums in another order: float32 rounding, grown by eight steps.
        ({"batch_size": 2, "accumulate": 2}, 1e-4),
        ({"gradient_checkpointing": True}, 1e-4),
        # A mantissa of eight bits.
        ({"precision": "bfloat16"}, 5e-2),
    ],
)
def test_how_a_step_is_computed_changes_nothing(plain, text, tmp_path, changes, tolerance):
    run_language(text, tmp_path / "out", **changes)
    close(plain, tmp_path / "out", tolerance)


def test_the_seed_decides(plain, text, tmp_path):
    for seed in (0, 1):
        run_language(text, tmp_path / str(seed), seed=seed)
    assert (plain / "metrics.csv").read_text() == (tmp_path / "0" / "metrics.csv").read_text()
    assert (plain / "metrics.csv").read_text() != (tmp_path / "1" / "metrics.csv").read_text()


def test_documents_may_be_joined_and_tokens_cached(text, tmp_path):
    settings = dict(separator="\n", cache=tmp_path / "cache")
    run_language(text, tmp_path / "bounded", **settings)
    run_language(text, tmp_path / "joined", documents="joined", **settings)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert metrics(tmp_path / "bounded")[0]["train_loss"] != metrics(tmp_path / "joined")[0]["train_loss"]


def test_a_tokenizer_of_a_file(text, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train([str(text)], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    result = run_language(text, tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"), length=16)
    model = statescan.load(result.model)
    assert model.config.vocab_size == made.get_vocab_size()
    held_out = text.read_text()[-len(text.read_text()) // 20 :]
    row = metrics(tmp_path / "out")[-1]
    bytes_per_token = len(held_out.encode()) / len(made.encode(held_out).ids)
    assert row["validation_bits_per_byte"] == pytest.approx(
        row["validation_loss"] / math.log(2) / bytes_per_token, rel=0.1
    )


# -- the module -------------------------------------------------------------------------------------------------------


def module(**changes) -> Learner:
    settings = LanguageTraining(**SMALL)
    torch.manual_seed(0)
    model = statescan.create_model("mamba_tiny", dim=16, depth=2, state_dim=4)
    return Learner(model, settings, next_token(count_correct=False), targets=24, **changes)


def batch(tokens, *, fresh=True, resets=None):
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "resets": resets, "fresh": fresh}


def test_a_carried_state_makes_pieces_one_sequence():
    tokens = torch.randint(0, 256, (3, 49), generator=torch.Generator().manual_seed(1))
    carried, whole = module(carry_state=True), module()
    first = carried.training_step(batch(tokens[:, :25]), 0)
    second = carried.training_step(batch(tokens[:, 24:], fresh=False), 1)
    both = whole.training_step(batch(tokens), 0)
    torch.testing.assert_close(first + second, both, rtol=1e-4, atol=1e-5)
    # A fresh batch forgets.
    again = carried.training_step(batch(tokens[:, :25]), 2)
    torch.testing.assert_close(again, first)


def test_packed_documents_are_learnt_as_if_alone():
    tokens = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(2))
    targets = torch.cat([tokens[:, 1:], torch.tensor([[IGNORED]])], 1)
    targets[0, 9] = IGNORED
    resets = torch.zeros(1, 24, dtype=torch.bool)
    resets[0, [0, 10]] = True
    packed = module()
    packed.training_step({"tokens": tokens, "targets": targets, "resets": resets, "fresh": True}, 0)
    alone = module()
    for part in (tokens[:, :10], tokens[:, 10:]):
        alone.training_step(batch(part), 0)
    torch.testing.assert_close(packed.sums, alone.sums, rtol=1e-5, atol=1e-6)
    assert packed.sums[1] == 22


def test_sums_count_targets_and_right_answers():
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 9
    targets = torch.tensor([[2, 1, IGNORED]])
    loss, sums = token_sums(logits, targets, count_correct=True)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[0, :2], targets[0, :2], reduction="sum"))
    assert sums[1:].tolist() == [2, 1]


def test_warm_up_and_cosine():
    factor = schedule(LanguageTraining(steps=110, warmup=10, final_learning_rate=0.2))
    assert [factor(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(60) == pytest.approx(0.6)
    assert factor(110) == factor(500) == pytest.approx(0.2)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": ()}, ValueError, "data: no source given"),
        ({"data": ("missing.txt",)}, FileNotFoundError, "data: no file, folder or pattern 'missing.txt'"),
        ({"data": ("empty.txt",)}, ValueError, "data: 'empty.txt' holds no text"),
        ({"data": ("binary.dat",)}, ValueError, "data: 'binary.dat' is not UTF-8 text"),
        ({"data": ("short.txt",)}, ValueError, "are not enough for a sequence of 32"),
        ({"length": 10**6}, ValueError, "are not enough for a sequence of 1000000"),
        ({"carry_state": True, "batch_size": 500}, ValueError, "are not enough for 500 rows of 32"),
        ({"model": "mamba_tinny"}, ValueError, "nearest: 'mamba_tiny'"),
        ({"set": ("dimm=16",)}, ValueError, "unknown option 'dimm'; nearest: 'dim'"),
        ({"set": ("dim",)}, ValueError, "set: expected name=value, got 'dim'"),
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"length": 0}, ValueError, "length: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate: expected a positive number, got 0.0"),
        ({"warmup": -1}, ValueError, "warmup: expected 0 or more, got -1"),
        ({"validation_fraction": 1.5}, ValueError, "validation_fraction: expected between 0 and 1, got 1.5"),
        ({"init_from": "x"}, ValueError, "set: a model that init_from names has its own config"),
        ({"end_token": 256}, ValueError, "end_token: expected 0 to 255, got 256"),
    ],
)
def test_wrong_settings_are_named(text, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.dat").write_bytes(bytes(range(256)))
    (tmp_path / "short.txt").write_text("ten bytes.")
    with pytest.raises(error, match=message):
        run_language(text, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "checkpoint.ckpt").exists()


def test_a_loss_that_is_not_finite_stops_the_run(text, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(math.nan))
    with pytest.raises(ValueError, match=r"training: at step 2 the loss is .* use a smaller learning_rate"):
        run_language(text, tmp_path / "out")


def test_nested_fields_of_a_config():
    from statescan.tasks._settings import overrides

    assert overrides(("attention.heads=4", "norm=layer", "attention_layers=(1, 3)", "residual_in_float32=False")) == {
        "attention": {"heads": 4},
        "norm": "layer",
        "attention_layers": (1, 3),
        "residual_in_float32": False,
    }


def test_train_language_needs_no_flags_beyond_text(text, tmp_path):
    settings = LanguageTraining(data=(str(text),), out=tmp_path / "out", steps=1, batch_size=1, length=8)
    assert train_language(settings).steps == 1
