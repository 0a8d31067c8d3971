"""Training as a Lightning module: the loss, the optimiser, the state carried from batch to batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from statescan.data import IGNORED, batch_seed
from statescan.layers import ResidualBlock, State
from statescan.layers.grid import GridBlock
from statescan.parallel import SequenceParallel, sequence_parallel
from statescan.tasks._averaging import WeightAverage
from statescan.tasks._settings import TrainingSettings, rates_of


@dataclass(frozen=True)
class Sums:
    """What metrics are made of, over any number of batches and processes.

    Fields:
        loss: of all targets together: their cross-entropy in nats, or their squared errors.
        count: targets.
        correct: targets that were found most probable, or the absolute errors of numbers.
    """

    loss: float
    count: float
    correct: float

    @property
    def mean_loss(self) -> float:
        """Loss a target; not a number where there was none."""
        return self.loss / self.count if self.count else math.nan

    @property
    def accuracy(self) -> float:
        """Right targets, or the absolute error, a target."""
        return self.correct / self.count if self.count else math.nan


def token_sums(logits: Tensor, targets: Tensor, *, count_correct: bool) -> tuple[Tensor, Tensor]:
    """The summed loss with its gradient, and the three numbers of `Sums` (in float64, where the device has it) without.

    Arguments:
        logits: (batch, length, vocabulary).
        targets: (batch, length), `IGNORED` where nothing is asked.
    """
    asked = targets != IGNORED
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    correct = ((logits.argmax(-1) == targets) & asked).sum() if count_correct else torch.zeros_like(loss)
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    return loss, torch.stack([loss.detach().to(wide), asked.sum().to(wide), correct.to(wide)])


def prefix_of(model: Any, prefix: Tensor | None) -> dict[str, Any]:
    """The keyword for the prefix of a batch, where the model is one that reads prompts in both directions."""
    return {"prefix": prefix} if prefix is not None and getattr(model, "reads_prompts_as_prefix", False) else {}


#: A model, a batch and the state before it -> the summed loss with its gradient, the numbers of `Sums`, the state after.
Measure = Callable[[Any, dict[str, Any], State | None], tuple[Tensor, Tensor, State | None]]


def next_token(*, count_correct: bool, carry_state: bool = False) -> Measure:
    """How well a language model predicts the ``targets`` of ``tokens``; ``resets`` mark where documents begin.

    A batch's ``prefix`` goes to models that read prompts in both directions, and to no others.

    Only with `carry_state` is the model's state wanted; otherwise layers to which it is extra work leave it out.
    """
    options = {} if carry_state else {"return_state": False}

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        prefix = prefix_of(model, batch.get("prefix"))
        logits, state = model(batch["tokens"], state, resets=batch["resets"], **prefix, **options)
        return *token_sums(logits, batch["targets"], count_correct=count_correct), state

    return measure


def schedule(settings: TrainingSettings) -> Callable[[int], float]:
    """The learning rate of a step as a fraction of the highest: linear warm-up, then half a cosine."""

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        progress = min(1.0, (step - settings.warmup) / max(1, settings.steps - settings.warmup))
        low = settings.final_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def with_rates(model: Any, groups: list[dict[str, Any]], rates: dict[str, float]) -> list[dict[str, Any]]:
    """The groups without empty ones, those parameters apart that have learning rates of their own.

    Arguments:
        model: whose parameters they are.
        groups: from its `parameter_groups`.
        rates: by a part of the parameter's name; the first that fits counts.

    Raises:
        ValueError: for a part that is in no name.
    """
    names = {parameter: f".{name}" for name, parameter in model.named_parameters()}
    for part in rates:
        if not any(part in name for name in names.values()):
            shown = ", ".join(sorted({name.rpartition(".")[2] for name in names.values()}))
            raise ValueError(f"learning_rates: no parameter's name holds {part!r}; their names end in {shown}")
    divided = []
    for group in groups:
        by_rate: dict[float | None, list[Tensor]] = {}
        for parameter in group["params"]:
            rate = next((rate for part, rate in rates.items() if part in names[parameter]), None)
            by_rate.setdefault(rate, []).append(parameter)
        for rate, parameters in by_rate.items():
            divided.append(group | {"params": parameters} | ({} if rate is None else {"lr": rate}))
    return divided


class Learner(lightning.LightningModule):
    """Trains a model on batches, dictionaries of tensors whose first axis is the batch.

    The loss of a batch is summed over its targets and divided by the number there can be, a constant. So a step's
    gradient is the same whether its sequences come in one batch, in several, or to several processes.

    Arguments:
        model: the model.
        settings: of the run.
        measure: the loss.
        targets: how many targets a sequence can have.
        carry_state: hand the state, cut from its gradient, from batch to batch (truncated back-propagation).
        groups: gives the optimiser's groups of the model's parameters; None: what the model says.
        average: the mean of the weights that is evaluated in their place, if there is one.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainingSettings,
        measure: Measure,
        *,
        targets: int,
        carry_state: bool = False,
        groups: Callable[[Any], list[dict[str, Any]]] | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.groups = groups
        self.average = average
        self.settings = settings
        self.measure = measure
        self.targets = targets
        self.carry_state = carry_state
        self.state: State | None = None
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.gradient_norm = torch.tensor(math.nan)
        self._sharded = False
        self._parts: SequenceParallel | None = None
        if settings.gradient_checkpointing:
            model.set_gradient_checkpointing(True)
        if settings.compile:
            model.compile()

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Divide sequences among the processes, where the strategy asks for it."""
        if self.settings.strategy == "sequence" and self._parts is None:
            self._parts = sequence_parallel(self.model)

    def teardown(self, stage: str) -> None:
        """Have the model read whole sequences again."""
        if self._parts is not None:
            self._parts.remove()
            self._parts = None

    def configure_model(self) -> None:
        """Shard every block, and the rest as one more, where the strategy asks for it (FSDP2)."""
        if self.settings.strategy != "fsdp" or self._sharded:
            return
        from torch.distributed.fsdp import fully_shard

        mesh: Any = self.device_mesh
        mesh = mesh["data_parallel"]
        for block in [module for module in self.model.modules() if isinstance(module, (ResidualBlock, GridBlock))]:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self._sharded = True

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        given = (
            self.model.parameter_groups(self.settings.weight_decay) if self.groups is None else self.groups(self.model)
        )
        groups = with_rates(self.model, given, rates_of(self.settings.learning_rates))
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=self.settings.betas)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(self.settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Shorten the gradient, and keep its norm for the metrics."""
        norm: Any = torch.nn.utils.clip_grad_norm_(self.parameters(), self.settings.gradient_clip)
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Make whatever is random a function of seed, batch and process, so that an interrupted run can go on."""
        torch.manual_seed(batch_seed(self.settings.seed, f"process {self.global_rank}", batch_idx))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        state = self.state if self.carry_state and not batch["fresh"] else None
        loss, sums, state = self.measure(self.model, batch, state)
        self.state = self._carried(state)
        self.sums = self.sums.to(sums) + sums
        # Copies average their gradients; what parts have is to be added up.
        times = 1 if self._parts is None else self._parts.size
        return times * loss / (self.targets * batch["targets"].shape[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of every process; all of them come here."""
        if self.state is not None:
            leaves: list[Any] = pytree.tree_leaves(self.state)
            if self.trainer.world_size > 1 and self._parts is None:
                gathered: list[Any] = [self.all_gather(leaf) for leaf in leaves]
                leaves = [leaf.flatten(0, 1) for leaf in gathered]
            checkpoint["carried_state"] = [leaf.cpu() for leaf in leaves]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's share of the state."""
        if "carried_state" not in checkpoint:
            return
        structure = pytree.tree_structure(self.model.initial_state(1))
        leaves = checkpoint["carried_state"]
        rows = leaves[0].shape[0] // self.trainer.world_size
        mine = slice(self.trainer.global_rank * rows, (self.trainer.global_rank + 1) * rows)
        if self._parts is not None:
            mine = slice(None)
        device = self.trainer.strategy.root_device
        self.state = pytree.tree_unflatten([leaf[mine].to(device) for leaf in leaves], structure)

    def _carried(self, state: State | None) -> State | None:
        """What the next batch begins with."""
        if not self.carry_state or state is None:
            return None
        return state.detach() if self._parts is None else self._parts.last_state(state)

    # -- for the callbacks --------------------------------------------------------------------------------------------

    def reduce(self, sums: Tensor) -> Tensor:
        """Sums over all processes."""
        if self.trainer.world_size == 1:
            return sums
        return self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")

    @torch.no_grad()
    def evaluate(self, loader: Any) -> Sums:
        """The model's sums over the batches of all processes."""
        training = self.model.training
        self.model.eval()
        total = torch.zeros(3, dtype=torch.float64)
        state: State | None = None
        with contextlib.nullcontext() if self.average is None else self.average.instead(self.model):
            for batch in loader:
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                with self.trainer.precision_plugin.forward_context():
                    before = state if self.carry_state and not batch["fresh"] else None
                    _, sums, state = self.measure(self.model, batch, before)
                    state = self._carried(state)
                total += sums.cpu()
        self.model.train(training)
        return Sums(*self.reduce(total).tolist())
