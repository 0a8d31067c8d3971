"""Progressive distillation: a chain of smaller students, each taught by the teacher what the ones before it got wrong.

Medina, Hadachi, Honeine and Bensrhair 2025, "Mamba base PKD for efficient knowledge compression", arXiv 2503.01727. Where
the paper leaves room, this is what is done: with F_0 = 0, student k is trained with alpha x cross-entropy + (1 - alpha) x
tau² KL(teacher || student), a sample weighing exp(eta KL(teacher || F_{k-1})); F_k = a_k F_{k-1} + b_k S_k, with the a_k and
b_k of the least cross-entropy on the validation images. A student's weight in the whole sum is its b times all later a.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import checkpoints, data, models
from statescan.tasks._distillation import best_weights, distillation_loss, sample_weights, scores_of
from statescan.tasks._run_folder import RunFolder, write_atomically
from statescan.tasks._settings import TrainingSettings, overrides
from statescan.tasks._students import Student, check_vision, image_flops, shrink

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._module import Measure, Sums

#: Images by name.
IMAGE_DATA = ("digits", "strokes")


@dataclass(frozen=True)
class DistillationTraining(TrainingSettings):
    """Train a teacher and a chain of smaller students.

    Example: statescan train distillation --data strokes --model vim_tiny --set dim=64 depth=4 patch=4 --out runs/chain
    """

    #: digits (1,797 real handwritten digits of 8 x 8 pixels, enlarged), strokes (generated digits), or a .npz file of
    #: arrays images (count, height, width) or (count, channels, height, width) and targets (count,).
    data: str = "digits"
    #: Side of the images of digits and strokes, in pixels.
    size: int = 28
    #: Images of strokes, all parts together.
    examples: int = 6000
    #: Seed of the strokes, and of the division of the images; `seed` is that of weights and order.
    data_seed: int = 0
    #: Part of the images to be tried on.
    test_fraction: float = 0.2
    #: Part of what is left that validates, and chooses the students' weights in the sum.
    validation_fraction: float = 0.15
    #: Name of the teacher, an image model.
    model: str = "vim_tiny"
    #: A finished teacher's folder, trained on these images; else one is trained.
    teacher: Path | None = None
    #: What each student may cost of the teacher's operations, in the order in which they are trained.
    fractions: tuple[float, ...] = (0.01, 0.03, 0.05, 0.08, 0.11, 0.15, 0.20)
    #: Widths of students are multiples of it.
    width_step: int = 2
    #: Optimiser steps of the teacher.
    steps: int = 2000
    #: Optimiser steps of each student; None: as many as the teacher's.
    student_steps: int | None = None
    #: Images of a batch.
    batch_size: int = 32
    #: Temperature of the soft targets.
    tau: float = 4.0
    #: Weight of the labels; the teacher's has the rest.
    alpha: float = 0.5
    #: How much more a student looks at what those before it got wrong; 0: at everything alike.
    eta: float = 0.5
    #: Highest learning rate.
    learning_rate: float = 2e-3
    #: Weight decay of matrices.
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {getattr(self, name)}")
        if self.teacher is not None:
            object.__setattr__(self, "teacher", Path(self.teacher))
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"fractions: at least one, all between 0 and 1, got {self.fractions}")
        if not self.tau > 0 or not 0 <= self.alpha <= 1 or self.eta < 0:
            raise ValueError(
                f"tau, alpha, eta: positive, from 0 to 1, at least 0; got {self.tau}, {self.alpha} and {self.eta}"
            )
        for name in ("size", "examples", "width_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.student_steps is not None and self.student_steps < 1:
            raise ValueError(f"student_steps: expected at least 1, got {self.student_steps}")
        if self.mixer is not None:
            raise ValueError("mixer: image models have parts of their own in place of one; leave --mixer out")
        if self.world_size > 1:
            raise ValueError(f"devices, nodes: one process trains a chain, got {self.devices} and {self.nodes}")


@dataclass(frozen=True)
class ImageSet:
    """Images, their classes, and what a teacher says of them.

    Fields:
        inputs: (count, channels, height, width) float32.
        targets: (count,) int64.
        soft: the teacher's scores (count, classes); None before there are any.
        weights: of the samples, (count,); None: all 1.
    """

    inputs: Tensor
    targets: Tensor
    soft: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: Tensor) -> ImageSet:
        """Some of them."""
        soft = None if self.soft is None else self.soft[index]
        weights = None if self.weights is None else self.weights[index]
        return ImageSet(self.inputs[index], self.targets[index], soft, weights)


@dataclass(frozen=True)
class ImageBatch:
    """A batch: see `ImageSet`."""

    inputs: Tensor
    targets: Tensor
    soft: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Link:
    """A student of the chain, measured on the test images.

    Fields:
        fields: of its config that differ from the teacher's.
        flops: of one image.
        fraction: of the teacher's.
        weight: in the sum.
        accuracy: of the student by itself.
        chain_fraction: operations of this student and all before it, of the teacher's.
        chain_accuracy: of their sum.
    """

    fields: dict[str, Any]
    flops: int
    fraction: float
    weight: float
    accuracy: float
    chain_fraction: float
    chain_accuracy: float


@dataclass(frozen=True)
class DistillationResult:
    """What a chain came to.

    Fields:
        teacher_accuracy: on the test images.
        teacher_flops: of one image.
        images: to learn from, to validate with, to be tried on.
        links: the students in their order.
        model: folder of the chain, one model.
        picture: accuracy against operations, or None where matplotlib is missing.
    """

    teacher_accuracy: float
    teacher_flops: int
    images: tuple[int, int, int]
    links: tuple[Link, ...]
    model: str
    picture: str | None


class ImageBatches(IterableDataset):
    """Batches from batch `first` on; which images batch n holds depends on the seed and n alone.

    Arguments:
        images: to draw from.
        batch_size: images a batch.
        classes: of the scores, for images without a teacher's.
        seed: of the order, a new one in each pass.
        first: batch to begin with.
        once: stop after one pass in the given order.
    """

    def __init__(
        self, images: ImageSet, *, batch_size: int, classes: int, seed: int = 0, first: int = 0, once: bool = False
    ) -> None:
        self._images, self._classes, self._seed, self._first, self._once = images, classes, seed, first, once
        self._batch_size = min(batch_size, len(images))

    def __iter__(self) -> Any:
        count = len(self._images)
        if self._once:
            for index in torch.arange(count).split(self._batch_size):
                yield self._take(index)
            return
        per_pass = count // self._batch_size
        number = self._first
        while True:
            seed = data.batch_seed(self._seed, "order", number // per_pass)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            start = number % per_pass * self._batch_size
            yield self._take(order[start : start + self._batch_size])
            number += 1

    def _take(self, index: Tensor) -> ImageBatch:
        some = self._images.select(index)
        soft = torch.zeros(len(index), self._classes) if some.soft is None else some.soft
        return ImageBatch(
            some.inputs, some.targets, soft, torch.ones(len(index)) if some.weights is None else some.weights
        )


def weighted_loss(*, tau: float, alpha: float) -> Measure:
    """The distillation loss of weighted samples; alpha 1 is plain cross-entropy."""

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        scores = model(batch["inputs"]).float()
        targets = batch["targets"]
        if alpha == 1:
            losses = F.cross_entropy(scores, targets, reduction="none")
        else:
            losses = distillation_loss(scores, batch["soft"], targets, tau=tau, alpha=alpha)
        loss = (losses * batch["weights"]).sum()
        count = torch.tensor(float(len(targets)), device=loss.device)
        right = (scores.argmax(-1) == targets).sum()
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        return loss, torch.stack([value.detach().to(wide) for value in (loss, count, right)]), None

    return measure


def read_labelled_images(source: str, *, size: int = 28, examples: int = 6000, seed: int = 0) -> tuple[ImageSet, int]:
    """Images and the number of their classes; see `DistillationTraining.data`.

    Raises:
        ValueError: an unknown name, or a file that is not what it should be.
        FileNotFoundError: there is no such file.
    """
    if source == "strokes":
        return ImageSet(*data.stroke_digits(examples, seed=seed, size=size)), 10
    if source == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ValueError("data: 'digits' comes with scikit-learn: pip install 'statescan[eval]'") from None
        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, 8, 8) / 16
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        return ImageSet(images, torch.from_numpy(labels).long()), 10
    path = Path(source)
    if path.suffix != ".npz":
        raise ValueError(f"data: {', '.join(IMAGE_DATA)}, or a .npz file, got {source!r}")
    with np.load(path) as archive:
        if not {"images", "targets"} <= set(archive.files):
            raise ValueError(f"data: {source!r} needs arrays images and targets, has {', '.join(archive.files)}")
        pixels, labels = archive["images"].astype(np.float32), archive["targets"]
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or len(labels) < 10:
        raise ValueError(
            f"data: images (count, height, width) or (count, channels, height, width) and targets (count,), at least ten, "
            f"got {pixels.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"data: targets are whole numbers from 0, got {labels.dtype} from {labels.min()}")
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))), int(labels.max()) + 1


def divide(images: ImageSet, settings: DistillationTraining) -> tuple[ImageSet, ImageSet, ImageSet]:
    """To learn from, to validate with, to be tried on; standardised by the first."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.data_seed))
    tried = max(1, round(settings.test_fraction * len(images)))
    validating = max(1, round(settings.validation_fraction * (len(images) - tried)))
    parts = [images.select(index) for index in order.split([len(order) - tried - validating, validating, tried])]
    mean, deviation = parts[0].inputs.mean(), parts[0].inputs.std().clamp(min=1e-8)
    return tuple(dataclasses.replace(part, inputs=(part.inputs - mean) / deviation) for part in parts)  # type: ignore[return-value]


