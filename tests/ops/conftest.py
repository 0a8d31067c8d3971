"""Memory that is not written must not pass for a result: in operator tests it is filled with NaN."""

import pytest
import torch
import torch.utils._device


def _poison(tensor):
    if tensor.device.type == "cpu" and (tensor.is_floating_point() or tensor.is_complex()):
        with torch.no_grad():
            tensor.fill_(float("nan"))
    return tensor


# `torch.device` as a context keeps a list of constructors from its first use: not one with a poisoned `empty`
torch.utils._device._device_constructors()


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        original = getattr(owner, name)

        def poisoned(*args, _original=original, **kwargs):
            return _poison(_original(*args, **kwargs))

        monkeypatch.setattr(owner, name, poisoned)
