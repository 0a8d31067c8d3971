"""Batches whose sequences are divided among processes; what cannot be divided is refused by name."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from statescan.tasks import LanguageTraining
from statescan.tasks._fit import _as_part


@dataclass(frozen=True)
class Batch:
    tokens: Any = None
    targets: Any = None
    resets: Any = None


def test_parts_are_the_whole_together():
    tokens = torch.arange(22).view(2, 11)
    batch = Batch(tokens, tokens + 1, tokens % 5 == 0)
    parts = [_as_part(batch, rank=rank, size=3) for rank in range(3)]
    assert [part["tokens"].shape[1] for part in parts] == [4, 4, 3]
    for name in ("tokens", "targets", "resets"):
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), getattr(batch, name))
    assert {part["whole"] for part in parts} == {22} and all(part["fresh"] for part in parts)
    assert _as_part(Batch(tokens, tokens), rank=0, size=2)["resets"] is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(torch.zeros(2, 8), torch.zeros(2)), "sequence divides tokens with a target each"),
        (Batch(None, torch.zeros(2)), "use ddp or fsdp for what is learnt here"),
        (Batch(torch.zeros(2, 2), torch.zeros(2, 2)), "a sequence of 2 tokens cannot be divided among 3 processes"),
    ],
)
def test_what_cannot_be_divided(batch, message):
    with pytest.raises(ValueError, match=message):
        _as_part(batch, rank=0, size=3)


def test_compiled_models_are_not_divided():
    with pytest.raises(ValueError, match="compile: not with strategy='sequence'"):
        LanguageTraining(strategy="sequence", compile=True)
