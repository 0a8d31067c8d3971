"""`statescan evaluate`: the numbers it prints, and what it says to bad input."""

from __future__ import annotations

import json

import pytest

from statescan.checkpoints import ByteTokenizer
from statescan.cli import main
from statescan.tasks import evaluate_language
from tests.generation import _models

TEXT = "Some text to measure, of a few words. " * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tmp_path_factory.mktemp("model")
    _models.build("mamba_tiny").save(model)
    return model


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("flags", "settings"),
    [((), {}), (("--mode", "strided", "--window", 32, "--stride", 8), dict(mode="strided", window=32, stride=8))],
)
def test_language_gives_the_score_as_json(folder, text_file, capsys, flags, settings):
    status, out, _ = run(capsys, "language", folder, "--data", text_file, "--json", *flags)
    assert status == 0
    found = json.loads(out)
    score = evaluate_language(_models.build("mamba_tiny"), TEXT, tokenizer=ByteTokenizer(), **settings)
    assert found["bits_per_byte"] == pytest.approx(score.bits_per_byte)
    assert found["perplexity"] == pytest.approx(score.perplexity)
    assert (found["bytes"], found["mode"]) == (score.bytes, settings.get("mode", "stateful"))


def test_language_gives_a_table(folder, text_file, capsys):
    status, out, _ = run(capsys, "language", folder, "--data", text_file, text_file)
    assert status == 0
    assert "bits per byte" in out
    assert f"{2 * len(TEXT) - 1:,}" in out


@pytest.fixture
def local_task(tmp_path):
    """One task: which of two words follows."""
    documents = [{"question": "Is it?", "choices": [" yes", " no"], "answer": 0}] * 3
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": "local_words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_words.yaml").write_text(json.dumps(task))
    return tmp_path / "tasks"


@pytest.mark.parametrize("printed", ["json", "table"])
def test_the_harness_runs_a_local_task(folder, local_task, capsys, tmp_path, monkeypatch, printed):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = ("--tasks", "local_words", "--include-path", local_task, "--limit", 2)
    status, out, _ = run(capsys, "lm-eval", folder, *arguments, *(("--json",) if printed == "json" else ()))
    assert status == 0
    if printed == "json":
        measures = json.loads(out)["results"]["local_words"]
        assert measures["acc,none"] in (0.0, 1.0)
        assert measures["sample_len"] == 2
    else:
        assert "local_words" in out
        assert "acc" in out


@pytest.mark.parametrize("command", ["language", "lm-eval"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", command, "--help"])
    assert end.value.code == 0
    assert f"statescan evaluate {command} runs/book" in capsys.readouterr().out


BAD = [
    (("language", "--data", "empty"), "data: 'empty' holds no text"),
    (("language", "--data", "letter"), "text: 'a' is a single token, and a first token is not scored"),
    (("language", "--data", "binary"), "data: 'binary' is not UTF-8 text (a NUL byte at position 1); give text files"),
    (("language", "--data", "none"), "data: no file, folder or pattern 'none'"),
    (("language", "--data", "text.txt", "--chunk", 0), "chunk: expected at least 1 token, got 0"),
    (("lm-eval", "--tasks", "x", "--include-path", "none"), "include-path: there is no folder 'none'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_status_2(folder, text_file, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "letter").write_bytes(b"a")
    (tmp_path / "binary").write_bytes(b"\x7f\x00ELF")
    command, *flags = arguments
    status, out, err = run(capsys, command, folder, *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"statescan: {message}")
    assert err.count("\n") == 1
