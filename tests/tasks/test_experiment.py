"""Named experiments: models that are what their names say, scores that count what they say, folders that go on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import statescan
from statescan.data import IGNORED, StringCopy, SyntheticBatch
from statescan.layers import State
from statescan.tasks import CopyExperiment, LISExperiment, run_experiment
from statescan.tasks.experiment import model_fields, scores, written

pytest.importorskip("pytorch_lightning")

SMALL = dict(dim=16, depth=2, length=4, test_lengths=(3, 6), steps=4, batch_size=4, examples=10, progress=False)


class Parrot:
    """Copies without fail, but for the last symbol if it is told so."""

    def __init__(self, vocabulary: int, *, slips: bool = False):
        self.vocabulary, self.slips = vocabulary, slips

    def __call__(self, tokens):
        answers = [self._answer(tokens[:, : place + 1]) for place in range(tokens.shape[1])]
        return torch.stack(answers, 1), State({"seen": tokens})

    def step(self, token, state):
        seen = torch.cat([state["seen"], token[:, None]], 1)
        return self._answer(seen), State({"seen": seen})

    def _answer(self, seen):
        logits = torch.zeros(len(seen), self.vocabulary)
        for row, tokens in enumerate(seen.tolist()):
            if 2 in tokens:
                length = tokens.index(2) - 1
                place = len(tokens) - length - 2
                symbol = 4 if place == length else tokens[1 + place]
                logits[row, 9 if self.slips and place == length - 1 else symbol] = 1
        return logits


def test_scores_count_tokens_strings_and_own_answers() -> None:
    task = StringCopy(length=5, symbols=3)
    assert scores(Parrot(task.vocab_size), task, examples=20) == {"tokens": 1.0, "strings": 1.0, "answers": 1.0}
    found = scores(Parrot(task.vocab_size, slips=True), task, examples=20)
    assert found == {"tokens": pytest.approx(5 / 6), "strings": 0.0, "answers": 0.0}


def test_what_is_given_is_fed_and_what_is_asked_is_the_models_own() -> None:
    class Adder:
        """Answers the sum of all it has seen."""

        def __call__(self, tokens):
            return self._one_hot(tokens.cumsum(1)), State({"sum": tokens.sum(1)})

        def step(self, token, state):
            total = state["sum"] + token
            return self._one_hot(total), State({"sum": total})

        def _one_hot(self, numbers):
            return torch.nn.functional.one_hot(numbers, 100).float()

    tokens = torch.tensor([[1, 2, 50, 3, 50]])  # where it is asked, the token that follows is its own
    targets = torch.tensor([[IGNORED, 0, IGNORED, 0, 0]])
    # 1 + 2 = 3 is fed in place of 50; 3 + 3 + 3 = 9, fed in place of 50; 9 + 9 = 18
    assert written(Adder(), SyntheticBatch(tokens, targets)).tolist() == [[IGNORED, 3, IGNORED, 9, 18]]


@pytest.mark.parametrize("name", ["mamba_4", "mamba2_8", "mamba3_8", "transformer", "hybrid_4", "hybrid"])
def test_models_are_what_their_names_say(name: str) -> None:
    fields = model_fields(name, dim=32, depth=2)
    model = statescan.create_model("hybrid_tiny", vocab_size=30, **fields)
    logits, state = model(torch.zeros(1, 3, dtype=torch.int64))
    assert logits.shape == (1, 3, model.config.padded_vocab_size)
    kind, _, width = name.partition("_")
    if kind.startswith("mamba"):
        assert model.config.mixers[kind]["state_dim"] == int(width)
    assert (
        set(model.config.layout) == {"mamba", "attention"} if kind == "hybrid" else len(set(model.config.layout)) == 1
    )
    assert state.nbytes > 0


def test_transformer_and_mamba_are_about_equally_large_and_the_hybrid_is_no_larger() -> None:
    sizes = []
    for name in ("mamba_16", "transformer", "hybrid_16"):
        model = statescan.create_model("hybrid_tiny", vocab_size=26, **model_fields(name, dim=64, depth=2))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[0]
    assert sizes[2] < min(sizes[:2])


def test_an_experiment_is_kept_and_goes_on(tmp_path) -> None:
    settings = CopyExperiment(out=tmp_path, models=("mamba_4", "transformer"), task_set=("symbols=5",), **SMALL)
    first = run_experiment(settings)
    assert [row["model"] for row in first.rows] == ["mamba_4", "transformer"]
    assert set(first.rows[0]["accuracy"]) == {"3", "6"}
    assert first.rows[0]["examples_seen"] == 16
    assert first.solved == [0, 0]
    assert (tmp_path / "accuracy.png").is_file() == (first.picture is not None)
    with pytest.raises(ValueError, match=r"out: .* already holds an experiment; continue it with resume"):
        run_experiment(settings)
    with pytest.raises(ValueError, match=r"resume: the experiment in .* has dim 16, given 32"):
        run_experiment(dataclasses.replace(settings, resume=True, dim=32))
    # What is finished is not trained again, what is new is.
    (tmp_path / "mamba_4-seed0" / "model.safetensors").unlink()
    more = run_experiment(dataclasses.replace(settings, resume=True, models=("mamba_4", "hybrid")))
    assert [row["model"] for row in more.rows] == ["mamba_4", "hybrid"]
    assert more.rows[0] == first.rows[0]
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 3
    again = run_experiment(dataclasses.replace(settings, overwrite=True, models=("mamba_4",)))
    assert again.rows[0]["accuracy"] == first.rows[0]["accuracy"]
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 1


def test_processor_time_ends_a_training(tmp_path) -> None:
    settings = LISExperiment(
        out=tmp_path, models=("mamba_4",), minutes=1e-6, **SMALL | {"steps": 400, "test_lengths": (3,)}
    )
    assert run_experiment(settings).rows[0]["steps"] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(models=("mambo_4",)), "models: unknown 'mambo_4'; known: mamba_N, mamba2_N, mamba3_N, transformer"),
        (dict(models=("transformer_4",)), "models: unknown 'transformer_4'"),
        (dict(models=()), "models: give at least one"),
        (dict(test_lengths=(0, 4)), "test_lengths: expected at least 1, got 0"),
        (dict(minutes=0.0), "minutes: expected a positive number, got 0"),
        (dict(dim=0), "dim: expected at least 1, got 0"),
        (dict(task_set=("symbol=3",)), "string_copy: unknown setting 'symbol'; nearest: 'symbols'"),
        (dict(task_set=("length=3",)), "task_set: the experiment sets length itself"),
    ],
)
def test_wrong_settings_are_named(tmp_path, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CopyExperiment(out=tmp_path, **options)
