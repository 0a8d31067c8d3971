"""Training on hyperspectral cubes, and classifying others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statescan
from statescan import data, tasks
from statescan.cli import main
from statescan.tasks.cubes import PixelBatches, spectral_baselines


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small, clear cube in files."""
    folder = tmp_path_factory.mktemp("scene")
    cube = data.make_cube(40, 40, bands=12, noise=0.02, seed=1)
    np.save(folder / "cube.npy", cube.values)
    np.save(folder / "labels.npy", cube.labels)
    return folder


def settings(scene: Path, out: Path, **changes: Any) -> tasks.CubeTraining:
    base: dict[str, Any] = dict(
        data=str(scene / "cube.npy"),
        labels=str(scene / "labels.npy"),
        out=out,
        model="morp_mamba_tiny",
        set=("dim=12", "hidden=16", "window=3", "state_dim=4"),
        components=6,
        split="random",
        steps=60,
        warmup=5,
        batch_size=32,
        learning_rate=1e-2,
        progress=False,
    )
    return tasks.CubeTraining(**(base | changes))


def test_a_cube_is_learnt_and_mapped(scene: Path, tmp_path: Path) -> None:
    result = tasks.train_hyperspectral(settings(scene, tmp_path / "run", baselines=True))
    assert result.test["overall_accuracy"] > 0.8 and 0.75 < result.test["kappa"] <= 1
    assert {"average_accuracy", "svm_overall_accuracy", "logistic_kappa", "accuracy of class 6"} <= set(result.test)
    written = json.loads((tmp_path / "run" / "test.json").read_text())
    assert {name: written[name] for name in result.test} == result.test
    found, parts = (np.load(tmp_path / "run" / name) for name in ("map.npy", "split.npy"))
    labels = np.load(scene / "labels.npy")
    tried = parts == data.PARTS["test"]
    assert (found == labels)[tried].mean() == pytest.approx(result.test["overall_accuracy"])
    assert found.min() >= 1 and found.shape == labels.shape
    assert written["pixels"]["test"] == tried.sum()
    assert (tmp_path / "run" / "map.png").stat().st_size > 1000
    again, classes = tasks.classify_cube(tmp_path / "run", data.read_cube(scene / "cube.npy"))
    assert np.array_equal(again, found) and classes[0] == "class 1"


def test_blocks_keep_windows_apart(scene: Path, tmp_path: Path) -> None:
    tasks.train_hyperspectral(settings(scene, tmp_path, split="blocks", block=5, training=0.2, steps=1))
    parts = np.load(tmp_path / "split.npy")
    learnt, others = np.argwhere(parts == 1), np.argwhere(parts > 1)
    assert np.abs(learnt[:, None] - others[None]).max(-1).min() == 3, "windows of three share no pixel"


def test_a_killed_run_goes_on_as_if_nothing_had_been(scene: Path, tmp_path: Path) -> None:
    whole = tasks.train_hyperspectral(settings(scene, tmp_path / "whole", steps=8, checkpoint_every=4))

    class Killed(Exception):
        pass

    original, count = PixelBatches._take, 0

    def dies(self: PixelBatches, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 7:
            raise Killed
        return original(self, *arguments)

    patch = pytest.MonkeyPatch()
    patch.setattr(PixelBatches, "_take", dies)
    with pytest.raises(Killed):
        tasks.train_hyperspectral(settings(scene, tmp_path / "run", steps=8, checkpoint_every=4, validate_every=8))
    patch.undo()
    resumed = tasks.train_hyperspectral(
        settings(scene, tmp_path / "run", steps=8, checkpoint_every=4, validate_every=8, resume=True)
    )
    assert resumed.test == whole.test


def test_batches_are_a_function_of_seed_and_number() -> None:
    windows = data.Windows(np.random.default_rng(0).normal(size=(5, 5, 2)).astype(np.float32), 3)
    pixels, targets = np.arange(20), np.arange(20) % 3

    def batches(count: int, **options: Any) -> list[Any]:
        made = iter(PixelBatches(windows, pixels, targets, batch_size=8, turned=True, **options))
        return [next(made) for _ in range(count)]

    for one, other in zip(batches(5)[2:], batches(3, first=2), strict=True):
        assert bool((one.inputs == other.inputs).all()) and bool((one.targets == other.targets).all())
    turned, plain = batches(1)[0].inputs, next(iter(PixelBatches(windows, pixels, targets, batch_size=8))).inputs
    assert bool((turned[:, 1, 1] == plain[:, 1, 1]).all()), "a turned window keeps its pixel"
    assert not bool((turned == plain).all())
    once = list(PixelBatches(windows, pixels, targets, batch_size=8, once=True))
    assert [len(batch.targets) for batch in once] == [8, 8, 4]


def test_from_the_command_line(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = f"--data {scene}/cube.npy --labels {scene}/labels.npy"
    small = "--model morp_mamba_tiny --set dim=8 window=3 --components 4 --split random --steps 2 --batch-size 4"
    run = tmp_path / "run"
    assert main([*f"train hyperspectral {files} {small} --out {run} --json".split()]) == 0
    assert "kappa" in json.loads(capsys.readouterr().out)["test"]
    assert main(["classify", "cube", str(run), "--data", f"{scene}/cube.npy", "--out", str(tmp_path / "map.png")]) == 0
    assert "class 6" in capsys.readouterr().out and (tmp_path / "map.png").is_file()
    assert np.array_equal(np.load(tmp_path / "map.npy"), np.load(run / "map.npy"))
    assert main(["train", "hyperspectral", "--data", f"{scene}/cube.npy", "--out", str(tmp_path / "other")]) == 2
    assert "labels: which file holds the labels" in capsys.readouterr().err
    assert main(["classify", "cube", str(scene), "--data", f"{scene}/cube.npy", "--out", str(tmp_path / "m.png")]) == 2
    assert "has no cube.npz; expected a folder that `train hyperspectral` left" in capsys.readouterr().err


def test_another_number_of_bands_is_refused(scene: Path, tmp_path: Path) -> None:
    tasks.train_hyperspectral(settings(scene, tmp_path, steps=1))
    with pytest.raises(ValueError, match="cube: 11 bands, the reduction was fitted to 12"):
        tasks.classify_cube(tmp_path, data.read_cube(scene / "cube.npy", drop_bands=(0,)))


def test_baselines_read_single_spectra(scene: Path) -> None:
    cube = data.read_cube(scene / "cube.npy", scene / "labels.npy")
    assert cube.labels is not None
    found = spectral_baselines(cube, data.split_pixels(cube.labels))
    assert set(found) == {"logistic", "svm"} and min(score.overall for score in found.values()) > 0.8


def test_mistakes_are_named(scene: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"components": -1}, "components: expected 0 or more, got -1"),
        ({"block": 0}, "block: expected at least 1, got 0"),
        ({"mixer": "s4"}, "mixer: this training has no use for 's4'"),
        ({"data": "made"}, "labels: the made cube has its own"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(scene, tmp_path, **changes)
    with pytest.raises(
        ValueError, match="model: 's4_tiny' is no classifier of windows of a cube; try --model morp_mamba"
    ):
        tasks.train_hyperspectral(settings(scene, tmp_path, model="s4_tiny"))
    with pytest.raises(ValueError, match="components: from 1 to 12, got 13"):
        tasks.train_hyperspectral(settings(scene, tmp_path, components=13))


def test_the_tiny_model_is_in_the_registry() -> None:
    assert {"morp_mamba_tiny", "morp_mamba_published"} <= set(statescan.list_models("morp_mamba*"))