def train_distillation(settings: DistillationTraining) -> DistillationResult:
    """Train a teacher and its chain of students; leaves the chain as one model in the run's folder.

    The teacher is in ``teacher``, each student in ``student_1``, …, each a run of its own with metrics and curves;
    ``chain.json`` holds the result and ``accuracy.png`` shows it. A run that was interrupted goes on with `resume`.

    Raises:
        ValueError: data, a setting or a model that does not exist, files that are not what they should be, or a folder
            that cannot be written or that holds another run.
        FileNotFoundError: where there is no such file.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    check_vision(settings.model)
    images, classes = read_labelled_images(
        settings.data, size=settings.size, examples=settings.examples, seed=settings.data_seed
    )
    learning, validating, tried = divide(images, settings)
    shape = images.inputs.shape
    if settings.teacher is None:
        fields = {"in_channels": shape[1], "num_classes": classes, "image_size": tuple(shape[2:])}
        fields |= overrides(settings.set)
        found = models.model_info(settings.model)
        family, config = found.family, dataclasses.replace(found.config, **fields)
    else:
        teacher = checkpoints.load(settings.teacher)
        family, config = teacher.family, teacher.config
    if (getattr(config, "in_channels", None), getattr(config, "num_classes", None)) != (shape[1], classes):
        raise ValueError(f"teacher: expected a model of {shape[1]} channels and {classes} classes, as the images have")
    # Before anything is trained: whether there are such students.
    size = (int(shape[2]), int(shape[3]))
    students = [shrink(family, config, part, size=size, step=settings.width_step) for part in settings.fractions]
    folder.prepare(settings, needed=0)
    if settings.teacher is None:
        teacher = _part(settings, "teacher", settings.steps, family, config, learning, validating, tau=1.0, alpha=1.0)
    soft = [scores_of(teacher, part.inputs) for part in (learning, validating)]
    learning, validating = (
        dataclasses.replace(part, soft=own) for part, own in zip((learning, validating), soft, strict=True)
    )
    whole = image_flops(family, config, size=size)
    steps = settings.student_steps or settings.steps
    so_far = [torch.zeros(len(part), classes) for part in (learning, validating, tried)]
    links: list[Link] = []
    members = []
    for number, student in enumerate(students, 1):
        weights = sample_weights(soft[0], so_far[0], eta=settings.eta)
        model = _part(
            settings,
            f"student_{number}",
            steps,
            family,
            student.config,
            dataclasses.replace(learning, weights=weights),
            validating,
            tau=settings.tau,
            alpha=settings.alpha,
            seed=settings.seed + number,
        )
        scores = [scores_of(model, part.inputs) for part in (learning, validating, tried)]
        scale, weight = best_weights(so_far[1], scores[1], validating.targets)
        so_far = [scale * before + weight * own for before, own in zip(so_far, scores, strict=True)]
        links = [dataclasses.replace(link, weight=scale * link.weight) for link in links]
        members.append(model)
        spent = sum(link.flops for link in links) + student.flops
        links.append(_link(student, weight, scores[2], so_far[2], tried.targets, spent / whole))
    checkpoints.save(join(members, [link.weight for link in links]), folder.path)
    reached = accuracy(scores_of(teacher, tried.inputs), tried.targets)
    result = DistillationResult(
        teacher_accuracy=reached,
        teacher_flops=whole,
        images=(len(learning), len(validating), len(tried)),
        links=tuple(links),
        model=str(folder.path),
        picture=draw_chain(folder.path / "accuracy.png", links, reached),
    )
    write_atomically(folder.path / "chain.json", json.dumps(dataclasses.asdict(result), indent=2).encode() + b"\n")
    return result


def join(members: list[Any], weights: list[float]) -> Any:
    """Classifiers as one model, an `AnytimeEnsemble` that can be stopped after any of them."""
    first = members[0].config
    chain = models.build_model(
        "anytime_ensemble",
        {
            "in_channels": first.in_channels,
            "num_classes": first.num_classes,
            "image_size": first.image_size,
            "members": tuple({"family": member.family, "config": models.config_dict(member)} for member in members),
        },
    )
    for ours, given in zip(chain.members, members, strict=True):
        ours.load_state_dict(given.state_dict())
    chain.weights.copy_(torch.tensor(weights))
    return chain.eval()


def accuracy(scores: Tensor, targets: Tensor) -> float:
    """Share of samples whose class has the highest score."""
    return float((scores.argmax(-1) == targets).double().mean())


def draw_chain(path: Path, links: list[Link], teacher: float) -> str | None:
    """Accuracy against operations: of each student, of the sums, and of the teacher; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError:
        return None
    from statescan.tasks._picture import COLOURS

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    place = figure.subplots()
    place.axhline(100 * teacher, color="0.4", linestyle="--", linewidth=1, label=f"teacher, {teacher:.1%}")
    place.plot(
        [100 * link.chain_fraction for link in links],
        [100 * link.chain_accuracy for link in links],
        marker="o",
        color=COLOURS[0],
        label="sum of the first students",
    )
    place.plot(
        [100 * link.fraction for link in links],
        [100 * link.accuracy for link in links],
        marker="s",
        linestyle="none",
        color=COLOURS[1],
        label="each student by itself",
    )
    for number, link in enumerate(links, 1):
        place.annotate(str(number), (100 * link.chain_fraction, 100 * link.chain_accuracy), (0, 6), fontsize=8,
                       textcoords="offset points", ha="center")  # fmt: skip
    place.set_xscale("log")
    place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    place.xaxis.set_minor_formatter(NullFormatter())
    place.set_xlabel("operations of one image, % of the teacher's")
    place.set_ylabel("test accuracy, %")
    place.set_title("a chain of students, stopped after any of them")
    place.grid(alpha=0.25)
    place.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    return str(path)


