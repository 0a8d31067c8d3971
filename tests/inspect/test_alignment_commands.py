"""Features of files and models, and `statescan inspect alignment`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import statescan
from statescan import inspect
from statescan.checkpoints import ByteTokenizer
from statescan.cli import main


@pytest.fixture
def samples(tmp_path):
    """Noisy pictures of a bar in one of six places, four frames each, and captions that name the place."""
    generator = np.random.default_rng(0)
    for folder in ("images", "captions"):
        (tmp_path / folder).mkdir()
    for index in range(18):
        place = index % 6
        for frame in range(4):
            picture = generator.integers(0, 160, (32, 32, 3), dtype=np.uint8)
            picture[5 * place : 5 * place + 6] = np.minimum(picture[5 * place : 5 * place + 6] + 90, 255)
            folder = tmp_path / "clips" / f"s{index:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{frame}.png")
        Image.fromarray(picture).save(tmp_path / "images" / f"s{index:02d}.png")
        words = ["abcdef"[place] * 6, f"number {index}", f"row {'abcdef'[place]} seen"]
        (tmp_path / "captions" / f"s{index:02d}.txt").write_text("\n".join(words))
    return tmp_path


def test_features_of_files(tmp_path):
    layers = {f"layer{n}": torch.randn(5, 3) for n in (10, 2)}
    save_file(layers, tmp_path / "f.safetensors")
    found = inspect.read_features(tmp_path / "f.safetensors")
    assert torch.equal(found[0], layers["layer2"])
    np.savez(tmp_path / "f.npz", a=np.ones((5, 2, 3)))
    assert inspect.read_features(tmp_path / "f.npz").shape == (5, 2, 3)
    np.save(tmp_path / "f.npy", np.ones(5))
    with pytest.raises(ValueError, match=r"got one of shape \(5,\) in"):
        inspect.read_features(tmp_path / "f.npy")
    with pytest.raises(ValueError, match=r"ends in \.npy, \.npz, \.safetensors, got"):
        inspect.read_features(tmp_path / "f.txt")
    with pytest.raises(FileNotFoundError, match="no file"):
        inspect.read_features(tmp_path / "g.npy")


def test_features_of_models_are_means_over_tokens_of_every_block(samples):
    model = statescan.create_model("mamba_tiny", dim=16, depth=2).eval()
    states = []
    handle = model.stack.blocks[1].register_forward_hook(lambda _, __, out: states.append(out[0]))
    found = inspect.text_features(model, ["one", "longer text"], ByteTokenizer())
    handle.remove()
    assert found.shape == (2, 2, 16)
    torch.testing.assert_close(found[1, 1], states[1][0].mean(0))
    names, images = inspect.image_features(statescan.create_model("vmamba_tiny"), samples / "images", batch=5)
    assert names == [f"s{n:02d}" for n in range(18)]
    assert [layer.shape[1] for layer in images] == [24, 48, 96, 96, 144]
    assert all(len(layer) == 18 for layer in images)
    # Vim hands on two parts whose sum is the stream.
    vim = statescan.create_model("vim_tiny", dim=16, depth=2, image_size=32).eval()
    stream = inspect.layer_means(vim, torch.zeros(1, 3, 32, 32))[-1]
    tokens = []
    vim.norm.register_forward_hook(lambda _, given, __: tokens.append(given[0]))
    vim(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(stream[0], tokens[0][0].mean(0))


def test_frames_stand_for_a_video_evenly():
    assert inspect.spread_frames(9, 3) == [0, 4, 8]
    assert inspect.spread_frames(4, 1) == [0]
    with pytest.raises(ValueError, match="from 1 to the 4 there are, got 5"):
        inspect.spread_frames(4, 5)
    videos = [[torch.arange(8.0).view(4, 2)], [torch.ones(5, 2)]]
    assert inspect.mean_of_frames(videos, 2).tolist() == [[[3.0, 4.0]], [[1.0, 1.0]]]


def run(capsys, *arguments):
    status = main(["inspect", "alignment", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_compares_files_and_models(samples, capsys):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((18, 2, 6))
    np.save(samples / "x.npy", x)
    np.save(samples / "y.npy", 2 * x[:, 1])
    status, out, err = run(capsys, samples / "x.npy", samples / "y.npy", "--k", 3, "--quantile", 1, "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert found["score"] == 1
    assert found["layers"] == [1, 0]
    picture = samples / "layers.png"
    models = ("vmamba_tiny", "mamba_tiny", "--images", samples / "images", "--texts", samples / "captions", "--k", 3)
    status, out, err = run(capsys, *models, "--out", picture)
    assert status == 0
    assert "vmamba_tiny has random weights" in err
    assert "shuffled" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_the_growth_with_frames_and_captions(samples, capsys):
    words = ("mamba_tiny", "vmamba_tiny", "--images", samples / "clips", "--texts", samples / "captions", "--k", 3)
    picture = samples / "growth.png"
    status, out, _ = run(capsys, *words, "--frames", 1, 2, 4, "--captions", 1, 2, "--out", picture, "--json")
    assert status == 0
    assert np.array(json.loads(out)["scores"]).shape == (3, 2)
    assert picture.stat().st_size


def test_the_command_says_what_is_missing(samples, capsys):
    np.save(samples / "x.npy", np.ones((4, 3), dtype=np.float32))
    for arguments, message in (
        (("vmamba_tiny", "x"), "vmamba_tiny reads images; give their folder with --images"),
        ((samples / "x.npy", "mamba_tiny"), "mamba_tiny reads text; give it with --texts"),
        ((samples / "x.npy", "forecaster_tiny"), "reads neither images nor text; give its features as a file"),
        ((samples / "x.npy", samples / "x.npy"), "k: from 1 to the number of samples less one, 3, got 10"),
        ((samples / "x.npy", samples / "x.npy", "--frames", 1, 2), "one model of images and one of text"),
        (("vmamba_tiny", "mamba_tiny", "--images", samples / "none", "--texts", samples / "captions"), "no folder"),
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 2
        assert message in err
    (samples / "captions" / "s00.txt").rename(samples / "captions" / "other.txt")
    words = ("vmamba_tiny", "mamba_tiny", "--images", samples / "images", "--texts", samples / "captions")
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "the same samples by name" in err
