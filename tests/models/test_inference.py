"""`compile_for_inference`: the same outputs, by weights laid out beforehand."""

import copy
import io

import pytest
import torch
from torch import nn

from statescan import compile_for_inference, create_model
from statescan.layers import grid

MODELS = {
    "vmamba_tiny": {},
    "mobile_mamba_tiny": {},
    "efficient_vmamba_tiny": {},
    "vssd_tiny": {},
    "efficient_vim_tiny": {},
    "vim_micro": {},
    "msvmamba_tiny": {},
    "spatial_mamba_tiny": {},
    "mambaout_tiny": {},
    "local_vmamba_tiny": {},
    "plainmamba_tiny": {},
    "hrvmamba_tiny": {},
    "mhs_vm_classifier_tiny": {},
    "res_vmamba_tiny": {},
    "rsmamba_tiny": {},
    "vim2_tiny": {},
    "lbvim_micro": {},
    "local_vim_tiny": {},
    "adventurer_micro": {},
    "vit_micro": {},
    "vmamba_tiny with a gate": {"gate": "silu", "activation": "gelu"},
    "vmamba_tiny by ssd": {"scan": "ssd", "state_dim": 16, "initialisation": "v2"},
}


def settled(model):
    """Norms with statistics of their own, branches that are not multiplied by zero."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.7, 1.4)
    for parameter in model.parameters():
        if parameter.ndim == 1 and not bool(parameter.detach().any()):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_model(name):
    model = settled(create_model(name.split()[0], **MODELS[name]))
    compiled = compile_for_inference(model)
    for batch in (1, 3):
        side = model.config.image_shape[0]
        images = torch.randn(batch, 3, side, side)
        with torch.inference_mode():
            want, found = model(images), compiled(images)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_the_model_itself_stays_and_its_layers_are_packed():
    model = settled(create_model("vmamba_tiny"))
    before = copy.deepcopy(model.state_dict())
    compiled = compile_for_inference(model)
    assert not any(isinstance(module, (grid.PackedLinear, grid.PackedConvolution)) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    packed = [m for m in compiled.modules() if isinstance(m, (grid.PackedLinear, grid.PackedConvolution))]
    assert packed
    assert not any(type(module) is nn.Linear for module in compiled.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert compile_for_inference(model, in_place=True) is model


def test_it_copies_saves_and_takes_new_weights():
    model = settled(create_model("vmamba_tiny"))
    compiled = compile_for_inference(model)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = compiled(images)
        assert torch.equal(copy.deepcopy(compiled)(images), want)
        file = io.BytesIO()
        torch.save(compiled.state_dict(), file)
        other = settled(create_model("vmamba_tiny"))
        for parameter in other.parameters():
            nn.init.normal_(parameter, std=0.05)
        compiled.load_state_dict(other.state_dict())
        torch.testing.assert_close(compiled(images), other(images), rtol=1e-4, atol=1e-5)
        compiled.to(torch.float64)
        torch.testing.assert_close(compiled(images.double()), other.double()(images.double()))


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid()])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 5),
        nn.Linear(33, 18, bias=False),
        grid.GridConvolution(6, 9, 1),
        grid.GridConvolution(9, 6, 3, stride=2, padding=1),
        grid.GridConvolution(6, 6, 5, padding=2, groups=6, bias=False),
        grid.GridConvolution(6, 8, 3, padding=(0, 2), dilation=2, groups=2),
        grid.GridConvolution(12, 7, 2, padding=1, bias=False),
    ],
    ids=str,
)
def test_a_layer_and_its_activation_in_one(layer, activation):
    torch.manual_seed(0)
    whole = nn.Sequential(layer, activation)
    packed = grid.pack(copy.deepcopy(whole))
    assert isinstance(packed[1], nn.Identity)
    for shape in ((1, 7, 9), (2, 7, 9), (1, 8, 5), (1, 6, 6), (3, 6, 5), (1, 5, 5)):  # more sizes than are kept
        x = torch.randn(*shape, layer.weight.shape[1] * getattr(layer, "groups", 1))
        with torch.no_grad():
            torch.testing.assert_close(packed(x), whole(x), rtol=1e-5, atol=1e-5)
            strided = torch.randn(*shape, x.shape[-1] + 3)[..., 1:-2]
            torch.testing.assert_close(packed(strided), whole(strided), rtol=1e-5, atol=1e-5)
    leaf = x.requires_grad_()  # a gradient goes through the plain layer
    (found,) = torch.autograd.grad(packed(leaf).square().sum(), leaf)
    (want,) = torch.autograd.grad(whole(leaf).square().sum(), leaf)
    torch.testing.assert_close(found, want)


def test_what_has_no_fused_form_keeps_its_activation():
    packed = grid.pack(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert isinstance(packed[1], nn.Tanh)
    mixer = grid.pack(grid.SS2D(16, activation="relu"))
    assert isinstance(mixer.activation, nn.Identity)
    assert isinstance(mixer.convolution.activation, nn.ReLU)
    stem = grid.pack(nn.Sequential(grid.GridConvolution(3, 8, 3), nn.ReLU()))  # faster as it is
    assert isinstance(stem[0], grid.GridConvolution)
    assert isinstance(stem[1], nn.ReLU)


def test_no_module_no_compilation():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        compile_for_inference("vmamba_tiny")