def _part(
    settings: DistillationTraining,
    name: str,
    steps: int,
    family: str,
    config: Any,
    learning: ImageSet,
    validating: ImageSet,
    *,
    tau: float,
    alpha: float,
    seed: int | None = None,
) -> Any:
    """One model of the run, trained in a folder of its own, or as it was left there."""
    part = dataclasses.replace(
        settings,
        out=settings.out / name,
        steps=steps,
        set=(),
        seed=settings.seed if seed is None else seed,
        validate_every=max(1, steps // 10),
        checkpoint_every=max(1, steps // 10),
    )
    folder = RunFolder(part.out)
    done = folder.path / "finished.json"
    if settings.resume and done.is_file():
        return checkpoints.load(folder.path)
    done.unlink(missing_ok=True)
    torch.manual_seed(part.seed)
    model = models.build_model(family, config)
    classes = config.num_classes

    def batches(first: int, rank: int, world: int) -> ImageBatches:
        return ImageBatches(learning, batch_size=part.batch_size, classes=classes, seed=part.seed, first=first)

    def validation(first: int, rank: int, world: int) -> ImageBatches:
        return ImageBatches(validating, batch_size=part.batch_size, classes=classes, once=True)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    from statescan.tasks._fit import Objective, fit

    columns = ("validation_loss", "validation_accuracy")
    measure = weighted_loss(tau=tau, alpha=alpha)
    found = fit(model, part, folder, Objective(batches, validation, 1, columns, describe, measure))
    write_atomically(done, json.dumps({"steps": found.steps, **found.validation}).encode() + b"\n")
    return checkpoints.load(folder.path)


def _link(student: Student, weight: float, own: Tensor, whole: Tensor, targets: Tensor, spent: float) -> Link:
    return Link(
        fields=student.fields,
        flops=student.flops,
        fraction=student.fraction,
        weight=weight,
        accuracy=accuracy(own, targets),
        chain_fraction=spent,
        chain_accuracy=accuracy(whole, targets),
    )
