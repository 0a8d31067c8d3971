"""What training does not keep: the gradients are those of keeping everything."""

import weakref

import pytest
import torch
from torch import nn

import statescan
from statescan.layers import _recompute


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return statescan.create_model(name, dim=32, depth=2, vocab_size=32)


def gradients(model: nn.Module, **options) -> list[torch.Tensor]:
    tokens = torch.randint(32, (2, 70), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    model(tokens, **options)[0].float().square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def kept(model: nn.Module) -> int:
    tokens, found = torch.randint(32, (2, 70)), []
    with _recompute.observed(found.append):
        model(tokens)
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in found}.values())


@pytest.fixture
def keep_all(monkeypatch):
    return lambda: monkeypatch.setattr(_recompute, "_under_other_hooks", lambda: True)


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_to_the_bit(name, autocast, keep_all):
    model = build(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fewer = gradients(model)
        keep_all()
        all_kept = gradients(model)
    assert len(fewer) == len(all_kept)
    assert all(torch.equal(a, b) for a, b in zip(fewer, all_kept, strict=True))


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny"])
def test_backward_needs_no_autocast(name):
    """What is computed again is computed under the precision of the forward pass."""
    model = build(name)
    tokens = torch.randint(32, (1, 40))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens)[0].float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny"])
def test_a_quarter_less_is_kept(name, keep_all):
    model = build(name)
    fewer = kept(model)
    keep_all()
    assert fewer < 0.76 * kept(model)


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny"])
def test_it_stands_back_for_gradient_checkpointing(name):
    model = build(name)
    plain = gradients(model)
    model.stack.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model), strict=True))


def test_it_stands_back_where_hooks_are_forbidden():
    model = build("mamba_tiny")
    tokens = torch.randint(32, (1, 20))
    plain = gradients(model)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        assert torch.isfinite(model(tokens)[0]).all()
    assert len(plain) == len(list(model.parameters()))


def test_resets_and_states_enter_again(keep_all):
    model = build("mamba_tiny")
    tokens = torch.randint(32, (1, 30), generator=torch.Generator().manual_seed(2))
    resets = torch.zeros(1, 30, dtype=torch.bool)
    resets[0, 11] = True
    with torch.no_grad():
        _, state = model(tokens)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        model(tokens, state, resets=resets)[0].square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    fewer = run()
    keep_all()
    assert all(torch.equal(a, b) for a, b in zip(fewer, run(), strict=True))


def test_outside_nothing_is_hooked():
    x = torch.randn(3, requires_grad=True)
    y = x * 2
    with _recompute.recomputed(y, lambda: x.detach() * 2):
        z = (y * y).sum()
    assert not _recompute._LOCAL.entries
    z.backward()
    assert torch.equal(x.grad, 8 * x.detach())


def test_what_was_overwritten_is_kept():
    x = torch.randn(3, requires_grad=True)
    y = x * 2
    with _recompute.recomputed(y, lambda: x.detach() * 2):
        y.add_(1)
        z = (y * y).sum()
    z.backward()
    assert torch.allclose(x.grad, 4 * (2 * x.detach() + 1))


def test_a_residual_stream_wider_than_the_weights_is_not_kept():
    model = build("mamba_tiny").bfloat16()
    streams = []
    for block in model.stack.blocks:
        block.register_forward_pre_hook(lambda block, args: streams.append(weakref.ref(args[0])))
    logits, _ = model(torch.randint(32, (1, 20)))
    assert logits.requires_grad
    assert streams[1]() is None
