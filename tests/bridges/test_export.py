"""Image models as programs."""

import json
import subprocess
import sys

import pytest
import torch

import statescan
from statescan import ops
from statescan.bridges import _plain_operators as plain
from statescan.bridges.export import export_model
from statescan.cli import main

#: The smallest classifier of each family.
SMALLEST = (
    "vim_micro",
    "lbvim_micro",
    "local_vim_tiny",
    "plainmamba_tiny",
    "rsmamba_tiny",
    "adventurer_micro",
    "vit_micro",
    "vmamba_tiny",
    "local_vmamba_tiny",
    "efficient_vmamba_tiny",
    "msvmamba_tiny",
    "res_vmamba_tiny",
    "efficient_vim_tiny",
    "mobile_mamba_tiny",
    "spatial_mamba_test",
    "vssd_test",
    "vim2_nano",
    "mhs_vm_classifier_tiny",
    "mambaout_test",
)


def test_doubling_is_the_recurrence():
    torch.manual_seed(0)
    for length in (1, 2, 7, 16, 33):
        a, b = torch.rand(2, length, 3, dtype=torch.float64), torch.randn(2, length, 3, dtype=torch.float64)
        h, wanted = torch.zeros(2, 3, dtype=torch.float64), []
        for t in range(length):
            h = a[:, t] * h + b[:, t]
            wanted.append(h)
        torch.testing.assert_close(plain.doubling_scan(a, b), torch.stack(wanted, 1))


@pytest.mark.parametrize("groups", [1, 2])
def test_plain_forms_are_the_operators(groups):
    torch.manual_seed(0)
    x, delta, z = (torch.randn(2, 11, 4) for _ in range(3))
    A, D, bias = -torch.rand(4, 3), torch.randn(4), torch.randn(4)
    B, C = (torch.randn(2, 11, groups, 3) for _ in range(2))
    wanted = ops.selective_scan(x, delta, A, B, C, D, z, delta_bias=bias, delta_softplus=True)
    found = plain._selective_scan(x, delta, A, B, C, D, z, bias, None, None, None, True, False)[0]
    torch.testing.assert_close(found, wanted)

    order = torch.stack([torch.randperm(6), torch.tensor([2, -1, 0, 5, -1, 1])])
    x, delta = torch.randn(2, 6, 2), torch.randn(2, 6, 2, 2)
    B, C = (torch.randn(2, 6, 2, 3) for _ in range(2))
    wanted = ops.route_scan(x, delta, A, B, C, D, order=order, delta_bias=bias, delta_softplus=True)
    found = plain._route_scan(x, delta, A, B, C, D, bias, order, True, False)[0]
    torch.testing.assert_close(found, wanted)

    x, delta, A = torch.randn(2, 9, 4, 2), torch.rand(2, 9, 4), -torch.rand(4)
    B, C = (torch.randn(2, 9, groups, 3) for _ in range(2))
    found = plain._ssd(x, delta, A, B, C, D, None, None, None, 4)[0]
    torch.testing.assert_close(found, ops.ssd(x, delta, A, B, C, D))

    x, weight = torch.randn(2, 9, 4), torch.randn(4, 3)
    found = plain._causal_conv1d(x, weight, D, None, None, None, True)
    torch.testing.assert_close(found, ops.causal_conv1d(x, weight, D, activation="silu"))
    for before in (True, False):
        found = plain._gated_rms_norm(x, D, x + 1, 1e-5, 2, before)
        wanted = ops.gated_rms_norm(x, D, x + 1, group_size=2, norm_before_gate=before)
        torch.testing.assert_close(found, wanted)
    a, b = torch.rand(2, 9, 4), torch.randn(2, 9, 4)
    for reverse in (True, False):
        found = plain._linear_scan(a, b, None, None, None, reverse)[0]
        torch.testing.assert_close(found, ops.linear_scan(a, b, reverse=reverse))
    with pytest.raises(NotImplementedError, match="an operator with initial_state has no plain form"):
        plain._linear_scan(a, b, b[:, 0], None, None, False)


def test_plain_forms_forget_where_sequences_begin():
    torch.manual_seed(0)
    resets = torch.rand(2, 9) < 0.3
    a, b = torch.rand(2, 9, 4), torch.randn(2, 9, 4)
    for reverse in (True, False):
        found = plain._linear_scan(a, b, None, resets, None, reverse)[0]
        torch.testing.assert_close(found, ops.linear_scan(a, b, resets=resets, reverse=reverse))
    A, B, C = -torch.rand(4, 3), *(torch.randn(2, 9, 1, 3) for _ in range(2))
    found = plain._selective_scan(b, a, A, B, C, None, None, None, None, resets, None, False, False)[0]
    torch.testing.assert_close(found, ops.selective_scan(b, a, A, B, C, resets=resets))
    x = torch.randn(2, 9, 4, 2)
    found = plain._ssd(x, a, A[:, 0], B, C, None, None, resets, None, 4)[0]
    torch.testing.assert_close(found, ops.ssd(x, a, A[:, 0], B, C, resets=resets))


def small(**fields):
    torch.manual_seed(0)
    return statescan.create_model("vim_micro", num_classes=3, image_size=8, dim=16, depth=1, state_dim=4, **fields)


def test_onnx_gives_what_the_model_gives(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = small()
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "m.onnx"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] < 1e-5 < told["largest"] and told["kind"] == "onnx"
    images = torch.randn(3, 3, 8, 8)
    (scores,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), model.eval()(images), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "m.images.json").read_text())["size"] == [8, 8]
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "m.tflite")]) == 2
    assert "a file ending in .onnx or .pt2, got 'm.tflite'" in capsys.readouterr().err


def test_a_plain_program_runs_without_the_library(tmp_path):
    found = export_model(small(), tmp_path / "m.pt2", plain=True, batch=2)
    assert found.difference < 1e-5
    code = (
        "import sys, torch; f = torch.export.load(sys.argv[1]).module(); "
        "print(tuple(f(torch.zeros(2, 3, 8, 8)).shape), any(m.startswith('statescan') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, found.path], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(2, 3) False", done.stderr


def test_a_program_of_the_library_keeps_its_operators(tmp_path):
    found = export_model(small(), tmp_path / "m.pt2")
    program = torch.export.load(found.path)
    assert any("statescan.selective_scan" in str(node.target) for node in program.graph.nodes)
    assert program.module()(torch.zeros(5, 3, 8, 8)).shape == (5, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_becomes_a_program(name, tmp_path):
    torch.manual_seed(0)
    found = export_model(statescan.create_model(name, num_classes=3, image_size=64), tmp_path / "m.pt2", plain=True)
    assert found.difference < 1e-4 * max(1.0, found.largest)
