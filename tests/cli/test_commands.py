"""The command line as a user and as a program meets it."""

import json
import subprocess
import sys

import pytest

from statescan.cli import commands, main, train


def run(capsys, *arguments):
    try:
        status = main(list(arguments))
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_lists_every_command_with_a_summary(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for name, summary in commands().items():
        assert f"  {name} " in out
        assert summary
        assert summary in out


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help(capsys, name):
    status, out, _ = run(capsys, name, "--help")
    assert status in (0, None)
    assert "usage" in out.lower()


@pytest.mark.parametrize("task", train.COMMANDS)
def test_help_of_a_training_is_for_its_reader(capsys, task):
    status, out, _ = run(capsys, "train", task, "--help")
    assert status in (0, None)
    assert "usage" in out.lower()
    assert "type: ignore" not in out and "noqa" not in out


def test_listing_commands_needs_no_torch():
    code = "import sys; from statescan.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_systems_models_and_info_as_tables_and_as_data(capsys):
    status, out, _ = run(capsys, "systems", "--json")
    assert status == 0
    assert {"mamba", "mamba2"} <= {system["slug"] for system in json.loads(out)}
    status, out, _ = run(capsys, "models", "mamba_*", "--json")
    assert {"name": "mamba_130m", "family": "mamba", "parameters": 129135360, "dim": 768, "depth": 24} in json.loads(
        out
    )
    status, out, _ = run(capsys, "info", "mamba_tiny", "--length", "32", "--json")
    found = json.loads(out)
    assert found["parameters"] == 499_328
    assert found["state_bytes"] == found["state_bytes_start"]
    for arguments in (
        ["systems"],
        ["models"],
        ["models", "mamba2*"],
        ["info", "transformer_tiny", "--length", "16"],
        ["info", "s4_tiny"],
        ["info", "vmamba_tiny", "--size", "32"],
        ["info", "vmamba_tiny", "--json"],
    ):
        status, out, _ = run(capsys, *arguments)
        assert status == 0
        assert out.strip()


def test_bench_prints_and_gives_data(capsys):
    status, out, _ = run(capsys, "bench", "mamba_tiny", "--length", "8", "--repeats", "1", "--json")
    assert status == 0
    assert json.loads(out)["mamba_tiny"]["state_bytes"] > 0


@pytest.mark.parametrize("name", ["copy", "last-occurrence", "lis", "edit-distance", "arithmetic", "local-dp"])
def test_experiments_print_tables_and_give_data(capsys, tmp_path, name):
    pytest.importorskip("pytorch_lightning")
    small = "--models mamba_4 --length 3 --test-lengths 2 3 --steps 2 --dim 16 --depth 1 --examples 4 --batch-size 2"
    arguments = ["experiment", name, "--out", str(tmp_path), *small.split()]
    status, out, _ = run(capsys, *arguments)
    assert not status
    assert "mamba_4" in out
    assert "by length" in out
    assert str(tmp_path / "results.json") in out
    status, out, _ = run(capsys, *arguments, "--resume", "--json")
    assert json.loads(out)["rows"][0]["accuracy"]["3"].keys() == {"tokens", "strings", "answers"}


def test_convert(capsys, tmp_path):
    import statescan
    from statescan import checkpoints

    statescan.create_model("mamba_tiny", dim=16, depth=1).save(tmp_path / "a")
    status, _, _ = run(capsys, "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "huggingface")
    assert status == 0
    assert checkpoints.detect(tmp_path / "b") == "mamba"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(capsys, shell):
    status, out, _ = run(capsys, "completion", shell)
    assert status == 0
    assert "systems" in out
    assert "language" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["modles"], "unknown command 'modles'"),
    (["info", "mamba_130"], "unknown model 'mamba_130'; nearest: 'mamba_130m'"),
    (["models", "nothing*"], "no model matches 'nothing*'"),
    (["train", "langauge"], "langauge"),
    (["info", "mamba_tiny", "--length", "0"], "length, batch: at least 1"),
    (["convert", "nowhere", "there"], "no folder 'nowhere'"),
    (["generate", "nowhere", "--prompt", "a"], "nowhere"),
    (["bench", "mamba_tinny"], "nearest: 'mamba_tiny'"),
])  # fmt: skip
def test_a_users_error_is_one_line_and_status_2(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "statescan", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("statescan ")
    done = subprocess.run([sys.executable, "-m", "statescan", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
