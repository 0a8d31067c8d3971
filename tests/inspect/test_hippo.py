"""What a memory is shown to remember is what it does remember, and the picture is one."""

import struct

import pytest
import torch

from statescan import inspect
from statescan.cli import main


@pytest.mark.parametrize(("measure", "tolerance", "window"), [("legs", 0.1, 9), ("legt", 0.02, 2), ("fout", 0.15, 1)])
def test_the_signal_is_read_back_within_the_window(measure, tolerance, window):
    found = inspect.recollect(measure, state_dim=64, length=1000)
    assert found.error < tolerance
    assert found.time[-1] == 0
    inside = -found.time <= window
    assert torch.isfinite(found.rebuilt[inside]).all()
    assert torch.isnan(found.rebuilt[~inside]).all()


def test_more_coefficients_remember_more():
    errors = [inspect.recollect("legs", state_dim=size, length=500).error for size in (4, 16, 64)]
    assert errors[0] > errors[1] > errors[2]


def test_the_command_draws(tmp_path, capsys):
    path = tmp_path / "picture.png"
    arguments = ["inspect", "hippo", "--measure", "legs", "--out", str(path), "--length", "200", "--state-dim", "16"]
    assert main(arguments) == 0
    assert "relative error" in capsys.readouterr().out
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 800 and height > 400


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measure", "lagt"], "reading back is known for legs, legt, fout, fourier, got 'lagt'"),
        (["--state-dim", "1"], "state_dim: at least 2, got 1"),
        (["--length", "0"], "length: at least 2, got 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flags, message):
    assert main(["inspect", "hippo", "--out", str(tmp_path / "p.png"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
