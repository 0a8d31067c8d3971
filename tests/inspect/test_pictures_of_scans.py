"""Implicit attention, receptive fields and the pictures of image models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import statescan
from statescan import inspect
from statescan.cli import main

SMALL = {
    "vmamba_tiny": dict(dims=(8, 16, 16, 16), image_size=32),
    "vim_tiny": dict(dim=16, depth=2, patch=8, image_size=32),
    "local_vmamba_tiny": dict(dims=(8, 16, 16, 16), image_size=32),
    "plainmamba_tiny": dict(dim=16, depth=2, image_size=32),
    "efficient_vmamba_tiny": dict(image_size=32),
    "mhs_vm_classifier_tiny": dict(),
    "local_vim_tiny": dict(image_size=32),
}


def build(name, **changes):
    torch.manual_seed(0)
    return statescan.create_model(name, **(SMALL.get(name, {}) | changes)).eval()


def picture(model, seed=0):
    return torch.randn(1, 3, *model.config.image_shape, generator=torch.Generator().manual_seed(seed))


def matrices(site, walk):
    """The attention matrices by definition: (length, length, channels)."""
    length, channels = site.x.shape[0], site.x.shape[2]
    delta, B, C = site.delta[:, walk], site.B[:, walk], site.C[:, walk]
    repeats = channels // B.shape[1]
    B, C = (rows.repeat_interleave(repeats, 1) for rows in (B, C))
    alpha = torch.zeros(length, length, channels)
    for i in range(length):
        for j in range(i + 1):
            decay = torch.exp(delta[j + 1 : i + 1].sum(0)[:, None] * site.A[walk])
            alpha[i, j] = (C[i] * decay * delta[j][:, None] * B[j]).sum(-1)
    return alpha


@pytest.mark.parametrize("name", ["vim_tiny", "vmamba_tiny", "plainmamba_tiny"])
def test_attention_is_that_of_the_definition(name):
    model = build(name)
    reading = inspect.scan_sites(model, picture(model), decision="best")
    site = next(site for site in reading.sites if site.cells <= 16)
    for walk in range(len(site.order)):
        alpha = matrices(site, walk)
        torch.testing.assert_close(
            torch.einsum("ije,je->ie", alpha, site.x[:, walk]), site.y[:, walk], atol=1e-6, rtol=1e-3
        )
        cell = int(site.order[walk, -2])
        expected = torch.zeros(max(site.cells, int(site.order.max()) + 1))
        expected[site.order[walk]] = alpha[-2].abs().mean(-1)
        torch.testing.assert_close(site.attention(cell)[walk], expected, atol=1e-7, rtol=1e-3)
        spoke = torch.einsum("ie,ije,je->j", site.gradient[:, walk], alpha, site.x[:, walk])
        torch.testing.assert_close(site.relevance()[walk][site.order[walk]], spoke, atol=1e-8, rtol=1e-2)


@pytest.mark.parametrize("name", SMALL)
def test_what_cells_add_makes_up_what_the_scan_gave(name):
    model = build(name)
    reading = inspect.scan_sites(model, picture(model), decision=1)
    assert reading.chosen == 1
    for site in reading.sites:
        torch.testing.assert_close(site.relevance().sum(), (site.gradient * site.y).sum(), atol=1e-7, rtol=1e-2)
        assert (site.delta >= 0).all()
        # A cell reads nothing that comes after it.
        walk = len(site.order) - 1
        order = site.order[walk]
        middle = int(order[order >= 0][len(order[order >= 0]) // 2])
        read = site.attention(middle)[walk]
        later = order[int((order == middle).nonzero()[0]) + 1 :]
        assert not read[later[later >= 0]].any()


def test_the_gradient_is_that_of_the_score():
    """A score moves by the gradient times a small change of the scan's output."""
    model = build("vmamba_tiny")
    reading = inspect.scan_sites(model, picture(model), decision=2)
    (scan,) = [m for n, m in model.named_modules() if n == reading.sites[-1].name]
    added = {}

    def move(_, __, out):
        added["y"] = 1e-2 * torch.ones_like(out)
        return out + added["y"]

    with torch.no_grad():
        before = model(picture(model))[0, 2]
        scan.register_forward_hook(move)
        after = model(picture(model))[0, 2]
    site = reading.sites[-1]
    # Each walk's outputs are summed at their cell; one walk's gradient is that of the sum.
    expected = 1e-2 * site.gradient[:, 0].sum()
    assert float(after - before) == pytest.approx(float(expected), rel=0.3, abs=1e-6)


