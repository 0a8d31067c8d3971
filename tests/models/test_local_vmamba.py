"""LocalVMamba and LocalVim: the published sizes, walks by windows, the search."""

import pytest
import torch

import statescan
from statescan.inspect import image_cost
from statescan.layers import grid
from statescan.layers.grid import DIRECTIONS, legacy_return, local_route
from tests.models import _images

ROWS = (("h", "v_flip", "w2", "w7_flip"), ("h", "v"), ("w3", "h_flip", "w7"), ("v", "w2_flip", "h", "h_flip"))
SMALL = dict(dims=(8, 16, 16, 24), depths=(1, 1, 1, 1), num_classes=5, state_dim=2, directions=ROWS)
VIM = dict(dim=16, depth=4, patch=8, image_size=64, num_classes=5, state_dim=2, directions=ROWS)
TOKEN = dict(class_token="middle", rotary=False, rotary_residual=False)


@pytest.mark.parametrize(
    ("name", "parameters", "products", "scans"),
    [
        ("local_vim_t", 7_994_152, 1.26, 0.88),
        ("local_vim_t_class_token", 7_994_536, 1.27, 0.88),
        ("local_vim_s", 27_783_784, 4.55, 1.76),
        ("local_vmamba_t", 25_527_160, 3.70, 1.93),
        ("local_vmamba_s", 49_748_536, 7.71, 3.49),
    ],
)
def test_the_published_sizes(name, parameters, products, scans):
    cost = image_cost(name)
    assert cost.parameters == parameters
    assert cost.multiply_adds / 1e9 == pytest.approx(products, rel=0.02)
    assert cost.scan_operations / 1e9 == pytest.approx(scans, rel=0.02)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_walk_is_put_back(direction):
    route = local_route([direction])
    for height in range(1, 17):
        for width in range(1, 17):
            cells = torch.arange(height * width).view(1, height, width, 1)
            assert torch.equal(route.merge(route.walk(cells), height, width), cells)


def test_windows_pad_and_flips_come_after_the_padding():
    forwards, backwards = (local_route([name]).table(3, 3)[0].tolist() for name in ("w2", "w2_flip"))
    assert forwards == [0, 1, 3, 4, 2, -1, 5, -1, 6, 7, -1, -1, 8, -1, -1, -1]
    assert backwards == forwards[::-1]


@pytest.mark.parametrize("flip", [False, True])
def test_the_published_way_back_from_columns_scrambles_all_but_squares(flip):
    route = local_route(["v_flip" if flip else "v"])
    for height, width, right in ((5, 5, True), (5, 7, False)):
        sequence = torch.arange(height * width)
        # What the published code does: take the sequence for a grid of height x width, and turn it.
        published = (sequence.flip(0) if flip else sequence).view(height, width).t().reshape(-1)
        legacy = legacy_return(route).merge(sequence.view(1, -1, 1, 1), height, width).flatten()
        assert torch.equal(legacy, published)
        assert torch.equal(legacy, route.merge(sequence.view(1, -1, 1, 1), height, width).flatten()) == right


@pytest.mark.parametrize("size", [(4, 4), (4, 6)])
def test_both_ways_back_agree_on_squares(size):
    torch.manual_seed(0)
    layers = [grid.LocalScan(8, ROWS[0], legacy_unwalk=legacy, state_dim=2, dt_rank=1) for legacy in (False, True)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, *size, 8)
    outputs = [layer(x, local_route(ROWS[0])) for layer in layers]
    assert torch.allclose(*outputs, atol=1e-5) == (size[0] == size[1])


def test_the_search_learns_its_weights_and_keeps_the_largest():
    options = SMALL | {"directions": None}
    model = statescan.create_model("local_vmamba_search", **options).eval()
    model(_images.images(32)).square().mean().backward()
    scans = model.scans()
    assert all(scan.mix.choice.grad is not None and scan.mix.choice.grad.abs().sum() > 0 for scan in scans)
    with torch.no_grad():
        for scan in scans:
            scan.mix.choice.copy_(torch.tensor([3.0, 0, 0, 4, 0, 2, 0, 1]))
    assert model.found_directions() == (("h", "v_flip", "w2_flip", "w7_flip"),) * 4
    kept = model.without_others()
    assert kept.config.directions == model.found_directions()
    dropped = sum(4 * sum(p.numel() for p in scan.parameters(recurse=False)) // 8 + 8 for scan in scans)
    count = [sum(p.numel() for p in m.parameters()) for m in (model, kept)]
    assert count[0] - count[1] == dropped
    for old, new in zip(scans, kept.scans(), strict=True):
        assert torch.equal(new.selection_weight, old.selection_weight[[0, 3, 5, 7]])
        assert torch.equal(new.D.view(4, -1), old.D.view(8, -1)[[0, 3, 5, 7]])
    with pytest.raises(ValueError, match="this model searches none"):
        kept.found_directions()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("local_vmamba_tiny", SMALL),
        ("local_vmamba_tiny", SMALL | {"directions": None, "legacy_unwalk": True}),
        ("local_vim_tiny", VIM),
        ("local_vim_tiny", VIM | TOKEN),
        ("local_vim_tiny", VIM | {"directions": None}),
    ],
)
def test_forms(name, options):
    _images.check_forward(name, **options)
    _images.check_names(name, dict(state_dim=3), **options)


def test_maps_and_training():
    _images.check_maps("local_vmamba_tiny", **SMALL)
    _images.check_maps("local_vim_tiny", **VIM)
    _images.check_training("local_vmamba_tiny", **SMALL)
    _images.check_training("local_vim_tiny", size=64, **VIM)
    _images.check_training("local_vim_tiny", size=64, **(VIM | TOKEN))


def test_patches_at_the_border_are_padded():
    model = statescan.create_model("local_vim_tiny", **VIM).eval()
    images = _images.images(60, 61)
    padded = torch.nn.functional.pad(images, (0, 3, 0, 4))
    assert torch.equal(model(images), model(padded))


def test_bad_input():
    _images.check_bad_input("local_vmamba_tiny", 3, **SMALL)
    _images.check_bad_input("local_vim_tiny", None, **VIM)
    for name, options, message in (
        ("local_vmamba_tiny", SMALL | dict(directions=ROWS[:2]), "a row for each of the 4 layers, got 2"),
        ("local_vmamba_tiny", SMALL | dict(directions=(("d",),) * 4), "directions: unknown 'd'; known: h, h_flip"),
        ("local_vim_tiny", VIM | dict(class_token="head"), "class_token: 'middle' or None, got 'head'"),
        ("local_vim_tiny", VIM | dict(class_token="middle"), "class_token: not with rotary"),
        ("local_vim_tiny", VIM | dict(shuffle=True), "not for LocalVim"),
    ):
        with pytest.raises(ValueError, match=message):
            statescan.create_model(name, **options)
