"""An exponential mean of the weights while they are trained (Polyak averaging, EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor


class WeightAverage(Callback):
    """Keeps the mean of the weights, and of floating-point buffers such as the statistics of batch norms.

    After step n the mean moves by 1 - min(decay, (1 + n) / (10 + n)) towards the weights, so that a short run is not left
    with its beginnings. It is part of the checkpoint; a resumed run goes on with it. Under FSDP each process keeps the mean
    of its shards, and a checkpoint holds them whole.

    Arguments:
        decay: of the mean, below 1; the nearer to 1, the longer it remembers.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema: above 0 and below 1, got {decay}")
        self.decay = decay
        self.mean: dict[str, Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin with the weights as they are, or with the mean of the checkpoint."""
        loaded, self.mean = self.mean, {name: tensor.detach().clone() for name, tensor in _tensors(pl_module.model)}
        for name, tensor in loaded.items():
            _copy(self.mean[name], tensor)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a whole step, move towards the weights."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        part = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in _tensors(pl_module.model):
            self.mean[name].lerp_(tensor.detach().to(self.mean[name].dtype), part)

    def state_dict(self) -> dict[str, Any]:
        """The whole mean; every process comes here."""
        return {name: _whole(tensor).cpu().clone() for name, tensor in self.mean.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        self.mean = dict(state_dict)

    @contextlib.contextmanager
    @torch.no_grad()
    def instead(self, model: Any) -> Iterator[None]:
        """The model with the mean as its weights; they come back afterwards."""
        kept = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
        self.leave(model)
        try:
            yield
        finally:
            _reshard(model)
            for name, tensor in _tensors(model):
                tensor.detach().copy_(kept[name])

    @torch.no_grad()
    def leave(self, model: Any) -> None:
        """Make the mean the model's weights."""
        _reshard(model)
        for name, tensor in _tensors(model):
            if name in self.mean:
                _copy(tensor, self.mean[name])


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    """Parameters and floating-point buffers by name, each once."""
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    return [*model.named_parameters(), *buffers]


def _reshard(model: Any) -> None:
    """Under FSDP, what an evaluation left whole is divided again; the weights are then the shards that training has."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _copy(target: Any, source: Tensor) -> None:
    """Fill a tensor, or the shards of one, from a whole one or from equal shards."""
    if hasattr(target, "full_tensor") and not hasattr(source, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.detach().copy_(source)
