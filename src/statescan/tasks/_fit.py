"""One training run from start to end, whatever the tokens mean: Lightning's trainer, put together."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset

from statescan.checkpoints import save
from statescan.models import build_model
from statescan.tasks._averaging import WeightAverage
from statescan.tasks._callbacks import AtomicCheckpointIO, ProgressBar, Recorder
from statescan.tasks._module import Learner, Measure, Sums
from statescan.tasks._run_folder import RunFolder
from statescan.tasks._settings import TrainingSettings

#: First batch, process and number of processes to batches: frozen dataclasses of tensors, such as `data.TokenBatch`.
MakeBatches = Callable[[int, int, int], IterableDataset]


@dataclass(frozen=True)
class Objective:
    """What a run learns and how that is measured.

    Fields:
        batches: makes the batches to learn from, of one process, from a given one on, without end.
        validation: makes the batches to validate with.
        targets: how many targets a sequence can have.
        columns: names of the numbers of a validation.
        describe: gives these numbers.
        measure: the loss.
        carry_state: hand the model's state from batch to batch.
        enough: says of a validation's numbers whether training can stop.
        groups: gives the optimiser's groups of a model's parameters; None: what the model says.
        average: decay of an exponential mean of the weights, which is validated and saved in their place; 0 for none.
        workers: processes that make batches.
        callbacks: of Lightning, that come before the validation.
        finish: gives what is saved of the trained model.
    """

    batches: MakeBatches
    validation: MakeBatches
    targets: int
    columns: tuple[str, ...]
    describe: Callable[[Sums], dict[str, float]]
    measure: Measure
    carry_state: bool = False
    enough: Callable[[dict[str, float]], bool] = lambda numbers: False
    groups: Callable[[Any], list[dict[str, Any]]] | None = None
    average: float = 0.0
    workers: int = 0
    callbacks: tuple[Any, ...] = ()
    finish: Callable[[Any], Any] = lambda model: model


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Fields:
        steps: optimiser steps made, over all parts of an interrupted run.
        validation: the numbers of the last validation.
        parameters: of the model.
        seconds: duration of this part of the run.
        model: folder of the run, which is that of the trained model.
        metrics: table of the metrics.
        picture: their curves, or None where matplotlib is missing.
        test: numbers of a test that followed; empty where there is none.
    """

    steps: int
    validation: dict[str, float]
    parameters: int
    seconds: float
    model: str
    metrics: str
    picture: str | None
    test: dict[str, float] = field(default_factory=dict)


class _Batches(lightning.LightningDataModule):
    """Begins where the run stands."""

    def __init__(self, make: MakeBatches, accumulate: int, workers: int, *, divided: bool) -> None:
        super().__init__()
        self._make, self._accumulate, self._workers, self._divided = make, accumulate, workers, divided

    def train_dataloader(self) -> Any:
        trainer: Any = self.trainer
        first = trainer.global_step * self._accumulate
        return _loader(self._make, first, trainer, self._workers, divided=self._divided)


