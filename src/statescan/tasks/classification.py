"""Image classification: a user's own images, any image model of the library."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from statescan import checkpoints, data
from statescan._names import nearest
from statescan.data import Views
from statescan.models import create_model, list_models, model_info
from statescan.models._vision import VisionConfig
from statescan.tasks._image_augmentation import Augmentation, Policy
from statescan.tasks._image_preparation import ImagePreparation
from statescan.tasks._image_recipes import RECIPES
from statescan.tasks._run_folder import RunFolder, first_process, replacing
from statescan.tasks._settings import TrainingSettings, build
from statescan.tasks.methods import TrainingMethod, make_methods

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Measure, Sums
    from statescan.tasks.image_scores import ImageScore


@dataclass(frozen=True)
class ClassificationTraining(TrainingSettings):
    """Train an image model to tell classes, on images of your own.

    Example: statescan train classification --data photos --model vim_tiny --epochs 30 --recipe vim --out runs/photos
    """

    #: A folder with a subfolder for each class (or train, val and test with such subfolders), a name (textures, digits), or
    #: datasets:NAME?column=...&label=....
    data: str = "textures"
    #: A .csv file with a line for each image: its file and its label, or labels, or columns of 0 and 1.
    labels: Path | None = None
    #: Part of the images that the model is tried on at the end, where the data have no such part.
    test_fraction: float = 0.2
    #: Part of what is left that validates while learning, where the data have no such part.
    validation_fraction: float = 0.1
    #: An image that cannot be read is an error; else it is named, counted and left out.
    strict: bool = False
    #: Read every pixel of every image before training, so that damage is found early.
    check: bool = True
    #: Name of an image model.
    model: str = "vim_micro"
    #: Side of the images that the model sees; None: what the model was made for.
    size: int | None = None
    #: Begin with the weights of a model: a folder, a file or a hub id; the head may have other classes.
    weights: str | None = None
    #: Published settings: vim, vmamba, plainmamba, mambaout, rsmamba, res_vmamba or patch_scaling. What you set to something
    #: other than its default stays yours.
    recipe: str | None = None
    #: Passes over the images; replaces steps.
    epochs: float | None = None
    #: Optimiser steps.
    steps: int = 1000
    #: Images of a batch, on each device.
    batch_size: int = 32
    #: Highest learning rate.
    learning_rate: float = 1e-3
    #: Weight decay of matrices.
    weight_decay: float = 0.05
    #: AdamW's decay rates of the running mean and of the mean square.
    betas: tuple[float, float] = (0.9, 0.999)
    #: Steps of linear warm-up; 0: a twentieth of the run, or the recipe's part of it.
    warmup: int = 0
    #: Learning rate at the end, as a fraction of the highest.
    final_learning_rate: float = 0.01
    #: Each layer's learning rate as a part of the next one's; below 1 for fine-tuning.
    layer_decay: float = 1.0
    #: Decay of an exponential mean of the weights, validated and saved in their place; 0 for none.
    ema: float = 0.0
    #: Probability that the last block is skipped in training, earlier ones less; None: what the model or the recipe says.
    drop_path: float | None = None
    #: Operations on single images: none, randaugment, autoaugment, three.
    augment: Policy = "none"
    #: How many operations of randaugment an image goes through.
    operations: int = 2
    #: Strength of these, up to 10.
    magnitude: float = 9.0
    #: Probability that a rectangle of an image is made grey.
    erasing: float = 0.0
    #: Mixtures of two images: parameter of the beta distribution of their parts; 0 for none.
    mixup: float = 0.0
    #: Rectangles of another image: likewise.
    cutmix: float = 0.0
    #: Part of the target that goes to all classes alike.
    smoothing: float = 0.0
    #: So many crops of an image stand in a batch together.
    repeats: int = 1
    #: Least and greatest part of an image's area that a random crop has.
    scale: tuple[float, float] = (0.35, 1.0)
    #: Probability that left and right change places.
    flip: float = 0.5
    #: Probability that above and below change places.
    vertical_flip: float = 0.0
    #: Part of an image's middle that is seen in tests, by the side.
    crop: float = 1.0
    #: Folder of a trained image model to learn from beside the labels.
    teacher: str | None = None
    #: How: from its probabilities (soft) or from its answers (hard).
    distillation: Literal["soft", "hard"] = "soft"
    #: The teacher's part of the loss.
    distillation_weight: float = 0.5
    #: Of the probabilities, where they are soft.
    temperature: float = 1.0
    #: Further ways to train, as NAME or NAME=VALUE (statescan.tasks.methods).
    methods: tuple[str, ...] = ()
    #: Processes that read images; 0: none beside the training itself.
    workers: int = 0

    def __post_init__(self) -> None:
        if self.recipe is not None:
            self._follow(self.recipe)
        super().__post_init__()
        if isinstance(self.labels, str):
            object.__setattr__(self, "labels", Path(self.labels))
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: above 0 and up to 1, got {self.layer_decay}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: from 0 to below 1, got {self.ema}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs: expected a positive number, got {self.epochs}")
        if self.repeats < 1 or self.workers < 0:
            raise ValueError(f"repeats, workers: at least 1 and 0, got {self.repeats} and {self.workers}")
        if self.mixer is not None:
            raise ValueError("mixer: image models have mixers of their own; choose one by --model")
        self.augmentation()
        self.views((1, 1))

    def _follow(self, name: str) -> None:
        """Take a recipe's settings where the given ones are the defaults."""
        if name not in RECIPES:
            hint = nearest(name, RECIPES)
            raise ValueError(f"recipe: unknown {name!r}{hint}; known: {', '.join(RECIPES)}")
        recipe = RECIPES[name]
        rate = recipe.learning_rate(self.batch_size * self.accumulate * self.world_size)
        wanted = {"learning_rate": rate, "drop_path": recipe.drop_path_of(self.model), **recipe.settings}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field, value in wanted.items():
            if getattr(self, field) == defaults[field]:
                object.__setattr__(self, field, value)

    def augmentation(self) -> Augmentation:
        """What is done to batches of images."""
        names = ("operations", "magnitude", "erasing", "mixup", "cutmix", "smoothing")
        return Augmentation(policy=self.augment, **{name: getattr(self, name) for name in names})

    def views(self, size: tuple[int, int]) -> Views:
        """How images are cropped."""
        return Views(size, crop=self.crop, scale=self.scale, flip=self.flip, vertical_flip=self.vertical_flip)

    def for_images(self, count: int) -> ClassificationTraining:
        """With `steps` in place of `epochs`, for so many images to learn from, and a recipe's warm-up."""
        changed: dict[str, Any] = {}
        steps = self.steps
        if self.epochs is not None:
            whole = min(self.batch_size * self.world_size, count)
            steps = math.ceil(self.epochs * (count // whole) / self.accumulate)
            for name in ("validate_every", "checkpoint_every"):
                if getattr(self, name) == max(1, self.steps // 10):
                    changed[name] = max(1, steps // 10)
        if not self.warmup:
            part = RECIPES[self.recipe].warmup / RECIPES[self.recipe].epochs if self.recipe is not None else 0.05
            changed["warmup"] = max(1, round(part * steps))
        return dataclasses.replace(self, steps=steps, **changed)


def train_classification(settings: ClassificationTraining) -> TrainingResult:
    """Train an image model and try it on images that it did not learn from.

    Leaves what every run leaves, and beside the model ``images.json`` (size, normalisation, classes), ``test.json``,
    ``test_classes.csv`` (each class) and ``confusion.csv``. Files that cannot be read are in ``skipped.csv``.

    Raises:
        ValueError: for data, a setting or a model that is not known or does not fit, images that cannot be read with
            `strict`, or a folder that cannot be written or that holds another run.
        FileNotFoundError: where there is no such file or folder.
    """
    from statescan.tasks._fit import Objective, fit
    from statescan.tasks.image_scores import score_images

    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    demand_image_model(settings.model)
    parts = data.read_images(
        settings.data,
        labels=settings.labels,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
        strict=settings.strict,
        decode=settings.check,
    )
    say_skipped(parts.skipped)
    settings = settings.for_images(len(parts.train))
    model = first_model(settings, parts.train)
    preparation = ImagePreparation.of(model, parts.train.classes, multilabel=parts.train.multilabel, crop=settings.crop)
    methods = make_methods(settings.methods)
    if settings.teacher is not None:
        methods.insert(0, _teacher(settings, preparation))
    for method in methods:
        model = method.wrap(model)
    measure = image_measure(preparation, settings.augmentation(), methods)
    batch_size = settings.batch_size * settings.world_size

    def batches(images: data.LabelledImages, **options: Any) -> data.ImageBatches:
        views = settings.views(preparation.size)
        return data.ImageBatches(images, views, channels=preparation.channels, batch_size=batch_size, **options)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    def groups(given: Any) -> list[dict[str, Any]]:
        from statescan.tasks._layer_decay import layer_groups

        plain = given.parameter_groups(settings.weight_decay)
        return layer_groups(given, plain, decay=settings.layer_decay, learning_rate=settings.learning_rate)

    objective = Objective(
        lambda first, rank, world: batches(
            parts.train, seed=settings.seed, rank=rank, world=world, first=first, repeats=settings.repeats
        ),
        lambda first, rank, world: batches(parts.validation, rank=rank, world=world, once=True),
        targets=1,
        columns=("validation_loss", "validation_accuracy"),
        describe=describe,
        measure=measure,
        groups=groups if settings.layer_decay < 1 else None,
        average=settings.ema,
        workers=settings.workers,
        callbacks=(_callback(preparation, methods, settings.steps),),
        finish=lambda trained: functools.reduce(lambda m, method: method.unwrap(m), reversed(methods), trained),
    )
    training = fit(model, settings, folder, objective, tokenizer=preparation)
    if not first_process():
        return training
    if parts.skipped:
        _table(folder.path / "skipped.csv", ("file", "why"), parts.skipped)
    trained = checkpoints.load(folder.path)
    score = score_images(trained, preparation, parts.test, batch_size=settings.batch_size, workers=settings.workers)
    write_scores(folder.path, score)
    return dataclasses.replace(training, test=score.numbers)


def demand_image_model(name: str) -> None:
    """Raise unless the named model classifies images.

    Raises:
        ValueError: a name that is not known, or a model of another kind.
    """
    if not isinstance(model_info(name).config, VisionConfig):
        raise ValueError(
            f"model: {name!r} is no image model; try --model {ClassificationTraining.model}, `statescan systems` lists all"
        )


def first_model(settings: ClassificationTraining, images: data.LabelledImages) -> Any:
    """The model with its first weights, for the classes of these images.

    Raises:
        ValueError: a size that the model does not take, weights that do not fit, or a model that gives no class scores.
    """
    fields: dict[str, Any] = {"num_classes": len(images.classes)}
    if settings.size is not None:
        fields["image_size"] = settings.size
    if settings.drop_path is not None:
        fields["drop_path_rate"] = settings.drop_path
    if images.spectrum is not None:
        fields["in_channels"] = images.spectrum
    model = build(settings, **fields)
    height, width = model.config.image_shape
    if min(height, width) < model.least_size:
        raise ValueError(
            f"size: {settings.model!r} takes images of at least {model.least_size} pixels a side, got {height} x {width}"
        )
    if model.config.features_only or model.config.num_classes != len(images.classes):
        raise ValueError(
            f"set: the data have {len(images.classes)} classes and need a head; leave num_classes and features_only out"
        )
    with torch.no_grad():
        given = model.eval()(torch.zeros(1, model.config.in_channels, height, width))
    model.train()
    if not isinstance(given, Tensor) or given.shape != (1, len(images.classes)):
        raise ValueError(f"model: {settings.model!r} gives no class scores; it is made for another task")
    if settings.weights is not None and not settings.resume:
        begin_with(model, settings.weights, settings.model)
    return model


@torch.no_grad()
def begin_with(model: Any, weights: str, name: str) -> None:
    """Fill a model with the weights of another of its kind, whose head may have other classes.

    Arguments:
        model: to be filled.
        weights: a folder of a model, a file of weights, or a hub id.
        name: of the model that a file of weights belongs to.

    Raises:
        ValueError: tensors besides the head's are missing or of another shape; the first is named.
    """
    place = Path(weights)
    if place.is_file():
        fields = {field: getattr(model.config, field) for field in ("in_channels",)}
        source = create_model(name, checkpoint=place, **fields)
    else:
        source = checkpoints.load(weights)
    given = source.state_dict()
    taken, left = {}, []
    for key, tensor in model.state_dict().items():
        if key in given and given[key].shape == tensor.shape:
            taken[key] = given[key]
        else:
            left.append(key)
    wrong = [key for key in left if "head" not in key]
    if wrong:
        found = tuple(given[wrong[0]].shape) if wrong[0] in given else "not there"
        raise ValueError(
            f"weights: {weights!r} does not fit {name!r}: {wrong[0]} is {found}, expected "
            f"{tuple(model.state_dict()[wrong[0]].shape)}; use the same model, size and channels"
        )
    model.load_state_dict(taken, strict=False)


def _teacher(settings: ClassificationTraining, preparation: ImagePreparation) -> TrainingMethod:
    from statescan.tasks._teacher import Distillation

    assert settings.teacher is not None
    folder = checkpoints.locate(settings.teacher)
    teacher = checkpoints.load(folder)
    if not isinstance(teacher.config, VisionConfig):
        raise ValueError(f"teacher: {settings.teacher!r} holds no image model")
    taught = ImagePreparation.load(folder, teacher)
    if taught.classes != preparation.classes:
        raise ValueError(
            f"teacher: it knows the classes {', '.join(taught.classes[:5])} …, the data have "
            f"{', '.join(preparation.classes[:5])} …"
        )
    if (taught.mean, taught.std) != (preparation.mean, preparation.std):
        raise ValueError("teacher: its images are normalised in another way than the model's")
    return Distillation(
        teacher, kind=settings.distillation, weight=settings.distillation_weight, temperature=settings.temperature
    )


def image_measure(preparation: ImagePreparation, augmentation: Augmentation, methods: list[TrainingMethod]) -> Measure:
    """Cross-entropy of the classes, or of each class by itself where an image can show several.

    In training the images are augmented, and the targets are probabilities.
    """
    several, classes = preparation.multilabel, len(preparation.classes)

    def task_loss(scores: Tensor, targets: Tensor) -> Tensor:
        if several:
            each = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
            return each.mean(-1).sum()
        return torch.nn.functional.cross_entropy(scores, targets, reduction="sum")

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        images, wanted = preparation.unit(batch["images"]), batch["targets"]
        targets: Tensor = wanted.float() if several else wanted
        if model.training:
            images = preparation.normalise(augmentation.change(images))
            images, targets = augmentation.mix(images, augmentation.soften(wanted, classes))
            for method in methods:
                images, targets = method.prepare(images, targets)
        else:
            images = preparation.normalise(images)
        outputs = model(images)
        heads = [head.float() for head in (outputs if isinstance(outputs, tuple) else (outputs,))]
        taught = any(hasattr(method, "teacher") for method in methods)
        # A second head is the teacher's; without one it learns the labels too.
        used = heads[:1] if taught else heads
        loss = torch.stack([task_loss(head, targets) for head in used]).mean()
        if model.training:
            for method in methods:
                loss = method.loss(loss, model=model, images=images, outputs=outputs, targets=targets)
        right = ((heads[0] > 0) == (wanted > 0)).float().mean(-1) if several else heads[0].argmax(-1) == wanted
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        count = torch.tensor(float(len(wanted)), device=loss.device)
        return loss, torch.stack([value.detach().to(wide) for value in (loss, count, right.sum())]), None

    return measure


def _callback(preparation: ImagePreparation, methods: list[TrainingMethod], steps: int) -> Any:
    from pytorch_lightning.callbacks import Callback

    class Classes(Callback):
        """Tells the methods how far training is, and refuses to go on with a run of other classes."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            for method in methods:
                method.begin(trainer.global_step, steps)

        def state_dict(self) -> dict[str, Any]:
            return {"classes": list(preparation.classes)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if tuple(state_dict["classes"]) != preparation.classes:
                raise ValueError(
                    "resume: the data have other classes than the run began with: "
                    f"{', '.join(preparation.classes[:5])} …, then {', '.join(state_dict['classes'][:5])} …"
                )

    return Classes()


def write_scores(folder: Path, score: ImageScore, *, prefix: str = "test") -> None:
    """Write ``PREFIX.json``, ``PREFIX_classes.csv`` and, where there is one, ``confusion.csv`` into a folder."""
    with replacing(folder / f"{prefix}.json") as file:
        file.write(json.dumps(score.numbers, indent=2).encode() + b"\n")
    columns = list(score.classes[0])
    _table(folder / f"{prefix}_classes.csv", columns, [list(row.values()) for row in score.classes])
    if score.confusion is not None:
        names = [row["name"] for row in score.classes]
        rows = [[name, *row] for name, row in zip(names, score.confusion, strict=True)]
        _table(folder / "confusion.csv", ["class", *names], rows)


def _table(path: Path, columns: Any, rows: Any) -> None:
    with io.StringIO() as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
        with replacing(path) as file:
            file.write(text.getvalue().encode())


def say_skipped(skipped: Any, report: Callable[[str], None] | None = None) -> None:
    """Name the files that were left out, up to ten of them, and how many they are."""
    if not skipped or not first_process():
        return
    say = report or (lambda line: print(line, file=sys.stderr))
    for name, why in skipped[:10]:
        say(f"skipped {name}: {why}")
    rest = f", {len(skipped) - 10} of them not named here" if len(skipped) > 10 else ""
    say(f"skipped {len(skipped)} images that cannot be read{rest}; --strict makes this an error")


def image_models() -> list[str]:
    """Names of the models that can be trained so, sorted. Imports every family."""
    return [name for name in list_models() if isinstance(model_info(name).config, VisionConfig)]
