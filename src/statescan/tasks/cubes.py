"""Hyperspectral cubes: a class for every pixel, from the window around it."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data
from statescan.tasks._run_folder import RunFolder, replacing
from statescan.tasks._settings import TrainingSettings, build, demand

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Sums

#: Colours of the classes, told apart by their lightness too; they are repeated where there are more classes.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#4B3B8F"),
    *("#8C564B", "#7F7F7F", "#AEC7E8", "#98DF8A", "#FF9896", "#C5B0D5", "#1B4D3E", "#C49C94"),
)


@dataclass(frozen=True)
class CubeTraining(TrainingSettings):
    """Train a classifier of the pixels of a hyperspectral cube, and draw its map.

    Example: statescan train hyperspectral --data PaviaU.mat --labels PaviaU_gt.mat --out runs/pavia
    """

    #: A cube (rows, columns, bands): a .mat, .npy or ENVI .hdr file; or the word made: a cube generated for the purpose.
    data: str = "made"
    #: Its labels (rows, columns), 0 where nothing is known, in such a file.
    labels: str | None = None
    #: Name of the cube in a .mat file that holds several.
    variable: str | None = None
    #: Name of the labels in such a file.
    labels_variable: str | None = None
    #: Bands to leave out, counted from 0.
    drop_bands: tuple[int, ...] = ()
    #: Names of the classes, in the order of their labels.
    class_names: tuple[str, ...] = ()
    #: Principal components to which the bands are reduced; 0: all bands, each standardised.
    components: int = 15
    #: Which pixels are learnt from: chosen at random, as usual, so that windows of the test overlap with them; or whole
    #: blocks, from whose windows those of the test keep apart.
    split: Literal["random", "blocks"] = "blocks"
    #: Part of each class to learn from, or how many pixels of it.
    training: float = 0.25
    #: Part of each class that validates while learning, or how many pixels of it.
    validation: float = 0.1
    #: Side of the blocks.
    block: int = 16
    #: Also a support vector machine and a logistic regression on single spectra, for comparison (needs scikit-learn).
    baselines: bool = False
    #: Pixels classified at a time when the map is made.
    map_batch: int = 512
    #: Name of a model of windows of a cube.
    model: str = "morp_mamba"
    #: Optimiser steps.
    steps: int = 1000
    #: Windows of a batch, on each device.
    batch_size: int = 64
    #: Highest learning rate.
    learning_rate: float = 1e-3
    #: Weight decay of matrices.
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixer is not None:
            raise ValueError(f"mixer: this training has no use for {self.mixer!r}; its models' own are set by --set")
        if self.components < 0:
            raise ValueError(f"components: expected 0 or more, got {self.components}")
        for name in ("block", "map_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.data == "made" and self.labels is not None:
            raise ValueError("labels: the made cube has its own; leave it out, or give data a file")


@dataclass(frozen=True)
class WindowBatch:
    """Windows (batch, window, window, bands) and the numbers of their pixels' classes (batch,)."""

    inputs: Tensor
    targets: Tensor


