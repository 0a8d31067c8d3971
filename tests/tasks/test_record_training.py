"""Training on electrocardiograms, and reading long ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statescan
from statescan import data, tasks
from statescan.cli import main
from statescan.models import create_model
from statescan.tasks.records import RecordBatches, judge_records, record_scores

WEIGHTS = ",164909002,426783006\n164909002,1,0.3\n426783006,0.3,1\n"


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of wide beats and of none of anything, and one that is longer."""
    folder = tmp_path_factory.mktemp("ward")
    make = data._made_records  # type: ignore[attr-defined]
    patch = pytest.MonkeyPatch()
    codes = iter(("164909002", "426783006") * 60)
    patch.setattr(make, "made_diagnoses", lambda generator: (next(codes),))
    data.make_records(folder / "records", 60, seconds=3, rate=100, seed=4)
    data.make_records(folder / "long", 1, seconds=62, rate=250, seed=5)
    patch.undo()
    (folder / "weights.csv").write_text(WEIGHTS)
    return folder


def settings(ward: Path, out: Path, **changes: Any) -> tasks.RecordTraining:
    base: dict[str, Any] = dict(
        data=str(ward / "records"),
        out=out,
        rate=100,
        seconds=2.5,
        least=5,
        set=("dim=12", "depth=1", "state_dim=4", "stem_strides=(2,2,1)"),
        steps=50,
        warmup=5,
        batch_size=12,
        learning_rate=1e-2,
        progress=False,
    )
    return tasks.RecordTraining(**(base | changes))


def test_diagnoses_are_learnt(ward: Path, tmp_path: Path) -> None:
    result = tasks.train_records(settings(ward, tmp_path, weights=str(ward / "weights.csv")))
    assert result.test["macro_auroc"] > 0.9 and result.test["challenge_score"] > 0.3
    assert set(result.test) >= {"macro_auprc", "macro_f1", "auroc of 426783006", "auroc of 733534002|164909002"}
    about = json.loads((tmp_path / "records.json").read_text())
    assert about["classes"] == ["733534002|164909002", "426783006"], "the matrix says which, and in which order"
    assert about["records"] == {"training": 41, "validation": 7, "test": 12}
    assert json.loads((tmp_path / "test.json").read_text()) == result.test


