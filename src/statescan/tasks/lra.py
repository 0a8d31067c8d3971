"""The Long Range Arena: six tasks of long sequences, with the published settings of the models that are known for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from statescan import data
from statescan._names import nearest
from statescan.models import list_models, model_info
from statescan.tasks._lra_recipes import RECIPES, SHORT, Recipe, family_of
from statescan.tasks._run_folder import RunFolder
from statescan.tasks._settings import TrainingSettings, build, demand
from statescan.tasks.sequence import fit_sequences

if TYPE_CHECKING:
    from statescan.tasks._fit import TrainingResult

#: Settings where there is no recipe.
_PLAIN: dict[str, Any] = {
    "batch_size": 32,
    "steps": 5_000,
    "warmup": 500,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "learning_rates": (),
    "accumulate": 1,
}


@dataclass(frozen=True)
class LRATraining(TrainingSettings):
    """Train on a task of the Long Range Arena by a published recipe, or a smaller one on a laptop.

    Every setting that is given goes before the recipe's. Without --length, --width and --examples it is the published size.

    Example: statescan train lra --task listops --model s4d --length 128 --width 64 --examples 5000 --steps 2000
    """

    #: listops, text, retrieval, image, pathfinder or pathx.
    task: str = "listops"
    #: s4, s4d, s5 or long_conv with its recipe, or the name of any classifier of sequences, which has none.
    model: str = "s4d"
    #: s4, s4_fout, s4d, s4d_inv, s4d_lin, s5 or long_conv; None: the model's own.
    recipe: str | None = None
    #: Folder of the published files; listops and pathfinder are generated without.
    data: Path | None = None
    #: Positions of a sequence; None: as published. Texts are cut, images averaged, expressions drawn shorter.
    length: int | None = None
    #: Channels of the model; None: as published.
    width: int | None = None
    #: Blocks of the model; None: as published.
    depth: int | None = None
    #: Sequences to learn from; None: as many as published.
    examples: int | None = None
    #: Sequences to validate with, and as many to be tried on; None: all.
    test_examples: int | None = None
    #: What a text is read as; characters as in the published experiments of state-space models.
    level: Literal["characters", "bytes"] = "characters"
    #: Optimiser steps; None: the recipe's.
    steps: int | None = None
    #: Sequences of a batch, on each device; None: the recipe's.
    batch_size: int | None = None
    #: Batches whose gradients make one step; None: the recipe's.
    accumulate: int | None = None
    #: Highest learning rate; None: the recipe's.
    learning_rate: float | None = None
    #: Other highest learning rates, of parameters whose names hold a part; None: the recipe's.
    learning_rates: tuple[str, ...] | None = None
    #: Steps of linear warm-up; None: the recipe's share of all steps.
    warmup: int | None = None
    #: Weight decay of matrices; None: the recipe's.
    weight_decay: float | None = None
    #: Learning rate at the end, as a fraction of the highest.
    final_learning_rate: float = 0.0
    #: AdamW's decay rates of the running mean and of the mean square.
    betas: tuple[float, float] = (0.9, 0.999)
    #: Largest norm of the gradient; the published runs shorten none.
    gradient_clip: float = 1e9

    def __post_init__(self) -> None:
        data.arena_task(self.task)
        if self.data is not None:
            object.__setattr__(self, "data", Path(self.data))
        for name in ("length", "width", "depth", "examples", "test_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        recipe = self.published()
        values = dict(_PLAIN if recipe is None else recipe.settings)
        if self.mixer is not None:
            values["learning_rates"] = ()  # of parameters that another mixer does not have
        if self.steps is not None:
            values["warmup"] = round(values["warmup"] * self.steps / values["steps"])
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()

    def published(self) -> Recipe | None:
        """The recipe, if the model has one.

        Raises:
            ValueError: for a model or a recipe that does not exist or does not belong together.
        """
        if self.model not in SHORT:
            known = [*SHORT, *list_models()]
            if self.model not in known:
                hint = nearest(self.model, known)
                raise ValueError(f"model: unknown name {self.model!r}{hint}; with recipes: {', '.join(SHORT)}")
            if self.recipe is not None:
                raise ValueError(f"recipe: {self.model!r} has none; with recipes: --model {', '.join(SHORT)}")
            return None
        name = self.recipe or self.model
        if name not in RECIPES:
            hint = nearest(name, RECIPES)
            raise ValueError(f"recipe: unknown name {name!r}{hint}; known: {', '.join(RECIPES)}")
        if family_of(name) != self.model:
            raise ValueError(f"recipe: {name!r} is one of --model {family_of(name)}, not of {self.model!r}")
        return RECIPES[name][self.task]


def train_lra(settings: LRATraining) -> TrainingResult:
    """Train on a task of the Long Range Arena and try the model; leaves what `train_sequence` leaves.

    Raises:
        ValueError: for a task, recipe, model or setting that does not exist (the nearest name is shown), files that are not
            what they should be, or a folder that cannot be written or that holds another run.
        FileNotFoundError: for published files that are not there.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    recipe = settings.published()
    if recipe is None:
        demand(settings, "classes", "classifier of sequences", "s4d")
    name = recipe.model if recipe else settings.model
    if settings.task == "retrieval" and not hasattr(model_info(name).config, "retrieval"):
        raise ValueError(f"model: {settings.model!r} cannot compare two sequences; try --model s4d")
    found = data.read_arena(
        settings.task,
        settings.data,
        length=settings.length,
        examples=settings.examples,
        test_examples=settings.test_examples,
        level=settings.level,
        seed=settings.seed,
    )
    model = build(settings, name, **_fields(settings, recipe, found.learn))
    return fit_sequences(settings, folder, model, found.learn, found.validation, found.test)


def _fields(settings: LRATraining, recipe: Recipe | None, learn: data.LabelledSequences) -> dict[str, Any]:
    """Of the model's config: those of the recipe, those that are given, those that the data ask for."""
    fields: dict[str, Any] = dict(recipe.fields) if recipe and settings.mixer is None else {}
    given = {"dim": settings.width, "depth": settings.depth}
    if recipe and recipe.model.startswith("long_conv"):
        given["max_length"] = settings.length  # a kernel is as long as the sequences
    fields |= {key: value for key, value in given.items() if value is not None}
    fields["classes"] = len(learn.classes)
    if learn.paired:
        fields["retrieval"] = True
    if learn.vocab_size is None:
        return fields | {"vocab_size": None, "input_dim": learn.inputs.shape[2]}
    return fields | {"vocab_size": learn.vocab_size}
