"""Training on text and images in one sequence."""

import csv
import math

import numpy as np
import pytest
import torch

import statescan
from statescan import data, tasks
from statescan.cli import main
from statescan.tasks.multimodal import BEGIN, END, TEXT_VOCABULARY, MultimodalBatches, token_loss


@pytest.fixture
def material(tmp_path):
    """A text, and images that are stripes one way or the other, as their captions say."""
    (tmp_path / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 60)
    generator = np.random.default_rng(0)
    upright = generator.integers(0, 2, 80)
    images = np.stack([np.tile([[0.0, 1.0]], (4, 2)) if way else np.tile([[0.0], [1.0]], (2, 4)) for way in upright])
    captions = np.array(["upright" if way else "level" for way in upright])
    np.savez(tmp_path / "images.npz", images=images + 0.05 * generator.normal(size=images.shape), captions=captions)
    return tmp_path


def settings(folder, **changes):
    base = dict(
        text=(str(folder / "text.txt"),),
        images=str(folder / "images.npz"),
        out=folder / "run",
        set=("dim=24", "depth=2", "state_dim=4"),
        text_length=16,
        codebook=6,
        batch_size=8,
        steps=30,
        warmup=3,
        learning_rate=1e-2,
        progress=False,
    )
    return tasks.MultimodalTraining(**(base | changes))


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["validation_loss"]]


@pytest.mark.parametrize("model", ["mixture_of_mamba_tiny", "transfusion_mamba_tiny"])
def test_both_forms_learn_text_and_images(material, model):
    result = tasks.train_multimodal(settings(material, model=model))
    first, last = rows(material / "run")[0], rows(material / "run")[-1]
    for name in ("text_loss", "image_loss"):
        assert float(last[name]) < 0.9 * float(first[name])
        assert math.isclose(result.validation[name], float(last[name]), rel_tol=1e-3)
    kept = statescan.load(material / "run")
    assert kept.config.modalities == 2
    codec = data.PatchCodec.load(material / "run" / "images.npz")
    assert codec.count == 4 and codec.patch_dim == 4


def test_a_dense_model_has_fewer_parameters_and_learns_too(material):
    split = tasks.train_multimodal(settings(material, steps=2, warmup=1))
    dense = tasks.train_multimodal(
        settings(material, steps=2, warmup=1, out=material / "dense", set=(*settings(material).set, "split=()"))
    )
    assert dense.parameters < split.parameters


def test_a_killed_run_goes_on_as_if_nothing_had_been(material, monkeypatch):
    options = dict(model="transfusion_mamba_tiny", steps=8, checkpoint_every=4, validate_every=4, log_every=2)
    tasks.train_multimodal(settings(material, out=material / "whole", **options))
    take = MultimodalBatches._take
    calls = []

    def breaks(self, *arguments):
        calls.append(1)
        if len(calls) > 6 and not self._once:
            raise OSError("the power went")
        return take(self, *arguments)

    monkeypatch.setattr(MultimodalBatches, "_take", breaks)
    with pytest.raises(OSError, match="the power went"):
        tasks.train_multimodal(settings(material, **options))
    monkeypatch.setattr(MultimodalBatches, "_take", take)
    tasks.train_multimodal(settings(material, **options, resume=True))
    whole, again = (statescan.load(material / name).state_dict() for name in ("whole", "run"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def batches(material, *, discrete, **options):
    images = data.read_captioned_images(material / "images.npz")
    codec = data.PatchCodec.fit(images.images, patch=2, entries=6 if discrete else 0)
    text = np.frombuffer((material / "text.txt").read_bytes(), np.uint8)
    return MultimodalBatches(text, images, codec, text_length=16, batch_size=4, discrete=discrete, **options)


def test_sequences_are_text_caption_mark_image_mark(material):
    batch = next(iter(batches(material, discrete=True)))
    assert batch.tokens.shape == (4, 16 + 1 + 4 + 1)
    line = bytes(batch.tokens[0, :16].tolist())
    assert line.endswith((b"upright", b"level"))
    assert (batch.tokens[:, 16] == BEGIN).all() and (batch.tokens[:, -1] == END).all()
    assert ((batch.tokens >= TEXT_VOCABULARY) == batch.is_patch).all()
    assert (batch.targets[:, :-1] == batch.tokens[:, 1:]).all()
    assert (batch.targets[:, -1] == data.IGNORED).all()


def test_patches_are_not_asked_as_tokens(material):
    batch = next(iter(batches(material, discrete=False)))
    assert (batch.targets[:, 16:20] == data.IGNORED).all(), "the mark before the image and all patches but the last"
    assert (batch.targets[:, 20] == END).all()


def test_batches_depend_on_seed_and_number_alone(material):
    whole = [batch.tokens for batch, _ in zip(batches(material, discrete=True, seed=3), range(4), strict=False)]
    later = next(iter(batches(material, discrete=True, seed=3, first=2)))
    assert torch.equal(later.tokens, whole[2])
    shares = [next(iter(batches(material, discrete=True, seed=3, rank=rank, world=2))).tokens for rank in (0, 1)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), whole[0])


def test_validation_sees_every_image_once(material):
    once = list(batches(material, discrete=True, once=True))
    assert sum(len(batch.tokens) for batch in once) == 80


def test_losses_of_text_and_images_make_the_whole():
    model = statescan.create_model("mixture_of_mamba_tiny", dim=16, depth=1, vocabularies=(258, 6)).eval()
    tokens = torch.randint(0, 200, (2, 12))
    is_patch = torch.zeros(2, 12, dtype=torch.bool)
    is_patch[:, 7:11] = True
    tokens[is_patch] += 0
    tokens[:, 7:11] = 258 + torch.randint(0, 6, (2, 4))
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=data.IGNORED)
    whole, sums, _ = token_loss()(model, dict(tokens=tokens, targets=targets, is_patch=is_patch), None)
    logits, _ = model(tokens)
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(whole / 2, wanted)
    image = torch.nn.functional.cross_entropy(logits[:, 6:10].flatten(0, 1), tokens[:, 7:11].flatten())
    torch.testing.assert_close(sums[2] / sums[1], image.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="mamba_tiny"), "'mamba_tiny' is no model of text and images; try --model mixture_of_mamba_tiny"),
        (dict(images="faces"), "expected 'digits' or a .npz file, got 'faces'"),
        (dict(patch=3), "patches of 3 pixels do not fill images of 4 x 4"),
        (dict(codebook=500), "500 entries, but there are only"),
        (dict(text_length=5), "5 bytes have no room for a caption of 7"),
        (dict(image_weight=0), "image_weight: expected a positive number"),
        (dict(mixer="s4d"), "mixer: projections chosen by modality"),
        (dict(validation_fraction=1.5), "validation_fraction: expected a number between 0 and 1"),
        (dict(text=()), "no source given"),
    ],
)
def test_mistakes_are_explained(material, changes, message):
    with pytest.raises(ValueError, match=message):
        tasks.train_multimodal(settings(material, **changes))


def test_the_command_trains(material, capsys):
    flags = ["--text", str(material / "text.txt"), "--images", str(material / "images.npz"), "--out"]
    small = ["--set", "dim=16", "depth=1", "--text-length", "16", "--codebook", "4", "--steps", "2", "--no-progress"]
    assert main(["train", "multimodal", *flags, str(material / "cli"), *small, "--json"]) == 0
    assert '"text_loss"' in capsys.readouterr().out
