"""`statescan calibrate longmamba`, and commands that use what it writes."""

from __future__ import annotations

import json

import pytest

from statescan.cli import main
from tests.generation.test_long_context import remembering


@pytest.fixture
def folder(tmp_path):
    remembering("mamba2_tiny").save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("Some text to read, of a few words. " * 20)
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def calibrate(capsys, folder, *more):
    text = folder / "text.txt"
    return run(capsys, "calibrate", "longmamba", folder, "--data", text, "--train-length", 32, *more)


def test_calibration_is_written_beside_the_model_and_used(folder, capsys):
    status, out, _ = calibrate(capsys, folder, "--sequences", 4, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["file"] == str(folder / "model" / "longmamba.safetensors")
    assert found["sequences"] == 4
    assert [row["mixer"] for row in found["mixers"]] == ["stack.blocks.0.mixer", "stack.blocks.1.mixer"]
    assert all(row["global"] for row in found["mixers"])
    prompt = ("--prompt-file", folder / "text.txt", "--max-new-tokens", 12, "--temperature", 0, "--json")
    texts = {flags: run(capsys, "generate", folder, *prompt, *flags)[1] for flags in ((), ("--long-context", "auto"))}
    assert len(set(texts.values())) == 2
    never = run(capsys, "generate", folder, *prompt, "--long-context", "auto", "--decay-threshold", 1)[1]
    assert never == texts[()]
    data = ("--data", folder / "text.txt", "--json")
    scores = [
        json.loads(run(capsys, "evaluate", "language", folder, *data, *flags)[1])["bits_per_byte"]
        for flags in ((), ("--long-context", found["file"]), ("--long-context", "auto"))
    ]
    assert scores[0] != scores[1] == scores[2]


def test_a_table_is_printed(folder, capsys):
    status, out, _ = calibrate(capsys, folder, "--out", folder / "other.safetensors", "--lengths", 64, 128)
    assert status == 0
    assert "kept at 128 tokens" in out
    assert (folder / "other.safetensors").is_file()
    assert not (folder / "model" / "longmamba.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train-length", 5000), "calibration needs a training length of them, 5000"),
        (("--train-length", 0), "train-length, sequences: at least 1, got 0 and 100"),
        (("--out", "nowhere/file"), "there is no folder 'nowhere'"),
    ],
)
def test_what_cannot_be(folder, capsys, flags, message):
    status, _, error = calibrate(capsys, folder, *flags)
    assert status == 2
    assert message in error


def test_a_missing_calibration_says_how_to_make_one(folder, capsys):
    status, _, error = run(capsys, "generate", folder, "--prompt", "a", "--long-context", "auto")
    assert status == 2
    assert "statescan calibrate longmamba" in error
