"""MambaOut: timm's names and forms."""

from __future__ import annotations

import pytest
import torch

import statescan
from statescan.models import family, load_published
from statescan.models.mambaout import to_timm
from tests.parity._fixture import fill, normal

#: What timm 1.0.31 gave for tensors that are filled by the rule of the parity fixtures on timm's names, ten classes.
TIMM_LOGITS = {
    "mambaout_test": (0.3941, -0.57836, -0.31088, 0.34583, -0.76338, -0.2363, 0.74974, 0.15735, 0.24235, 0.74168),
    "mambaout_femto": (0.2834, 0.54028, -0.7322, 1.7, -0.01302, -2.03421, 0.198, 0.58903, 0.79768, -0.38105),
}


@pytest.mark.parametrize("name", TIMM_LOGITS)
def test_timm_checkpoints_give_timm_scores(name: str) -> None:
    model = statescan.create_model(name, num_classes=10).eval()
    published = family("mambaout").to_published(model.state_dict(), model.config)
    theirs = {key: torch.from_numpy(fill(key, tensor.shape)) for key, tensor in to_timm(published).items()}
    assert {"stem.conv1.weight", "stages.1.downsample.conv.weight", "head.pre_logits.fc.weight"} <= theirs.keys()
    load_published(model, theirs)
    with torch.no_grad():
        logits = model(torch.from_numpy(normal("input71", (1, 3, 64, 64)).astype("float32")))
    torch.testing.assert_close(logits[0], torch.tensor(TIMM_LOGITS[name]), rtol=0, atol=2e-5)


def test_five_eighths_of_the_values_pass_without_convolution() -> None:
    mixer = statescan.create_model("mambaout_test", expansion=8 / 3, widths=(24, 48, 48, 48)).stages[0].blocks[0].mixer
    hidden, passed, convolved = mixer.parts
    assert (hidden, passed, convolved) == (64, 40, 24)


def test_pre_logits_are_what_the_last_layer_reads() -> None:
    model = statescan.create_model("mambaout_test").eval()
    features = model.forward_features(torch.randn(1, 3, 32, 32))
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (1, 256)
    torch.testing.assert_close(model.head.output(hidden), model.forward_head(features))
