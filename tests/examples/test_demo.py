"""The demo, a few steps of it: what it prints and leaves, and that it goes on where it stood."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import statescan

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HELD_OUT", 0.003)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
        module.console = module.Console(width=100)
        module.main()
        return capsys.readouterr().out

    return run


def test_it_compares_and_leaves_everything(demo, tmp_path):
    out = tmp_path / "demo"
    said = demo("--out", out, "--steps", 2, "--context", 512)
    summary = json.loads((out / "metrics.json").read_text())
    bits = summary["bits_per_byte"]
    assert set(bits) >= {"Mamba", "Transformer", "bz2", "xz"}
    assert all(f"{value:.3f}" in said for value in bits.values())
    one, other = (model["parameters"] for model in summary["models"].values())
    assert abs(one - other) < 0.01 * one
    mamba, transformer = (model["generation"] for model in summary["models"].values())
    assert [cost["context"] for cost in mamba] == [256, 512]
    assert mamba[0]["state_bytes"] == mamba[1]["state_bytes"]
    assert transformer[0]["state_bytes"] < transformer[1]["state_bytes"]
    assert (out / "picture.png").stat().st_size > 10_000
    for place in (out / "mamba", out / "metrics.json", out / "picture.png"):
        assert str(place) in said
    assert "What to try next" in said
    statescan.load(out / "mamba")

    written = (out / "mamba" / "checkpoint.ckpt").stat().st_mtime_ns
    demo("--out", out, "--steps", 2, "--context", 512)
    assert (out / "mamba" / "checkpoint.ckpt").stat().st_mtime_ns == written, "a finished run is not repeated"
    demo("--out", out, "--steps", 3, "--context", 512)
    assert json.loads((out / "metrics.json").read_text())["steps"] == 3