class PixelBatches(IterableDataset):
    """The batches of one process, from batch `first` on; which pixels batch n holds depends on the seed and n alone.

    Arguments:
        windows: to draw from.
        pixels, targets: numbers of the pixels and of their classes.
        batch_size: pixels a batch, over all processes.
        seed: of the order, which is a new one in each pass.
        rank, world: which process of how many; each takes its share of every batch.
        first: batch to begin with.
        once: stop after one pass, in the given order and with a last batch that may be smaller.
        turned: turn and mirror windows at random.
    """

    def __init__(
        self,
        windows: data.Windows,
        pixels: np.ndarray,
        targets: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        once: bool = False,
        turned: bool = False,
    ) -> None:
        self._windows, self._pixels, self._targets = windows, pixels, targets
        self._batch_size, self._seed, self._first = batch_size, seed, first
        self._rank, self._world, self._once, self._turned = rank, world, once, turned

    def __iter__(self) -> Any:
        count = len(self._pixels)
        if self._once:
            for start in range(0, count, self._batch_size):
                yield self._take(np.arange(start, min(count, start + self._batch_size)))
            return
        size = min(self._batch_size, count)
        per_pass, number = count // size, self._first
        while True:
            seed = data.batch_seed(self._seed, "order", number // per_pass)
            order = np.random.default_rng(seed).permutation(count)
            start = number % per_pass * size
            yield self._take(order[start : start + size], number)
            number += 1

    def _take(self, index: np.ndarray, number: int = 0) -> WindowBatch:
        mine = index[self._rank :: self._world]
        inputs = self._windows.take(self._pixels[mine])
        # The pixel of an even window does not stand in its middle: turned about, it would stand elsewhere.
        if self._turned and self._windows.window % 2:
            generator = np.random.default_rng(data.batch_seed(self._seed, f"turns {self._rank}", number))
            for row, (turns, mirrored) in enumerate(zip(*generator.integers(0, (4, 2), (len(mine), 2)).T, strict=True)):
                window = np.rot90(inputs[row], turns)
                inputs[row] = window[:, ::-1] if mirrored else window
        return WindowBatch(torch.from_numpy(inputs), torch.from_numpy(self._targets[mine]))


def _pixel_loss(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
    """Cross-entropy of the classes."""
    targets = batch["targets"]
    scores = model(batch["inputs"]).float()
    loss = torch.nn.functional.cross_entropy(scores, targets, reduction="sum")
    right = (scores.argmax(-1) == targets).sum()
    count = torch.tensor(float(targets.numel()), device=loss.device)
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    return loss, torch.stack([value.detach().to(wide) for value in (loss, count, right)]), None


def train_hyperspectral(settings: CubeTraining) -> TrainingResult:
    """Train on labelled pixels, try the model on others, and classify every pixel of the cube.

    Beside the model and its metrics this leaves ``test.json``, ``cube.npz`` (the reduction of the bands and the names of
    the classes, for other cubes), ``split.npy``, ``map.npy`` (labels from 1 on) and ``map.png``. The test's numbers are
    ``overall_accuracy``, ``average_accuracy``, ``kappa``, ``accuracy of …`` each class, and with `baselines` those of
    classifiers of single spectra.

    Raises:
        ValueError: for data, a setting or a model that does not fit, or a folder that cannot be written.
        FileNotFoundError: where there is no such file.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    demand(settings, "bands", "classifier of windows of a cube", "morp_mamba_tiny")
    cube = _cube(settings)
    assert cube.labels is not None
    components = settings.components or None
    reduction = data.BandReduction.fit(cube.values.reshape(-1, cube.values.shape[2]), components)
    reduced = reduction(cube.values)
    model = build(settings, bands=reduced.shape[2], num_classes=len(cube.classes))
    windows = data.Windows(reduced, model.config.window)
    parts = data.split_pixels(
        cube.labels,
        training=settings.training,
        validation=settings.validation,
        scheme=settings.split,
        block=settings.block,
        gap=model.config.window - 1 if settings.split == "blocks" else 0,
        seed=settings.seed,
    )
    pixels = {name: np.flatnonzero(parts == number) for name, number in data.PARTS.items()}
    targets = {name: cube.labels.flat[some].astype(np.int64) - 1 for name, some in pixels.items()}
    batch_size = settings.batch_size * settings.world_size

    def batches(first: int, rank: int, world: int) -> PixelBatches:
        shared: dict[str, Any] = dict(seed=settings.seed, rank=rank, world=world, first=first, turned=True)
        return PixelBatches(windows, pixels["training"], targets["training"], batch_size=batch_size, **shared)

    def validation(first: int, rank: int, world: int) -> PixelBatches:
        shared: dict[str, Any] = dict(rank=rank, world=world, once=True)
        return PixelBatches(windows, pixels["validation"], targets["validation"], batch_size=batch_size, **shared)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    from statescan.tasks._fit import Objective, fit

    columns = ("validation_loss", "validation_accuracy")
    training = fit(
        model, settings, folder, Objective(batches, validation, 1, columns, describe=describe, measure=_pixel_loss)
    )
    found = classify_windows(model, windows, batch=settings.map_batch, progress=settings.progress)
    accuracy = data.map_accuracy(targets["test"], found.flat[pixels["test"]] - 1, len(cube.classes))
    test = {
        "overall_accuracy": accuracy.overall,
        "average_accuracy": accuracy.average,
        "kappa": accuracy.kappa,
        **{f"accuracy of {name}": part for name, part in zip(cube.classes, accuracy.per_class, strict=True)},
    }
    if settings.baselines:
        for name, score in spectral_baselines(cube, parts, seed=settings.seed).items():
            test |= {f"{name}_overall_accuracy": score.overall, f"{name}_kappa": score.kappa}
    counts = {name: len(some) for name, some in pixels.items() if name != "none"}
    _write(folder.path, cube, reduction, parts, found, test, counts)
    return dataclasses.replace(training, test=test)


def _cube(settings: CubeTraining) -> data.Cube:
    if settings.data == "made":
        return data.make_cube(seed=settings.seed)
    if settings.labels is None:
        raise ValueError("labels: which file holds the labels of the pixels? Give one, shape (rows, columns)")
    return data.read_cube(
        settings.data,
        settings.labels,
        variable=settings.variable,
        labels_variable=settings.labels_variable,
        drop_bands=settings.drop_bands,
        classes=settings.class_names,
    )


def _write(
    folder: Path,
    cube: data.Cube,
    reduction: data.BandReduction,
    parts: np.ndarray,
    found: np.ndarray,
    test: dict[str, float],
    counts: dict[str, int],
) -> None:
    with replacing(folder / "cube.npz") as file:
        np.savez(file, mean=reduction.mean, matrix=reduction.matrix, classes=np.array(cube.classes))
    for name, array in (("split.npy", parts), ("map.npy", found)):
        with replacing(folder / name) as file:
            np.save(file, array)
    with replacing(folder / "test.json") as file:
        file.write(json.dumps(test | {"pixels": counts}, indent=2).encode() + b"\n")
    draw_map(folder / "map.png", cube, found)


@torch.no_grad()
def classify_windows(model: Any, windows: data.Windows, *, batch: int = 512, progress: bool = False) -> np.ndarray:
    """The class of every pixel: a map (rows, columns) of labels from 1 on.

    Arguments:
        model: that takes these windows; its mode is kept.
        windows: of the cube.
        batch: pixels at a time.
        progress: show a bar on a terminal.
    """
    from statescan.generation import progress_bar

    rows, columns = windows.values.shape[:2]
    found = np.zeros(rows * columns, dtype=np.int16)
    training = model.training
    model.eval()
    with progress_bar("map", len(found), unit="pixels", shown=progress) as advance:
        for start in range(0, len(found), batch):
            some = np.arange(start, min(len(found), start + batch))
            scores = model(torch.from_numpy(windows.take(some)).to(model.device))
            found[some] = scores.argmax(-1).cpu().numpy() + 1
            advance(len(some))
    model.train(training)
    return found.reshape(rows, columns)


def classify_cube(
    run: str | os.PathLike[str],
    cube: data.Cube,
    *,
    batch: int = 512,
    progress: bool = False,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The map of a cube by the model of a run, and the names of its classes.

    Arguments:
        run: folder that `train_hyperspectral` left.
        cube: of as many bands as the one that was learnt from.
        batch, progress: as `classify_windows`.

    Raises:
        ValueError: for another folder, or another number of bands.
    """
    place = Path(run) / "cube.npz"
    if not place.is_file():
        raise ValueError(f"run: {str(run)!r} has no cube.npz; expected a folder that `train hyperspectral` left")
    from statescan.checkpoints import load

    model = load(run)
    with np.load(place, allow_pickle=False) as arrays:
        reduction = data.BandReduction(arrays["mean"], arrays["matrix"])
        classes = tuple(map(str, arrays["classes"]))
    windows = data.Windows(reduction(cube.values), model.config.window)
    return classify_windows(model, windows, batch=batch, progress=progress), classes


def spectral_baselines(cube: data.Cube, parts: np.ndarray, *, seed: int = 0) -> dict[str, data.MapAccuracy]:
    """What a logistic regression and a support vector machine (radial kernel) make of single spectra, standardised.

    Arguments:
        cube: with labels.
        parts: from `data.split_pixels`; the validation's pixels are not used.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    assert cube.labels is not None
    learnt, tried = parts == data.PARTS["training"], parts == data.PARTS["test"]
    found = {}
    kinds = {"logistic": LogisticRegression(max_iter=500), "svm": SVC(C=10.0, random_state=seed)}
    for name, classifier in kinds.items():
        fitted = make_pipeline(StandardScaler(), classifier).fit(cube.values[learnt], cube.labels[learnt])
        answers = fitted.predict(cube.values[tried])
        found[name] = data.map_accuracy(cube.labels[tried] - 1, answers - 1, len(cube.classes))
    return found


def draw_map(path: str | os.PathLike[str], cube: data.Cube, found: np.ndarray) -> str | None:
    """Draw three bands as a picture, the labels where there are any, and the map; gives the path, or None without
    matplotlib.

    Arguments:
        path: of the picture; its suffix says the format.
        cube: its values and labels.
        found: (rows, columns), labels from 1 on.
    """
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        return None
    count = max(len(cube.classes), int(found.max()))
    colours = [COLOURS[index % len(COLOURS)] for index in range(count)]
    paint = ListedColormap(["#FFFFFF", *colours])
    bands = cube.values.shape[2]
    # Near infrared, red and green, where bands go from 0.4 to 2.5 micrometres; high bands as red in any case.
    chosen = cube.values[:, :, [bands * 2 // 9, bands // 8, bands // 14]]
    low, high = np.percentile(chosen, (2, 98), axis=(0, 1))
    seen = np.clip((chosen - low) / np.maximum(high - low, 1e-12), 0, 1)
    panels: list[tuple[str, np.ndarray]] = [("three bands", seen)]
    if cube.labels is not None:
        panels.append(("labels", cube.labels))
    panels.append(("map", found))
    height = 4.0 * found.shape[0] / found.shape[1]
    figure = Figure(figsize=(4.0 * len(panels), min(10.0, max(2.0, height)) + 0.9), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, picture) in zip(places, panels, strict=True):
        place.imshow(picture, cmap=paint, vmin=0, vmax=count, interpolation="nearest")
        place.set_title(title)
        place.set_axis_off()
    names = [*cube.classes, *(f"class {index + 1}" for index in range(len(cube.classes), count))]
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, count), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return str(path)
