"""Every fixture of the systems that work, on the references and on the compiled CPU kernels."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import statescan
from statescan.kernels import cpu
from tests.parity import __main__ as command
from tests.parity._fixture import Fixture, find
from tests.parity._run import adapter_for, run

FOLDER = Path(os.environ.get("STATESCAN_PARITY", Path(__file__).parents[3] / "shared" / "parity"))
SLUGS = {system.slug for system in statescan.systems()}


def fixtures() -> list[Path]:
    """Those of the working systems, adapter or not, and all others that have an adapter."""
    if not FOLDER.is_dir():
        return []
    return [path for path in find([FOLDER]) if (f := Fixture(path)).system in SLUGS or adapter_for(f)]


FIXTURES = fixtures()
needs_folder = pytest.mark.skipif(
    not FIXTURES,
    reason=f"parity was NOT checked: no fixtures in {FOLDER}; set STATESCAN_PARITY to the folder that has them",
)


@needs_folder
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("path", FIXTURES or [None], ids=lambda path: path.stem if path else "none")
def test_published_outputs(path: Path, backend: str) -> None:
    if backend == "cpu" and not cpu.available():
        pytest.skip(f"compiled kernels were NOT checked: {cpu.why_not()}")
    result = run(path, backend=backend)
    assert result.verdict == "pass", str(result)


#: Papers without code: nothing to compare with.
UNPUBLISHED = {"dynamax", "ecg_mamba", "memmamba", "pkd"}


@needs_folder
def test_every_working_system_has_fixtures() -> None:
    assert {Fixture(path).system for path in FIXTURES} >= SLUGS - UNPUBLISHED


@needs_folder
def test_rule_is_that_of_the_fixtures() -> None:
    """Weights and inputs come out as the program beside the fixtures makes them."""
    beside = FOLDER / "parity.py"
    if not beside.is_file():
        pytest.skip(f"the rule was NOT compared: no {beside}")
    spec = importlib.util.spec_from_file_location("published_parity", beside)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for path in FIXTURES:
        fixture = Fixture(path)
        weights = fixture.state_dict()
        for name, tensor in theirs.official_state_dict(fixture.data).items():
            np.testing.assert_array_equal(weights[name].numpy(), tensor.numpy())
        if all("name" in given for given in fixture.data["inputs"]):
            inputs = fixture.named_inputs()
            for name, tensor in theirs.named_inputs(fixture.data).items():
                np.testing.assert_array_equal(inputs[name].numpy(), tensor.numpy())


def write_fixture(folder: Path, name: str, class_name: str, *, scale: float = 1.0) -> None:
    """A scan of two channels, whose stored output is wrong where `scale` is not 1."""
    import json

    data = {
        "system": "test",
        "official": {"class": class_name, "kwargs": {}},
        "parameters": 0,
        "state_dict": [],
        "inputs": [
            {"kind": "normal", "shape": [1, 2, 3], "seed": f"1{letter}", "name": letter} for letter in ("u", "delta")
        ]
        + [
            {"kind": "normal", "shape": [2, 4], "seed": "1A", "name": "A", "transform": "0 * value - 1"},
            {"kind": "normal", "shape": [2, 4], "seed": "1B", "name": "B"},
            {"kind": "normal", "shape": [2, 4], "seed": "1C", "name": "C"},
        ],
        "outputs": {"out": [1, 2, 3]},
        "tolerance": 1e-4,
        "notes": "",
    }
    (folder / f"{name}.json").write_text(json.dumps(data))
    np.savez(folder / f"{name}.npz", out=np.zeros(6, dtype="float32"))
    given = Fixture(folder / f"{name}.json")
    adapter = adapter_for(given)
    out = adapter(given)["out"].detach().numpy().reshape(-1) if adapter else np.zeros(6, dtype="float32")
    np.savez(folder / f"{name}.npz", out=scale * out)


SCAN = "mamba_ssm.ops.selective_scan_interface.selective_scan_ref"


def test_command_reports_each_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fixture(tmp_path, "good", SCAN)
    write_fixture(tmp_path, "wrong", SCAN, scale=1.01)
    write_fixture(tmp_path, "unknown", "some.module.Class")
    assert command.main([str(tmp_path), "--backend", "reference"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "good: pass" in lines
    assert any(line.startswith("wrong: fail: out: error 9.9") for line in lines)
    assert "unknown: no adapter: some.module.Class" in lines
    assert lines[-1] == "3 fixtures: 1 pass, 1 fail, 1 no adapter"
    assert command.main([str(tmp_path / "good.json"), str(tmp_path), "--only", "goo*"]) == 0


def test_command_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(tmp_path / "absent")], [str(tmp_path)]):
        with pytest.raises(SystemExit) as exit_:
            command.main(arguments)
        assert exit_.value.code == 2
    assert "no file or folder" in capsys.readouterr().err