def fit(
    model: Any, settings: TrainingSettings, folder: RunFolder, objective: Objective, *, tokenizer: Any = None
) -> TrainingResult:
    """Train a model, or go on with it, and leave it in the run's folder, its tokenizer (or what saves itself) beside it.

    Raises:
        ValueError: where the folder cannot be written, or where the loss is not finite.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Weights, the two running means of AdamW, and that of the weights.
    resumed = folder.prepare(settings, needed=(4 if objective.average else 3) * 4 * parameters)
    began = time.perf_counter()
    bar = ProgressBar(settings.steps, objective.columns[-1])
    reports = [bar.report, _tensorboard(folder)]
    divided = settings.strategy == "sequence"
    with _quiet(), folder.guard():
        recorder = Recorder(
            settings,
            folder,
            loader=lambda trainer: _loader(objective.validation, 0, trainer, objective.workers, divided=divided),
            describe=objective.describe,
            columns=objective.columns,
            enough=objective.enough,
            reports=reports,
        )
        average = WeightAverage(objective.average) if objective.average else None
        module = Learner(
            model,
            settings,
            objective.measure,
            targets=objective.targets,
            carry_state=objective.carry_state,
            groups=objective.groups,
            average=average,
        )
        before = [*objective.callbacks, *([average] if average is not None else [])]
        trainer = _trainer(settings, [*before, recorder, *([bar] if settings.progress else [])])
        data = _Batches(objective.batches, settings.accumulate, objective.workers, divided=divided)
        try:
            checkpoint = str(folder.checkpoint) if resumed else None
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stopped:  # Lightning's answer to the keyboard; the caller's is to decide
            if isinstance(stopped.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        if average is not None:
            average.leave(module.model)
        trained = _whole(trainer, module)
        if trainer.is_global_zero:
            save(objective.finish(trained), folder.path, tokenizer=tokenizer)
            picture = _draw(folder, settings, objective.columns)
        trainer.strategy.barrier()
    return TrainingResult(
        steps=trainer.global_step,
        validation=recorder.validation,
        parameters=parameters,
        seconds=time.perf_counter() - began,
        model=str(folder.path),
        metrics=str(folder.metrics.path),
        picture=picture if trainer.is_global_zero else None,
    )


def _trainer(settings: TrainingSettings, callbacks: list[Any]) -> Any:
    strategy: Any = "auto" if settings.world_size == 1 and settings.strategy == "auto" else "ddp"
    if settings.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            data_parallel_size=settings.world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return lightning.Trainer(
        max_steps=settings.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=strategy,
        precision="bf16-mixed" if settings.precision == "bfloat16" else "32-true",
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def _loader(make: MakeBatches, first: int, trainer: Any, workers: int = 0, *, divided: bool) -> DataLoader:
    """This process's rows of batches, or, divided, its part of all rows."""
    rank, size = trainer.global_rank, trainer.world_size
    batches = make(first, 0, 1) if divided else make(first, rank, size)
    collate = functools.partial(_as_part, rank=rank, size=size) if divided else _as_dict
    return DataLoader(batches, batch_size=None, collate_fn=collate, num_workers=workers)


def _as_dict(batch: Any) -> dict[str, Any]:
    """Lightning moves dictionaries to a device, but no frozen dataclasses."""
    return {"resets": None, "fresh": True, **vars(batch)}


def _as_part(batch: Any, *, rank: int, size: int) -> dict[str, Any]:
    """A part of every sequence; `whole` says how many tokens all parts have."""
    found = _as_dict(batch)
    tokens, targets = found.get("tokens"), found.get("targets")
    if tokens is None or targets is None or tokens.ndim != 2 or targets.shape != tokens.shape:
        raise ValueError(
            "strategy: sequence divides tokens with a target each; use ddp or fsdp for what is learnt here"
        )
    if tokens.shape[1] < size:
        raise ValueError(f"strategy: a sequence of {tokens.shape[1]} tokens cannot be divided among {size} processes")
    parts = {
        name: found[name].tensor_split(size, dim=1)[rank]
        for name in ("tokens", "targets", "resets")
        if found[name] is not None
    }
    return found | parts | {"whole": tokens.numel()}


def _whole(trainer: Any, module: Learner) -> Any:
    """The trained model in one piece, also where it was trained in shards."""
    if module.settings.strategy != "fsdp":
        return module.model
    tensors = trainer.strategy.lightning_module_state_dict()
    model = build_model(module.model.family, module.model.config)
    if trainer.is_global_zero:
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    return model


def _tensorboard(folder: RunFolder) -> Callable[[int, dict[str, float]], None]:
    """Writes numbers for TensorBoard, where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda step, row: None
    writer: list[Any] = []

    def write(step: int, row: dict[str, float]) -> None:
        if not writer:
            writer.append(SummaryWriter(str(folder.path / "tensorboard"), purge_step=step))
        for name, value in row.items():
            if name != "step":
                writer[0].add_scalar(name, value, step)
        writer[0].flush()

    return write


def _draw(folder: RunFolder, settings: TrainingSettings, columns: tuple[str, ...]) -> str | None:
    from statescan.tasks._picture import draw_curves

    measure = columns[-1]
    curves = {"training": folder.metrics.series("train_loss"), "validation": folder.metrics.series("validation_loss")}
    return draw_curves(folder.picture, {"loss a target": curves, measure: {"": folder.metrics.series(measure)}})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice, which is for those who write the loop themselves."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module=name.replace(".", r"\."))
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
