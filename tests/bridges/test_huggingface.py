"""Image models behind transformers' Auto classes: what is saved there is what is loaded, pictures and all."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from statescan import models
from statescan.bridges import huggingface

SMALL = ["vmamba_tiny", "vim_micro", "mambaout_test", "vssd_test"]


@pytest.fixture(autouse=True)
def registered():
    huggingface.register()
    huggingface.register()  # a second call does nothing


def small(name, **options):
    torch.manual_seed(0)
    return models.create_model(name, num_classes=3, **options).eval()


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_folder_loads_through_the_auto_classes(name, tmp_path):
    model = small(name)
    huggingface.save(model, tmp_path / "model", labels=["cat", "dog", "bird"])
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    images = torch.randn(2, 3, *model.config.image_shape)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images))
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert {key: value.shape for key, value in loaded.model.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_the_processor_makes_the_models_input(tmp_path):
    model = small("vmamba_tiny")
    huggingface.save(model, tmp_path, size=(64, 48))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.full((20, 30, 3), 255, dtype=np.uint8))
    images = processor(picture, return_tensors="pt")["pixel_values"]
    assert images.shape == (1, 3, 64, 48)
    torch.testing.assert_close(images[0, 0, 0, 0], torch.tensor((1 - 0.485) / 0.229))
    assert model(images).shape == (1, 3)


def test_labels_give_a_loss_and_gradients():
    wrapped = huggingface.wrap(small("vmamba_tiny")).train()
    wrapped.gradient_checkpointing_enable()
    found = wrapped(pixel_values=torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2]))
    found.loss.backward()
    assert found.logits.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in wrapped.model.head.parameters())


def test_other_channels_are_prepared_for(tmp_path):
    huggingface.save(small("vmamba_tiny", in_channels=1), tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_mean"] == [0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: huggingface.save(small("vmamba_tiny"), path, labels=["cat"]), "one for each of 3 classes, got 1"),
        (
            lambda path: huggingface.save(small("vmamba_tiny", features_only=True), path),
            "an image classifier, got one without a head",
        ),
        (lambda path: huggingface.save(small("vmamba_tiny"), path, mean=[0.5]), "one for each of 3 channels"),
        (lambda path: huggingface.save(small("vmamba_tiny"), __file__), "is a file; give a folder"),
    ],
)
def test_bad_input(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "model")
