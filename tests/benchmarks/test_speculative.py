"""The benchmark of speculative decoding, at sizes that take seconds."""

import pytest
import torch

from benchmarks import _bible, speculative

SMALL = dict(dim=32, depth=1, state_dim=8, head_dim=16)


@pytest.mark.parametrize(
    "fields", [SMALL, dict(name="mamba_tiny", dim=32, depth=1, state_dim=4)], ids=["mamba2", "mamba"]
)
def test_costs_of_a_pass_are_of_the_same_outputs(fields):
    found = speculative.pass_costs(fields, seconds=0.01)
    assert all(value > 0 for value in found.values())
    assert found["copies"] == 6 * found["state"]  # a state for each leaf, where the tree has one


def test_every_draft_gives_the_same_text():
    target, draft = speculative.create(SMALL), speculative.create(SMALL, seed=1)
    torch.nn.init.normal_(target.head.weight)
    for temperature in (0.0, 1.0):
        found = {
            kind: speculative.decode(target, draft, kind, temperature=temperature, prompts=1, length=10)
            for kind in speculative.DRAFTS
        }
        assert all(result["texts"] == found["none"]["texts"] for result in found.values())
        assert found["none"]["passes"] == 9


def test_a_trained_model_is_kept(tmp_path):
    calls = []

    def loss(model, step):
        calls.append(step)
        return _bible.text_loss(model, step, batch=1, length=16)

    for _ in range(2):
        model = _bible.trained(tmp_path / "model", lambda: speculative.create(SMALL), loss, seconds=0.2)
    assert calls == list(range(len(calls)))  # trained once
    assert 0 < _bible.bits_per_byte(model, count=1, length=32) < 10
