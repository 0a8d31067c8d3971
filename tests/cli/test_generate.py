"""`statescan generate`: what it prints, and what it says to bad input."""

from __future__ import annotations

import io
import json
import sys

import pytest

from statescan.checkpoints import ByteTokenizer
from statescan.cli import _language, main
from statescan.generation import generate
from tests.generation import _models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a training run, its model inside."""
    run = tmp_path_factory.mktemp("run")
    _models.build("mamba_tiny").save(run / "model")
    return run


def expected(prompt: str, **settings) -> str:
    (result,) = generate(_models.build("mamba_tiny"), prompt, tokenizer=ByteTokenizer(), **settings)
    return result.text


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["generate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_one_prompt_is_continued(folder, capsys):
    arguments = ("--prompt", "Hi", "--max-new-tokens", 20, "--seed", 3, "--top-p", 0.9, "--temperature", 0.7)
    status, out, _ = run(capsys, folder, *arguments)
    assert status == 0
    assert out == expected("Hi", max_new_tokens=20, seed=3, top_p=0.9, temperature=0.7) + "\n"


def test_several_prompts_give_json(folder, capsys):
    prompts = ("--prompt", "one", "--prompt", "another")
    status, out, _ = run(capsys, folder, *prompts, "--max-new-tokens", 8, "--seed", 3, "--json")
    assert status == 0
    first, second = json.loads(out)
    assert (first["prompt"], first["text"]) == ("one", expected("one", max_new_tokens=8, seed=3))
    assert (second["prompt"], second["text"]) == ("another", expected("another", max_new_tokens=8, seed=4))
    assert first["finish_reason"] == "length"
    assert len(first["tokens"]) == 8


def test_several_prompts_are_printed_with_what_follows(folder, capsys):
    _, out, _ = run(capsys, folder, "--prompt", "one", "--prompt", "two", "--max-new-tokens", 4, "--seed", 3)
    assert out.startswith("one" + expected("one", max_new_tokens=4, seed=3))


def test_prompts_come_from_files_and_from_the_standard_input(folder, capsys, tmp_path, monkeypatch):
    text = "Ein Satz — mit Strich."
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    arguments = ("--max-new-tokens", 10, "--temperature", 0)
    _, from_file, _ = run(capsys, folder, "--prompt-file", tmp_path / "prompt.txt", *arguments)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    _, from_input, _ = run(capsys, folder, "--prompt-file", "-", *arguments)
    assert from_file == from_input == expected(text, max_new_tokens=10, temperature=0) + "\n"


def test_stops_end_the_text(folder, capsys):
    full = expected("Hi", max_new_tokens=30, seed=0)
    arguments = ("--prompt", "Hi", "--max-new-tokens", 30, "--seed", 0, "--stop", "never", "--stop", full[10:12])
    _, out, _ = run(capsys, folder, *arguments)
    assert out == full[: full.index(full[10:12])] + "\n"


def test_stops_are_typed_with_escapes():
    assert _language.unescape(r"a\n\tb \\n ü") == "a\n\tb \\n ü"


@pytest.mark.parametrize("printed", [(), ("--json",)])
def test_a_saved_state_goes_on(folder, capsys, tmp_path, printed):
    state = tmp_path / "state.safetensors"
    text = expected("Hi", max_new_tokens=20, seed=3)
    run(capsys, folder, "--prompt", "Hi", "--max-new-tokens", 12, "--seed", 3, "--save-state", state, *printed)
    _, rest, _ = run(capsys, folder, "--max-new-tokens", 8, "--state", state)
    assert text.endswith(rest.rstrip("\n"))
    assert len(rest) > 2


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(["generate", "--help"])
    assert end.value.code == 0
    assert "statescan generate runs/book --prompt" in capsys.readouterr().out


BAD = [
    (("--prompt", ""), "prompts[0]: empty prompt; a continuation starts from at least one token"),
    ((), "prompts: give prompts, or the state of a continuation to go on from"),
    (("--prompt", "a", "--temperature", -1), "temperature: expected a finite number >= 0 (0 is greedy), got -1.0"),
    (("--prompt", "a", "--top-p", 2), "top_p: expected a probability in (0, 1], got 2.0"),
    (("--prompt", "a", "--tokenizer", "none.json"), "tokenizer: no file or folder 'none.json'; for bytes say 'bytes'"),
    (("--prompt", "a", "--device", "gpu"), "device: unknown 'gpu'; such as cpu, cuda or cuda:1"),
    (("--prompt", "a", "--device", "cuda:99"), "device: 'cuda:99' is not there; this machine has"),
    (("--prompt", "a", "--state", "none.safetensors"), "State.load: no file 'none.safetensors'"),
    (("--prompt", "a", "--save-state", "none/x"), "save-state: there is no folder 'none'"),
    (("--prompt", "a", "--prompt", "b", "--save-state", "x"), "save-state: it holds one continuation, but 2 prompts"),
    (("--prompt-file", "binary"), "data: 'binary' is not UTF-8 text (a NUL byte at position 1); give text files"),
    (("--prompt-file", "latin"), "data: 'latin' is not UTF-8 text (byte 0xe4 at position 1); give text files"),
    (("--prompt-file", "empty"), "data: 'empty' holds no text"),
    (("--prompt-file", "none"), "data: no file, folder or pattern 'none'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_status_2(folder, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\x7f\x00ELF")
    (tmp_path / "latin").write_bytes("Häuser".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"")
    status, out, err = run(capsys, folder, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"statescan: {message}")
    assert err.count("\n") == 1


def test_a_missing_model_is_named(capsys, tmp_path):
    status, _, err = run(capsys, tmp_path / "nothing", "--prompt", "a")
    assert status == 2
    assert "nothing" in err
    status, _, err = run(capsys, tmp_path, "--prompt", "a")
    assert status == 2
    assert "has no config.json; is it the folder of a model?" in err


@pytest.mark.parametrize(
    "flags",
    [
        ("--draft", "ngram"),
        ("--draft", "ngram", "--draft-tree", "dynamic", "--draft-nodes", 6),
        ("--draft", "FOLDER", "--draft-tree", "static", "--draft-branching", 2, 1),
        ("--draft", "FOLDER", "--draft-tree", "dynamic", "--draft-depth", 3),
    ],
    ids=str,
)
def test_a_draft_changes_nothing_but_the_time(folder, capsys, flags):
    flags = [folder if flag == "FOLDER" else flag for flag in flags]
    arguments = ("--prompt", "ababab", "--max-new-tokens", 12, "--seed", 3, "--temperature", 0.7)
    status, out, _ = run(capsys, folder, *arguments, *flags)
    assert status == 0
    assert out == expected("ababab", max_new_tokens=12, seed=3, temperature=0.7) + "\n"


def test_a_draft_accepted_in_rounds(folder, capsys):
    flags = ("--draft", folder, "--acceptance", "rounds", "--seed", 3, "--json", "--max-new-tokens", 12)
    status, out, _ = run(capsys, folder, "--prompt", "ab", *flags)
    assert status == 0
    assert len(json.loads(out)[0]["tokens"]) == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--draft", "ngram", "--acceptance", "rounds"), "rounds needs a draft that is a model"),
        (("--draft", "nowhere"), "nowhere"),
        (("--draft", "ngram", "--draft-depth", 0), "depth: at least 1, got 0"),
    ],
)
def test_drafts_that_cannot_be(folder, capsys, flags, message):
    status, _, error = run(capsys, folder, "--prompt", "ab", *flags)
    assert status == 2
    assert message in error
