"""The timm bridge. timm needs torchvision, which has no CPU build: where it does not import, what can be is checked."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from statescan.bridges import timm as bridge

HAVE_TIMM = importlib.util.find_spec("timm") is not None and importlib.util.find_spec("torchvision") is not None


def test_nothing_imports_timm_before_it_is_asked_for():
    code = "import sys, statescan.bridges.timm; sys.exit('timm' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_models_have_what_timms_tools_ask_for():
    model = bridge.build("vmamba_tiny", num_classes=4, in_chans=1, img_size=None, pretrained_cfg=None)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    assert model.num_classes == 4
    assert model.forward_head(torch.randn(1, 2, 2, model.num_features), pre_logits=True).shape[1] == model.num_features
    assert any("A_log" in name for name in model.no_weight_decay())
    model.set_grad_checkpointing(True)
    assert model.gradient_checkpointing


@pytest.mark.skipif(HAVE_TIMM, reason="timm is installed: see the tests that use it")
def test_without_timm_the_error_says_what_to_install():
    with pytest.raises(ImportError, match="pip install timm torchvision"):
        bridge.register()


@pytest.mark.skipif(not HAVE_TIMM, reason="timm and torchvision are not installed (torchvision has no CPU build)")
def test_timm_makes_our_models():
    import timm

    names = bridge.register()
    assert bridge.register() == names
    assert "statescan_vmamba_tiny" in timm.list_models("statescan_*")
    model = timm.create_model("statescan_vmamba_tiny", num_classes=7)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    maps = timm.create_model("statescan_vmamba_tiny", features_only=True, out_indices=(1, 3))
    grids = maps(torch.randn(1, 3, 64, 64))
    assert [grid.shape[1] for grid in grids] == maps.feature_info.channels()
    with pytest.raises(ValueError, match="no weights come with it"):
        timm.create_model("statescan_vmamba_tiny", pretrained=True)