def test_a_killed_run_goes_on_as_if_nothing_had_been(ward: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(steps=6, checkpoint_every=3, validate_every=6)
    whole = tasks.train_records(settings(ward, tmp_path / "whole", **options))

    class Killed(Exception):
        pass

    original, count = RecordBatches._take, 0

    def dies(self: RecordBatches, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise Killed
        return original(self, *arguments)

    patch = pytest.MonkeyPatch()
    patch.setattr(RecordBatches, "_take", dies)
    with pytest.raises(Killed):
        tasks.train_records(settings(ward, tmp_path / "run", **options))
    patch.undo()
    assert tasks.train_records(settings(ward, tmp_path / "run", resume=True, **options)).test == whole.test


def test_a_long_record_is_read_in_parts(ward: Path, tmp_path: Path) -> None:
    path = ward / "long" / "A00001"
    small = ("dim=12", "depth=1", "state_dim=4", "direction=forward")
    tasks.train_records(settings(ward, tmp_path / "forward", steps=2, set=small))
    found = tasks.classify_record(tmp_path / "forward", path)
    assert len(found.times) == len(found.parts) == 24 and found.times[1] == pytest.approx(2.6), "2.5 s, in whole tokens"
    model = statescan.load(tmp_path / "forward").eval()
    whole = torch.from_numpy(data.read_record(path, rate=100))[None]
    with torch.no_grad():
        assert np.allclose(found.probabilities, torch.sigmoid(model(whole))[0].numpy(), atol=1e-5)
    tasks.train_records(settings(ward, tmp_path / "token", steps=2, set=(*small[:3], "class_token=True")))
    by_parts = tasks.classify_record(tmp_path / "token", path)
    assert len(by_parts.times) == 25 and by_parts.held_bytes < 250 * 12 * 4
    assert by_parts.answers == tuple(
        name for name, p, t in zip(by_parts.classes, by_parts.probabilities, by_parts.thresholds, strict=True) if p > t
    )


def test_scores_are_means_over_parts(ward: Path) -> None:
    records = data.read_records(ward / "long", classes=("164909002",), rate=100)
    model = create_model("ecg_mamba_tiny", dim=8, depth=1, num_classes=1, length=3000).eval()
    scores = record_scores(model, records, length=3000, batch_size=2)
    signals = torch.from_numpy(records.signals(0))
    with torch.no_grad():
        parts = torch.stack([signals[:3000], signals[3000:6000], signals[-3000:]])
        assert np.allclose(scores[0], torch.sigmoid(model(parts)).mean(0).numpy(), atol=1e-6)
        padded = torch.cat([signals, torch.zeros(800, 12)])[None]
        alone = record_scores(model, records, length=7000)
        assert np.allclose(alone[0], torch.sigmoid(model(padded))[0].numpy(), atol=1e-6)


def test_batches_are_a_function_of_seed_and_number(ward: Path) -> None:
    records = data.read_records(ward / "records", least=5, rate=100)

    def batches(count: int, **options: Any) -> list[Any]:
        made = iter(RecordBatches(records, length=150, batch_size=16, **options))
        return [next(made) for _ in range(count)]

    for one, other in zip(batches(5)[2:], batches(3, first=2), strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    assert not torch.equal(batches(1)[0].inputs, batches(1, seed=1)[0].inputs)
    shares = [batches(1, rank=rank, world=2)[0].inputs for rank in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), batches(1)[0].inputs)
    longer = next(iter(RecordBatches(records, length=400, batch_size=4, once=True)))
    assert longer.inputs.shape == (4, 400, 12) and not longer.inputs[:, 300:].any(), "zeros follow a shorter record"


def test_made_records_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = dict(data="made", records=24, least=2, steps=1, seconds=2, rate=50, batch_size=4)
    made |= dict(out=tmp_path, set=("dim=8", "depth=0"), progress=False)
    tasks.train_records(tasks.RecordTraining(**made))
    monkeypatch.setattr(data, "make_records", None)
    tasks.train_records(tasks.RecordTraining(**made, overwrite=True))


def test_from_the_command_line(ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"train records --data {ward}/records --rate 100 --seconds 2.5 --steps 2 --set dim=8 depth=1 --out {tmp_path}/run"
    assert main([*line.split(), "--batch-size", "4", "--json"]) == 0
    assert "macro_auroc" in json.loads(capsys.readouterr().out)["test"]
    parts = tmp_path / "parts.csv"
    command = ["classify", "record", f"{tmp_path}/run", "--data", f"{ward}/long/A00001.hea", "--out", str(parts)]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parts"] == len(parts.read_text().splitlines()) - 1
    assert set(printed["probabilities"]) == {"426783006", "733534002|164909002"}
    assert main(command) == 0 and "probability" in capsys.readouterr().out
    assert main(["classify", "record", str(ward), "--data", f"{ward}/long/A00001"]) == 2
    assert "has no records.json; expected a folder that `train records` left" in capsys.readouterr().err
    assert main(["train", "records", "--data", str(tmp_path / "absent"), "--out", f"{tmp_path}/other"]) == 2
    assert "records: no folder" in capsys.readouterr().err


def test_mistakes_are_named(ward: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"test_fraction": 0}, "test_fraction: expected a number between 0 and 1, got 0"),
        ({"seconds": 0}, "seconds: expected a positive number, got 0"),
        ({"balance": 2}, "balance: expected a number from 0 to 1, got 2"),
        ({"mixer": "s4"}, "mixer: this training has no use for 's4'"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(ward, tmp_path, **changes)
    with pytest.raises(ValueError, match="model: 's4_tiny' is no classifier of records; try --model ecg_mamba_tiny"):
        tasks.train_records(settings(ward, tmp_path, model="s4_tiny"))
    with pytest.raises(ValueError, match=r"classes: no record to learn from shows 270492004; leave it out \(classes\)"):
        tasks.train_records(settings(ward, tmp_path, classes=("426783006", "270492004")))
    weights = data.ChallengeWeights(("426783006", "1"), np.eye(2))
    records = data.read_records(ward / "records", least=5, rate=100)
    with pytest.raises(ValueError, match="weights: class 1 is none of the model's: 426783006"):
        judge_records(records, np.zeros((60, 2)), np.zeros(2), weights)
