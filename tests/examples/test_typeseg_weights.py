"""Real trained weights in a foreign layout; `typeseg` itself is the oracle. docs/foreign_weights.md is held to the code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "foreign_weights.md"
SOURCES = ["csrc/common.h", "pyproject.toml", "Makefile", "src/statescan/layers/_mamba.py"]
MIXED = "-- Größe, 大きさ\nSELECT name FROM dogs WHERE größe > 3;\n\n{'a': [1, 2, None]}\n<p>été &amp; hiver</p>\r\n\x00\x7f"

# Probabilities go through six layers of float32 in another order of summation; 3e-6 was seen.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def typeseg():
    return pytest.importorskip("typeseg", reason="typeseg is not installed; `make test-all` installs it")


@pytest.fixture(scope="module")
def segmenter(typeseg):
    from examples.typeseg_weights import load_segmenter

    return load_segmenter(len(typeseg.precise(" ").labels))


def read(source):
    return MIXED if source == "mixed" else (ROOT / source).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "numpy"])
@pytest.mark.parametrize("source", [*SOURCES, "mixed"])
def test_answers_are_those_of_typeseg(typeseg, segmenter, source, backend, monkeypatch):
    from examples.typeseg_weights import byte_probabilities

    if backend == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; `make test-all` installs it")
    monkeypatch.setenv("TYPESEG_BACKEND", backend)
    text = read(source)
    wanted = typeseg.precise(text)
    bytes_ = byte_probabilities(segmenter, text).numpy()
    monkeypatch.setattr("typeseg._runtime._mamba_byte_probs", lambda tokens, config: bytes_)
    ours = typeseg.precise(text)  # its own treatment of bytes, with our probabilities
    np.testing.assert_allclose(ours.char_probs, wanted.char_probs, rtol=0, atol=TOLERANCE)
    assert ours.char_labels == wanted.char_labels
    spans = [[(s.start, s.end, s.label) for s in result.segments] for result in (ours, wanted)]
    assert spans[0] == spans[1]


@pytest.mark.slow
def test_loaded_weights_are_those_of_the_file(typeseg, segmenter):
    from importlib.resources import files

    with (files("typeseg") / "data" / "mamba_al.npz").open("rb") as file:
        arrays = dict(np.load(file))
    assert sum(p.numel() for p in segmenter.parameters()) == sum(a.size for a in arrays.values()) == 1_364_035
    kernel = torch.from_numpy(arrays["CheckpointMambaBlock1D_3__Conv_0__kernel"])
    assert torch.equal(segmenter.stack.blocks[3].mixer.convolution.weight, kernel[:, 0].T)


@pytest.mark.slow
def test_the_page_runs(typeseg, capsys):
    shown, last = (code for code in _blocks() if code.startswith("import"))
    exec(compile(shown, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == re.search(
        r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    ).group(1)
    exec(compile(last, str(PAGE), "exec"), {})
    assert float(capsys.readouterr().out) < TOLERANCE


@pytest.mark.slow
def test_the_program_prints_types_of_lines(typeseg, capsys):
    from examples.typeseg_weights import main

    main([str(ROOT / "csrc" / "common.h")])
    assert re.search(r"^ +1-\d+ +c_family$", capsys.readouterr().out, re.MULTILINE)


def test_the_page_quotes_the_program():
    program = (ROOT / "examples" / "typeseg_weights.py").read_text(encoding="utf-8")
    quotes = [code for code in _blocks() if not code.startswith("import")]
    assert len(quotes) == 3
    for quote in quotes:
        assert quote in program


def _blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
