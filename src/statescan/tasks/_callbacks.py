"""What happens beside training: metrics, validation, checkpoints, a progress bar. Each after a whole optimiser step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from statescan.tasks._module import Learner, Sums, schedule
from statescan.tasks._run_folder import RunFolder, replacing
from statescan.tasks._settings import TrainingSettings

#: Columns of the metrics before those of the validation.
COLUMNS = ("step", "tokens", "train_loss", "learning_rate", "gradient_norm")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one before and then puts it in its place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """The file at `path` is the new checkpoint or, whatever happens, the old one."""
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch reports a full disk as an error of its writer; the system's own error stands behind it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Recorder(Callback):
    """Metrics, validation and checkpoints, in this order, so that a checkpoint never knows more than the metrics.

    Arguments:
        settings: of the run.
        folder: where everything goes.
        loader: makes the batches of a validation.
        describe: names the numbers of a validation.
        columns: those names.
        enough: says of these numbers whether training can stop.
        reports: called with a step and its numbers.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        folder: RunFolder,
        *,
        loader: Callable[[Any], Any],
        describe: Callable[[Sums], dict[str, float]],
        columns: tuple[str, ...],
        enough: Callable[[dict[str, float]], bool],
        reports: Sequence[Callable[[int, dict[str, float]], None]] = (),
    ) -> None:
        self.settings, self.folder, self.loader = settings, folder, loader
        self.describe, self.columns, self.enough, self.reports = describe, columns, enough, reports
        self.validation: dict[str, float] = {}
        self.tokens = 0
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._saved = -1
        self._step = 0
        self._clock = (time.perf_counter(), 0)

    def state_dict(self) -> dict[str, Any]:
        """What the next row of metrics needs."""
        return {"sums": self._sums.cpu().clone(), "tokens": self.tokens, "validation": self.validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        self._sums, self.tokens = state_dict["sums"].clone(), state_dict["tokens"]
        self.validation = dict(state_dict["validation"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what was recorded after the checkpoint, if there is one."""
        self._saved = self._step = trainer.global_step
        self._clock = (time.perf_counter(), self.tokens)
        if trainer.is_global_zero:
            self.folder.metrics.keep_until(trainer.global_step)
            self.folder.speed.keep_until(trainer.global_step)
        # A run that had learnt enough does not go on.
        trainer.should_stop = bool(self.validation) and self.enough(self.validation)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Once a step is whole, record it."""
        module: Learner = pl_module
        if "images" in batch:  # (batch, channels, height, width): each counts as one
            self.tokens += batch["images"].shape[0] * trainer.world_size
        elif "whole" in batch:  # every process has a part of all
            self.tokens += batch["whole"]
        else:  # (batch, length), (batch, length, channels)
            given = batch["tokens"] if "tokens" in batch else batch["inputs"]
            self.tokens += given.shape[:2].numel() * trainer.world_size
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        last = step >= self.settings.steps
        sums = module.reduce(module.sums)
        self._sums = self._sums.to(sums) + sums
        module.sums = torch.zeros(3, dtype=torch.float64)
        row: dict[str, Any] = {}
        if last or step % self.settings.log_every == 0:
            row |= self._training_row(trainer, module, step)
        if last or step % self.settings.validate_every == 0:
            self.validation = self.describe(module.evaluate(self.loader(trainer)))
            row |= self.validation
            trainer.should_stop = self.enough(self.validation)
        if row and trainer.is_global_zero:
            row = {"step": step, "tokens": self.tokens, **row}
            self.folder.metrics.append(row, (*COLUMNS, *self.columns))
            for report in self.reports:
                report(step, row)
        if last or trainer.should_stop or step % self.settings.checkpoint_every == 0:
            self._save(trainer, step)

    def _training_row(self, trainer: Any, module: Learner, step: int) -> dict[str, float]:
        sums = Sums(*self._sums.tolist())
        self._sums = torch.zeros(3, dtype=torch.float64)
        norm = float(module.gradient_norm)
        if not (sums.mean_loss < float("inf") and norm < float("inf")):
            raise ValueError(
                f"training: at step {step} the loss is {sums.mean_loss} and the gradient's norm {norm}; "
                "use a smaller learning_rate or a longer warmup"
            )
        now = time.perf_counter()
        before, tokens = self._clock
        self._clock = (now, self.tokens)
        if trainer.is_global_zero:
            speed = {
                "step": step,
                "seconds": now - before,
                "tokens_per_second": (self.tokens - tokens) / (now - before),
            }
            self.folder.speed.append(speed, tuple(speed))
        return {
            "train_loss": sums.mean_loss,
            "learning_rate": self.settings.learning_rate * schedule(self.settings)(step - 1),
            "gradient_norm": norm,
        }

    def _save(self, trainer: Any, step: int) -> None:
        if self._saved != step:
            self._saved = step
            trainer.save_checkpoint(self.folder.checkpoint)


class ProgressBar(Callback):
    """Steps done and to go and the latest metrics; nothing where the error output is no terminal.

    Arguments:
        steps: of the whole run.
        measure: the number of the validation to show beside the loss.
    """

    def __init__(self, steps: int, measure: str) -> None:
        self.steps, self.measure = steps, measure
        self._bar: Any = None
        self._latest: dict[str, float] = {}

    def report(self, step: int, row: dict[str, float]) -> None:
        """Show these numbers from now on."""
        names = {"train_loss": "loss", self.measure: self.measure.removeprefix("validation_").replace("_", " ")}
        self._latest |= {shown: row[name] for name, shown in names.items() if name in row}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin where the run stands."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not (trainer.is_global_zero and console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=console,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self.steps, completed=trainer.global_step, latest="")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move on."""
        if self._bar is not None:
            latest = "  ".join(f"{name} {value:.3f}" for name, value in self._latest.items())
            self._bar.update(self._task, completed=trainer.global_step, latest=latest)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the bar as it stands."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
