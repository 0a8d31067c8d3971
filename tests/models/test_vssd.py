"""VSSD: what no order of cells changes, and what its ablations are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import statescan
from statescan.inspect import image_cost
from statescan.layers.grid import GridSSD, fold_norms, mesa_loss


def without_convolution(**options: object) -> GridSSD:
    torch.manual_seed(0)
    mixer = GridSSD(8, heads=4, state_dim=5, **options)  # type: ignore[arg-type]
    mixer.convolution = nn.Identity()  # type: ignore[assignment]
    return mixer


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_permuting_cells_permutes_the_output(groups: int) -> None:
    mixer = without_convolution(groups=groups)
    x = torch.randn(2, 3, 5, 8)
    order = torch.randperm(15)
    moved = x.flatten(1, 2)[:, order].view_as(x)
    torch.testing.assert_close(mixer(moved).flatten(1, 2), mixer(x).flatten(1, 2)[:, order])


def test_causal_scan_sees_nothing_ahead_and_both_directions_do() -> None:
    for direction, ahead in (("causal", False), ("bidirectional", True), ("none", True)):
        mixer = without_convolution(groups=2, direction=direction)
        x = torch.randn(1, 3, 4, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(mixer(x)[0, 1, 0].sum(), x)
        reads = gradient[0].abs().sum(-1) > 0
        assert bool(reads[0, 0])
        assert bool(reads[2, 3]) == ahead


def test_groups_as_dense_sums() -> None:
    mixer = without_convolution(groups=2).double()
    x, dt = torch.randn(1, 6, 4, 4).double(), torch.randn(1, 6, 4).double()
    B, C = torch.randn(1, 6, 2, 5).double(), torch.randn(1, 6, 2, 5).double()
    y = mixer.summed(x, dt, B, C)
    weight = nn.functional.softplus(dt + mixer.delta_bias) * torch.exp(mixer.A_log)
    for head in range(4):
        scores = C[0, :, head % 2] @ B[0, :, head % 2].T * weight[0, :, head]
        torch.testing.assert_close(y[0, :, head], scores @ x[0, :, head] + mixer.D[head] * x[0, :, head])


def test_time_is_linear_in_cells_before_the_last_stage() -> None:
    costs = [image_cost("vssd_tiny", size=size, mixers=("non_causal",) * 4).multiply_adds for size in (128, 256)]
    assert costs[1] == pytest.approx(4 * costs[0], rel=1e-3)


def test_decay_spares_rates_and_direct_weights() -> None:
    model = statescan.create_model("vssd_test")
    decayed = {id(parameter) for parameter in model.parameter_groups(0.05)[0]["params"]}
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", ".D", "delta_bias")):
            assert id(parameter) not in decayed


def test_folded_norms_change_nothing_in_evaluation() -> None:
    torch.manual_seed(0)
    model = statescan.create_model("vssd_test")
    images = torch.randn(2, 3, 64, 64)
    model(images)  # statistics that are not those of the start
    model.eval()
    with torch.no_grad():
        before = model(images)
        after = fold_norms(model)(images)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_mesa_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    average = torch.tensor([[0.0, 0.0], [0.0, 3.0]], requires_grad=True)
    loss = mesa_loss(logits, average, weight=1.5)
    target = average.softmax(-1)
    torch.testing.assert_close(loss, -1.5 * (target * logits.log_softmax(-1)).sum(-1).mean())
    loss.backward()
    assert logits.grad is not None
    assert average.grad is None
    with pytest.raises(ValueError, match=r"logits, average_logits: \(batch, classes\) both"):
        mesa_loss(logits, average[:1])
