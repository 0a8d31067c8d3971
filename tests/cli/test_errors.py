"""What goes wrong on the command line: one line on standard error, and an exit status that a script can read."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from statescan import cli
from statescan.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info"], "missing from statescan info: NAME"),
        (["info", "mamba_tiny", "--length", "abc"], "error parsing --length: invalid literal for int()"),
        (["info", "mamba_tiny", "--lenght", "3"], "unrecognized options: --lenght, 3; did you mean --length?"),
        (["info", "mamba_tiny", "mamba_small"], "unrecognized options: mamba_small"),
        (["train", "language", "--steps"], "missing value for argument '--steps'"),
        (["train", "language", "--steps", "0"], "steps: expected at least 1, got 0"),
        (["train", "language", "--precision", "float17"], "invalid choice 'float17' for argument '--precision'"),
        (["train", "language", "--set", "dim"], "set: expected name=value, got 'dim'"),
        (["train", "language", "--data", "no/such/file"], "data: no file, folder or pattern 'no/such/file'"),
        (["train", "synthetic", "--task", "induction_head_s"], "task: unknown name 'induction_head_s'"),
        (["train", "languages"], "unknown subcommand 'languages'; did you mean 'language'?"),
        (["train", "zebra"], "unknown subcommand 'zebra'; known: language, "),
        (["evaluate", "lm_eval"], "unknown subcommand 'lm_eval'; did you mean 'lm-eval'?"),
        (["completion", "powershell"], "invalid choice 'powershell'"),
        (["infos"], "unknown command 'infos'; did you mean 'info'?"),
        (["zebra"], "unknown command 'zebra'; known: bench, "),
    ],
)
def test_arguments_that_do_not_fit(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("statescan: ")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_without_a_terminal_for_its_lines(tmp_path):
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "statescan", "info", "mamba_tiny", "--lenght", "3"],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            text=True,
        )
        assert done.stderr == (
            "statescan: unrecognized options: --lenght, 3; did you mean --length? `statescan info --help` tells more\n"
        )


def _command(monkeypatch, run):
    """A command of this name that does this."""
    monkeypatch.setattr(cli, "commands", lambda: {"trouble": ""})
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: type("module", (), {"run": staticmethod(run)}))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("length: at least 1,\n  got 0"), "length: at least 1, got 0"),
        (FileNotFoundError(2, "No such file or directory", "book.txt"), "book.txt: No such file or directory"),
        (OSError(28, "No space left on device", "runs/model"), "runs/model: No space left on device"),
        (
            ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval"),
            "this command needs the package 'lm_eval'; pip install 'statescan[eval]'",
        ),
        (ModuleNotFoundError("No module named 'triton'", name="triton.language"), "pip install triton"),
        (TypeError(), "TypeError"),
    ],
)
def test_errors_of_the_library_become_a_line(capsys, monkeypatch, error, line):
    def run() -> None:
        raise error

    _command(monkeypatch, run)
    assert main(["trouble"]) == 2
    (written,) = capsys.readouterr().err.splitlines()
    assert line in written
    monkeypatch.setenv("STATESCAN_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["trouble"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    def run() -> None:
        raise AssertionError("a bug")

    _command(monkeypatch, run)
    with pytest.raises(AssertionError, match="a bug"):
        main(["trouble"])


def test_interrupted_from_the_keyboard(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    command = "train language --data text.txt --out run --steps 1000000 --set dim=16 depth=1 --log-every 1"
    running = subprocess.Popen(
        [sys.executable, "-m", "statescan", *command.split()],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Where these tests run in the background, interrupts are ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    metrics = tmp_path / "run" / "metrics.csv"
    for _ in range(600):
        if metrics.exists() or running.poll() is not None:
            break
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, written = running.communicate(timeout=60)
    assert running.returncode == 130, written
    assert "Traceback" not in written


def test_output_that_nobody_reads_to_the_end():
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        f"{sys.executable} -m statescan models --json | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.strip() == "["
    assert done.stderr == ""


def test_completion_completes():
    script = subprocess.run(
        [sys.executable, "-m", "statescan", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    asked = {
        "statescan tr": "train",
        "statescan train lang": "language",
        "statescan train language --prec": "--precision",
        "statescan info mamba_13": "mamba_130m",
        "statescan train language --model transformer_t": "transformer_tiny",
        "statescan models --js": "--json",
    }
    for line, answer in asked.items():
        words = " ".join(f"'{word}'" for word in line.split())
        code = f'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _statescan; echo "${{COMPREPLY[*]}}"'
        done = subprocess.run(
            [shutil.which("bash"), "-c", f"{script}\n{code}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == answer, line
