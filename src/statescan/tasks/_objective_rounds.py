"""Rounds of a training on several objectives: measure each, and choose the mixture of the next round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor

from statescan.data import PackedObjectives
from statescan.tasks._module import prefix_of, token_sums
from statescan.tasks._objective_sampler import ObjectiveSampler
from statescan.tasks._run_folder import MetricsFile

#: Batches that may have been made before the choice is known; they keep the old probabilities, resumed or not.
_AHEAD = 2


class Rounds(Callback):
    """Tells the sampler the losses after each round, keeps its choices, and goes on with them.

    Arguments:
        sampler: chooses.
        measured: one batch of validation an objective.
        every: steps of a round.
        steps: of the training.
        accumulate: batches a step.
        table: where losses and probabilities are written.
        names: of the objectives.
    """

    def __init__(
        self,
        sampler: ObjectiveSampler,
        measured: Sequence[PackedObjectives],
        *,
        every: int,
        steps: int,
        accumulate: int,
        table: MetricsFile,
        names: Sequence[str],
    ) -> None:
        self.sampler, self.measured, self.every, self.steps = sampler, measured, every, steps
        self.accumulate, self.table, self.names = accumulate, table, tuple(names)
        #: From which batch on which probabilities are in force.
        self.plan: list[tuple[int, Tensor]] = [(0, sampler.probabilities)]
        self._step = 0

    def probabilities(self, batch: int) -> Tensor:
        """Those that batch number `batch` is drawn with."""
        return next(chances for first, chances in reversed(self.plan) if first <= batch)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's, and the plan."""
        return {"sampler": self.sampler.state_dict(), "plan": [list(entry) for entry in self.plan]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        self.sampler.load_state_dict(state_dict["sampler"])
        self.plan = [(first, chances) for first, chances in state_dict["plan"]]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the first round, unless a checkpoint is gone on with."""
        self._step = trainer.global_step
        self.table.keep_until(trainer.global_step)
        if self.sampler.losses is None:
            self._next(pl_module, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Once a round is whole, begin the next."""
        step = trainer.global_step
        if step != self._step and step % self.every == 0 and step < self.steps:
            self._next(pl_module, step)
        self._step = step

    def _next(self, module: Any, step: int) -> None:
        losses = self._losses(module)
        chances = self.sampler.update(losses, step=step)
        self.plan = [*self.plan[-1:], (step * self.accumulate + _AHEAD, chances)]
        row: dict[str, float] = {"step": step}
        row |= {f"{name} loss": loss for name, loss in zip(self.names, losses, strict=True)}
        row |= {f"{name} probability": float(chance) for name, chance in zip(self.names, chances, strict=True)}
        self.table.append(row, tuple(row))

    @torch.no_grad()
    def _losses(self, module: Any) -> list[float]:
        model, losses = module.model, []
        training = model.training
        model.eval()
        for batch in self.measured:
            resets, prefix = batch.resets.to(module.device), prefix_of(model, batch.prefix.to(module.device))
            logits, _ = model(batch.tokens.to(module.device), resets=resets, return_state=False, **prefix)
            _, sums = token_sums(logits, batch.targets.to(module.device), count_correct=False)
            losses.append(float(sums[0] / sums[1]))
        model.train(training)
        return losses