def test_class_tokens_have_a_place_of_their_own():
    model = build("vim_tiny")
    forwards, backwards = inspect.scan_sites(model, picture(model)).sites[:2]
    assert forwards.order.tolist() == [[*range(8), 16, *range(8, 16)]]
    assert backwards.order.tolist() == [forwards.order[0].tolist()[::-1]]
    assert forwards.gradient is None
    with pytest.raises(ValueError, match="run with a class first"):
        forwards.relevance()


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("vim_tiny", lambda m: inspect.scan_sites(m, torch.zeros(2, 3, 32, 32)), r"one image, .* got \(2, 3, 32, 32\)"),
        (
            "vim_tiny",
            lambda m: inspect.scan_sites(m, picture(m), decision=1000),
            "a class from 0 to 999, or best, got 1000",
        ),
        (
            "deit_tiny",
            lambda m: inspect.scan_sites(m, picture(m)),
            "vit has no selective scan over cells .* scans: none",
        ),
        ("mamba_tiny", lambda m: inspect.scan_sites(m, torch.zeros(1, 3, 8, 8)), "an image model, got Mamba"),
        ("mamba_tiny", lambda m: inspect.receptive_field(m, torch.zeros(1, 3, 8, 8)), "an image model, got Mamba"),
        ("lbvim_tiny", lambda m: inspect.scan_sites(m, picture(m)), "changes the order of its tokens between blocks"),
    ],
)
def test_what_cannot_be_looked_into_is_told(name, call, message):
    changes = dict(depth=2, dim=12, image_size=32) if name in ("deit_tiny", "lbvim_tiny") else {}
    with pytest.raises(ValueError, match=message):
        call(build(name, **changes))


def test_a_receptive_field_is_where_the_middle_looks():
    model = build("mambaout_tiny", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), image_size=64)
    images = torch.randn(2, 3, 64, 64)
    found = inspect.receptive_field(model, images)
    assert found.field.shape == (64, 64)
    assert found.field.max() == 1
    assert found.grid == (2, 2)
    assert found.images == 2
    assert found.side(0.5) < found.side(0.95) <= 64
    spread = inspect.ReceptiveField(np.ones((9, 9)), 1, (1, 1))
    assert spread.side(1.0) == 9
    assert spread.side(0.1) == 3
    point = np.zeros((9, 9))
    point[4, 4] = 1
    assert inspect.ReceptiveField(point, 1, (1, 1)).side(0.99) == 1


def test_rectangular_images_have_a_middle_too():
    model = build("vim_tiny", image_size=(16, 32))
    assert inspect.last_grid(model, torch.zeros(1, 3, 16, 32)).shape == (1, 2, 4, 16)


def test_pictures_are_read_and_cut_to_size(tmp_path):
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:, 10:30] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert inspect.read_picture(tmp_path / "wide.png", (10, 10)).mean() > 0.9
    assert inspect.read_picture(tmp_path / "wide.png", (10, 10), channels=1).shape == (10, 10, 1)
    white = inspect.as_input(np.ones((4, 4, 3), dtype=np.float32))
    assert white.shape == (1, 3, 4, 4)
    assert white[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - m) / d for m, d in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    )
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        inspect.read_picture(tmp_path / "text.png", (4, 4))
    with pytest.raises(ValueError, match="the model reads 5"):
        inspect.read_picture(tmp_path / "wide.png", (4, 4), channels=5)
    with pytest.raises(FileNotFoundError, match="no image files"):
        inspect.picture_files(_empty(tmp_path))


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (("attention", "vmamba_tiny", "--size", "32", "--decision", "3"), "class 3"),
        (("activation", "vmamba_tiny", "--size", "32", "--layer", "2", "--cell", "1,2"), "4 x 4 cells"),
        (("time-steps", "vmamba_tiny", "--size", "32"), "5 layers, step sizes from"),
    ],
)
def test_the_commands_draw(photograph, capsys, words, printed):
    out = photograph.with_name("out.png")
    assert main(["inspect", *words, "--image", str(photograph), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert printed in said.out
    assert "random weights" in said.err
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_receptive_fields_of_checkpoints(photograph, capsys):
    build("vmamba_tiny").save(photograph.parent / "model")
    out = photograph.with_name("field.png")
    words = ["inspect", "receptive-field", str(photograph.parent / "model"), "--images", str(photograph.parent)]
    assert main([*words, "--count", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "half of the gradient within" in said.out
    assert said.err == ""
    assert out.stat().st_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attention", "vmamba_tiny", "--decision", "cat"), "decision: the number of a class, or best, got 'cat'"),
        (("attention", "mamba_tiny"), "'mamba_tiny' reads no images"),
        (("attention", "vmamba_tiny", "--size", "0"), "size: at least 1, got 0"),
        (("activation", "vmamba_tiny", "--cell", "3"), "cell: row,column such as 5,9, got '3'"),
        (("activation", "vmamba_tiny", "--size", "32", "--layer", "9"), "layer: from 1 to 5, got 9"),
        (("activation", "vmamba_tiny", "--size", "32", "--cell", "8,0"), "within 8 x 8, from 0, got 8,0"),
        (("receptive-field", "vmamba_tiny", "--count", "0"), "count: at least 1, got 0"),
        (("time-steps", "vmamba_tiny", "--image", "none.png"), "no file 'none.png'"),
    ],
)
def test_the_commands_say_what_does_not_fit(photograph, capsys, words, message):
    image = ["--image", str(photograph)] if "--image" not in words and words[0] != "receptive-field" else []
    assert main(["inspect", *words, *image, "--out", str(photograph.with_name("out.png"))]) == 2
    assert message in capsys.readouterr().err
