"""HRVMamba: counts, names both ways, the deformable step, sizes, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from statescan import inspect
from statescan.layers.grid import DeformableAggregation, deformable_aggregation
from statescan.models.hrvmamba import FAMILY, HRVMamba, HRVMambaConfig

SMALL = dict(dim=8, bottleneck_dim=4, bottlenecks=1, modules=(1, 1, 1), depths=(1, 1, 1))


@pytest.mark.parametrize(
    ("name", "backbone", "classifier"),
    [
        ("hrvmamba_nano", 634_664, 12_231_568),
        ("hrvmamba_nano_pointwise", 901_832, 12_498_736),
        ("hrvmamba_tiny", 2_189_376, 13_895_080),
        ("hrvmamba_tiny_pointwise", 3_254_144, 14_959_848),
        ("hrvmamba_small", 8_178_672, 20_101_976),
        ("hrvmamba_small_pointwise", 12_429_936, 24_353_240),
        ("hrvmamba_base", 47_972_416, 60_548_520),
        ("hrvmamba_base_pointwise", 74_513_536, 87_089_640),
    ],
)
def test_published_counts(name, backbone, classifier):
    assert inspect.count_parameters(inspect.build_without_memory(name)) == classifier
    assert inspect.count_parameters(inspect.build_without_memory(name, features_only=True)) == backbone


def test_names_go_both_ways():
    for options in ({}, {"features_only": True, "feature_norm": True, "dim": 80}):
        model = inspect.build_without_memory("hrvmamba_nano", **(SMALL | options))
        tensors = model.state_dict()
        published = FAMILY.to_published(tensors, model.config)
        assert not [name for name in published if name.startswith(("stages", "stem", "bottlenecks"))]
        assert FAMILY.from_published(published, model.config).keys() == tensors.keys()
    assert "outnorm3.weight" in published and "stage4.0.branches.3.0.op.conv2d.offset_mask_dw.bias" in published


def test_scores_features_and_gradients():
    model = HRVMamba(HRVMambaConfig(**SMALL, num_classes=5))
    model(torch.randn(2, 3, 40, 72)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    backbone = HRVMamba(HRVMambaConfig(**SMALL, features_only=True)).eval()
    maps = backbone(torch.randn(1, 3, 40, 72))  # sides that 32 does not divide
    assert [tuple(grid.shape) for grid in maps] == [(1, 8, 10, 18), (1, 16, 5, 9), (1, 32, 3, 5), (1, 64, 2, 3)]
    assert [info.reduction for info in backbone.feature_info] == [4, 8, 16, 32]


def test_no_offsets_and_equal_weights_are_the_mean_of_nine():
    values = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    offsets = torch.zeros(2, 5, 6, 56, dtype=torch.float64)
    for group in range(2):
        offsets[..., 27 * group + 18 : 27 * group + 27] = 1 / 9
    mean = F.avg_pool2d(values.permute(0, 3, 1, 2), 3, stride=1, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(deformable_aggregation(values, offsets, groups=2), mean)


def test_a_whole_offset_moves_the_grid():
    values = torch.randn(1, 4, 5, 2, dtype=torch.float64)
    offsets = torch.zeros(1, 4, 5, 32, dtype=torch.float64)
    middle = 4
    offsets[..., 2 * middle] = 1.0  # one column to the right
    offsets[..., 18 + middle] = 1.0
    moved = torch.zeros_like(values)
    moved[:, :, :-1] = values[:, :, 1:]
    torch.testing.assert_close(deformable_aggregation(values, offsets, groups=1), moved)
    halved = deformable_aggregation(values, offsets, groups=1, offset_scale=0.5)  # halves the reach too; middle is 0
    torch.testing.assert_close(halved, (values + moved) / 2)


def test_gradients_of_values_offsets_and_weights():
    torch.manual_seed(0)
    values = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    offsets = torch.randn(1, 3, 4, 56, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, o: deformable_aggregation(v, o, groups=2), (values, offsets))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeformableAggregation(10, 3), "groups: a divisor of the 10 channels, got 3"),
        (
            lambda: deformable_aggregation(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 27), groups=1),
            r"offsets: \(1, 2, 2, 32\) for 1 groups, got \(1, 2, 2, 27\)",
        ),
        (lambda: HRVMambaConfig(dim=10), "dim: a multiple of 4"),
        (lambda: HRVMambaConfig(modules=(1, 2)), "modules, depths: three of each"),
        (lambda: HRVMamba(HRVMambaConfig(**SMALL))(torch.zeros(1, 3, 31, 64)), "at least 32 pixels"),
        (lambda: HRVMamba(HRVMambaConfig(**SMALL))(torch.zeros(1, 4, 64, 64)), "3 channels"),
        (lambda: HRVMamba(HRVMambaConfig(**SMALL, route="snaek")), "nearest: 'snake'"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_it_compiles_whole():
    torch.compiler.reset()
    model, x = HRVMamba(HRVMambaConfig(**SMALL, num_classes=5)).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))
