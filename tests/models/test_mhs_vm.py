"""MHS-VM: counts, names both ways, walks of its heads, sizes, what is refused."""

from __future__ import annotations

import pytest
import torch

from statescan import inspect, models, routes
from statescan.layers.grid import HEADS, GatedMultiHeadScan, MultiHeadScan
from statescan.models.mhs_vm import FAMILY


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds", "scans"),
    [("mhs_vm_3_heads", 17_386_153, 3.334e9, 1.482e9), ("mhs_vm_4_heads", 17_257_129, 3.315e9, 1.482e9)],
)
def test_published_costs(name, parameters, multiply_adds, scans):
    cost = inspect.image_cost(name)
    assert cost.parameters == parameters
    assert cost.multiply_adds == pytest.approx(multiply_adds, rel=1e-3)
    assert cost.scan_operations == pytest.approx(scans, rel=0.02)


def test_names_go_both_ways_with_shared_tensors_under_both():
    model = models.create_model("mhs_vm_tiny")
    published = FAMILY.to_published(model.state_dict(), model.config)
    prefix = "layers.0.blocks.0.self_attention.mhs"
    assert published[f"{prefix}.x_ssproj_W"] is published[f"{prefix}.x_ssproj.weight"]
    assert f"{prefix}.scanhead_S.scanning.seq2seq_engine.Ds" in published
    again = FAMILY.from_published(published, model.config)
    assert again.keys() == model.state_dict().keys()
    once = {name: tensor for name, tensor in published.items() if "seq2seq" not in name and "ssproj_W" not in name}
    assert FAMILY.from_published(once, model.config).keys() == again.keys()
    outer = {f"vmunet.{name}": tensor for name, tensor in once.items()}
    assert FAMILY.from_published(outer, model.config).keys() == again.keys()


def test_logits_features_and_gradients():
    model = models.create_model("mhs_vm_tiny", num_classes=3, heads=("snake", "cross"))
    images = torch.randn(1, 3, 32, 64)
    logits = model(images)
    assert logits.shape == (1, 3, 32, 64)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    grey = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(model(grey), model(grey.repeat(1, 3, 1, 1)))
    maps = models.create_model("mhs_vm_tiny", features_only=True, out_indices=(1, 3))
    assert [tuple(grid.shape) for grid in maps(images)] == [(1, 32, 4, 8), (1, 128, 1, 2)]


@pytest.mark.parametrize("routes", [("snake", "gilbert+gilbert_reversed"), ("cross",)])
def test_the_blocks_classify(routes):
    model = models.create_model("mhs_vm_classifier_tiny", routes=routes)
    assert model(torch.randn(2, 3, 32, 20)).shape == (2, 10)
    maps = models.create_model("mhs_vm_classifier_tiny", routes=routes, features_only=True)(torch.randn(1, 3, 32, 20))
    assert [tuple(grid.shape) for grid in maps] == [(1, 32, 8, 5), (1, 64, 4, 3)]


def test_compiles_in_one_graph():
    torch.compiler.reset()
    model = models.create_model("mhs_vm_classifier_tiny", depths=(1, 1), routes=("snake", "cross")).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in (8, 16):
        images = torch.randn(1, 3, size, 16)
        torch.testing.assert_close(compiled(images), model(images))


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = models.create_model("mhs_vm_tiny", drop_path_rate=0.0)
    images = torch.randn(1, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append(model.stem.projection.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_heads_are_the_published_walks():
    for name, route in HEADS.items():
        table = routes.get(route).table(5, 7)
        assert torch.equal(table[1::2], table[::2].flip(1)), name
    assert torch.equal(routes.get(HEADS["C"]).table(5, 7)[::2], routes.get("snake_pair").table(5, 7))


def test_a_single_head_without_projection_is_its_scan():
    scan = MultiHeadScan(8, ["cross"], state_dim=2, threshold=0.0, head_projection=False)
    x = torch.randn(1, 3, 4, 8)
    route = scan.routes[0]
    y = route.unwalk(scan.scans[0].scan(route.walk(scan.input_projection(x))), 3, 4)
    torch.testing.assert_close(scan(x), routes.route_attention(y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create_model("mhs_vm_tiny", num_heads=5), "num_heads: from 1 to 4, got 5"),
        (lambda: models.create_model("mhs_vm_tiny", dims=(8, 16, 32, 60)), "dims that double"),
        (lambda: models.create_model("mhs_vm_tiny", heads=("snaek",)), "unknown 'snaek'; nearest: 'snake'"),
        (lambda: models.create_model("mhs_vm_tiny")(torch.randn(1, 3, 32, 40)), "sides that 32 divides, got 32 x 40"),
        (lambda: models.create_model("mhs_vm_tiny")(torch.randn(1, 3, 16, 32)), "at least 32 pixels"),
        (lambda: models.create_model("mhs_vm_tiny")(torch.randn(1, 2, 32, 32)), "3 channels"),
        (lambda: GatedMultiHeadScan(10, ["cross"] * 3, head_projection=False), "3 do not divide 10 channels"),
        (lambda: MultiHeadScan(2, ["cross"] * 3), "at most one a channel of 2, got 3"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
