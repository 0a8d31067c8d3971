"""The benchmarks of local scans and of patch sizes: what they compare is what they say, and the law is fitted rightly."""

import pytest
import torch

from benchmarks import local_scan_training, patch_sizes


def test_backbones_of_the_local_scan_differ_in_their_scans_alone():
    models = {name: local_scan_training.create(name) for name in local_scan_training.MODELS}
    assert {model.config.depth for model in models.values()} == {4}
    assert {model.config.class_token for model in models.values()} == {None}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert sizes["one direction"] == sizes["local"] < sizes["both directions"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert {tuple(model.eval()(images).shape) for model in models.values()} == {(1, 8)}
        twin = local_scan_training.create("one direction").eval()
        twin.load_state_dict(models["local"].state_dict())
        assert not torch.allclose(twin(images), models["local"](images))


@pytest.mark.parametrize("name", list(patch_sizes.MODELS))
def test_patches_down_to_a_pixel(name):
    for patch in patch_sizes.MODELS[name][2]:
        model = patch_sizes.create(name, patch).eval()
        assert model.config.grid == (32 // patch, 32 // patch)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 8)


def test_the_law_of_a_power():
    tokens = (4, 16, 64, 256)
    slope, explained = patch_sizes.law([{"tokens": n, "loss": 3 * n**-0.25} for n in tokens])
    assert slope == pytest.approx(-0.25) and explained == pytest.approx(1)
    rows = [{"model": "ViT", "tokens": n, "loss": loss} for n, loss in zip(tokens, (4, 3, 3.5, 2), strict=True)]
    rows += [{"model": "Adventurer", "tokens": n, "loss": 1 / n} for n in tokens]
    by_name = {row["model"]: row for row in patch_sizes.laws(rows)}
    assert by_name["ViT"]["halvings that lower the loss"] == "2 of 3"
    assert by_name["Adventurer"]["slope"] == pytest.approx(-1)
