"""Training on a mixture of objectives: it runs, learns, is resumed exactly, and says what does not go."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import statescan
from statescan.cli import main
from statescan.tasks import ObjectiveTraining, train_objectives
from tests.tasks._runs import SMALL, metrics, run_language, write_text

pytest.importorskip("pytorch_lightning")

MIXED: dict[str, Any] = SMALL | dict(
    length=300, steps=8, round_steps=2, round_samples=1, reward_width=16, reward_depth=1
)
MIXED |= dict(reward_iterations=3, reward_candidates=32, validation_fraction=0.4, batch_size=2)


def run(text: Path, out: Path, **changes: Any) -> Any:
    return train_objectives(ObjectiveTraining(**{**MIXED, "data": (str(text),), "out": out, **changes}))


def table(out: Path) -> list[dict[str, float]]:
    with (out / "mixture.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_whole_mixture_is_trained_and_resumed_exactly(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    whole = run(text, tmp_path / "whole")
    assert whole.steps == 8
    assert [row["step"] for row in table(tmp_path / "whole")] == [0, 2, 4, 6]
    for row in table(tmp_path / "whole"):
        chances = [value for name, value in row.items() if name.endswith("probability")]
        assert len(chances) == 15 and sum(chances) == pytest.approx(1, abs=1e-4)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(text, tmp_path / "parts")
    run(text, tmp_path / "parts", resume=True)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert metrics(tmp_path / "parts")[-1]["validation_loss"] == metrics(tmp_path / "whole")[-1]["validation_loss"]
    want, got = (statescan.load(str(tmp_path / name)).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(want[name], got[name]) for name in want)


def _interrupted(text: Path, out: Path) -> None:
    """Stop after the checkpoint of step 4, within step 6."""
    from statescan.tasks import _objective_rounds

    honest = _objective_rounds.Rounds._next

    def stop(self: Any, module: Any, step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt
        honest(self, module, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_objective_rounds.Rounds, "_next", stop)
        run(text, out)


def test_command_learns_to_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(tmp_path)
    flags = ["--objectives", "copying", "prefix_language_modeling", "--set", "dim=16", "depth=1", "--steps", "30"]
    flags += ["--length", "64", "--batch-size", "4", "--warmup", "2", "--validate-every", "10", "--accelerator", "cpu"]
    flags += [
        "--sampler",
        "uniform",
        "--learning-rate",
        "0.01",
        "--no-progress",
        "--json",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", "objectives", "--data", str(text), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 30
    losses = [row["validation_loss"] for row in metrics(tmp_path / "run") if row["validation_loss"] > 0]
    assert losses[-1] < 0.9 * losses[0]
    assert not (tmp_path / "run" / "mixture.csv").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("copy",)}, "objectives: unknown 'copy'; known: autoencoding, copying"),
        ({"round_steps": 0}, "round_steps: expected at least 1, got 0"),
        ({"carry_state": True}, "carry_state: samples of a mixture are strangers"),
        ({"devices": 2}, "devices: a mixture is trained in one process, got 2"),
        ({"length": 40}, "length: 40 tokens are too few for Infilling"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(write_text(tmp_path), tmp_path / "out", **changes)


BOTH = ("dim=16", "depth=2", "layout=('gated_ssm',)", "bidirectional_prefix=True")


def test_a_model_of_both_directions_learns_with_prefixes_and_reads_prompts_so(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    settings = dict(objectives=("copying", "prefix_language_modeling"), length=64, steps=40, round_steps=10)
    settings |= dict(model="hybrid_tiny", set=BOTH, learning_rate=1e-2, batch_size=4, validate_every=10)
    run(text, tmp_path / "run", **settings)
    losses = [row["validation_loss"] for row in metrics(tmp_path / "run") if row["validation_loss"] > 0]
    assert losses[-1] < 0.9 * losses[0]
    model = statescan.load(str(tmp_path / "run"))
    assert model.reads_prompts_as_prefix
    with pytest.raises(ValueError, match="bidirectional_prefix: text alone marks no prefix"):
        run_language(text, tmp_path / "text", model="hybrid_tiny", set=BOTH)


def test_measured_losses_are_those_with_the_prefix() -> None:
    """The rounds ask the model as it is trained."""
    from statescan import data
    from statescan.tasks._objective_rounds import Rounds

    torch.manual_seed(0)
    model = statescan.create_model(
        "hybrid_tiny", dim=16, depth=2, layout=("gated_ssm",), bidirectional_prefix=True, vocab_size=256
    )
    sample = data.TextCopying()(list(b"copy this text"), space=64, seed=0, encode=lambda marker: list(marker.encode()))
    assert sample is not None
    batch = data.pack_objectives([[sample]], 64)
    rounds = Rounds.__new__(Rounds)
    rounds.measured = [batch]

    class Module:
        device = torch.device("cpu")

    module: Any = Module()
    module.model = model
    (found,) = rounds._losses(module)
    logits, _ = model(batch.tokens, resets=batch.resets, prefix=batch.prefix)
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=data.IGNORED)
    assert found == pytest.approx(float(want.detach()), rel=1e-5)
