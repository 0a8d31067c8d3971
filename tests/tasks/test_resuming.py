"""Runs that were killed, that ran out of room, or that several processes share, end as one that was left alone."""

from __future__ import annotations

import errno
import random
import resource
import signal
import time

import pytest
import torch

from statescan.tasks import LanguageTraining, train_language
from statescan.tasks._run_folder import MetricsFile, write_atomically
from tests.tasks._runs import command, finish, metrics, run_language, start, write_text

pytest.importorskip("pytorch_lightning")

from statescan.tasks._callbacks import AtomicCheckpointIO

#: A run long enough to be killed in its midst; a checkpoint stands between lines of metrics, and a carried state and
#: half-accumulated averages must survive.
KILLED = dict(
    steps=60, log_every=4, validate_every=15, checkpoint_every=7, accumulate=2, carry_state=True, batch_size=2
)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def weights(out):
    return torch.load(out / "checkpoint.ckpt", weights_only=True)["state_dict"]


def lines(out) -> int:
    path = out / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_killed_run_goes_on_as_if_nothing_had_happened(text, tmp_path):
    left_alone, killed = tmp_path / "left alone", tmp_path / "killed"
    seed = random.randrange(10**6)
    print(f"seed of the moments: {seed}")
    moments = random.Random(seed)
    # In a process of its own, like the others: what tests before this one did to torch's threads changes last digits.
    finish(start(command(text, left_alone, **KILLED)))
    for _ in range(2):
        process = start(command(text, killed, "--resume", **KILLED))
        wanted = lines(killed) + moments.randrange(1, 8)
        deadline = time.monotonic() + 120
        while lines(killed) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.1)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(command(text, killed, "--resume", **KILLED)))
    assert (left_alone / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()
    one, other = weights(left_alone), weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [("ddp", {}), ("fsdp", {}), ("sequence", {}), ("sequence", {"carry_state": True, "length": 33})],
    ids=["ddp", "fsdp", "sequence", "sequence, states carried"],
)
def test_two_processes_learn_what_one_learns(text, tmp_path, strategy, changes):
    run_language(text, tmp_path / "one", batch_size=4, **changes)
    line = command(text, tmp_path / "two", batch_size=2, devices=2, strategy=strategy, **changes)
    finish(start(line))
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        # Sums in another order: float32 rounding, grown by eight steps.
        assert one == pytest.approx(two, rel=1e-4, nan_ok=True)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_a_finished_run_has_nothing_to_resume(text, tmp_path):
    out = tmp_path / "out"
    first = run_language(text, out)
    before = (out / "metrics.csv").read_text()
    again = run_language(text, out, resume=True)
    assert again.steps == first.steps
    assert again.validation == first.validation
    assert (out / "metrics.csv").read_text() == before


def test_resume_takes_its_settings_from_the_run(text, tmp_path):
    out = tmp_path / "out"
    run_language(text, out)
    before = (out / "settings.json").read_text()
    result = train_language(LanguageTraining(out=out, resume=True, accelerator="cpu"))
    assert result.steps == 8
    assert '"length": 32' in before
    assert '"length": 32' in (out / "settings.json").read_text()


def test_resume_refuses_other_settings(text, tmp_path):
    run_language(text, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"has learning_rate 0.005, given 0.1; give the same, or choose another folder"
    ):
        run_language(text, tmp_path / "out", resume=True, learning_rate=0.1)


def test_resume_without_a_run_begins_one(text, tmp_path):
    assert run_language(text, tmp_path / "out", resume=True).steps == 8


def test_a_run_is_not_overwritten_unasked(text, tmp_path):
    run_language(text, tmp_path / "out")
    with pytest.raises(ValueError, match="already holds a run; continue it with resume, replace it with overwrite"):
        run_language(text, tmp_path / "out")
    run_language(text, tmp_path / "out", overwrite=True, steps=4)
    assert len(metrics(tmp_path / "out")) == 2


def test_an_unwritable_folder_is_known_before_work_starts(text, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: cannot write in '.*/file/out': Not a directory"):
        run_language(text, tmp_path / "file" / "out")


def test_a_full_disk_is_known_before_work_starts(text, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"out: .* has 0 MB free, the run needs"):
        run_language(text, tmp_path / "out")


def test_a_disk_that_fills_up_spares_the_last_checkpoint(text, tmp_path, monkeypatch):
    out = tmp_path / "out"
    save, calls = torch.save, []

    def filling_up(*arguments):
        calls.append(1)
        if len(calls) < 2:
            return save(*arguments)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            return save(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(torch, "save", filling_up)
    with pytest.raises(ValueError, match=r"out: cannot write in .*: File too large; the last checkpoint is whole"):
        run_language(text, out)
    monkeypatch.undo()
    assert torch.load(out / "checkpoint.ckpt", weights_only=True)["global_step"] == 4
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    run_language(text, out, resume=True)
    run_language(text, tmp_path / "left alone")
    assert (out / "metrics.csv").read_text() == (tmp_path / "left alone" / "metrics.csv").read_text()


def test_an_interrupted_checkpoint_spares_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    for interruption in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):

        def interrupted(descriptor, interruption=interruption):
            raise interruption

        monkeypatch.setattr("os.fsync", interrupted)
        with pytest.raises(type(interruption)):
            AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
        assert torch.load(path, weights_only=True) == {"step": 1}
        assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_beside_a_checkpoint_is_removed(tmp_path):
    (tmp_path / ".checkpoint.ckpt.x1y2").write_text("half")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "checkpoint.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.ckpt"]


def test_metrics_drop_what_came_after_a_checkpoint(tmp_path):
    table = MetricsFile(tmp_path / "metrics.csv")
    for step in range(5):
        table.append({"step": step, "loss": step / 3, "other": None}, ("step", "loss", "other"))
    with table.path.open("a") as file:
        file.write("5,0.")
    assert len(table.rows()) == 5
    table.keep_until(2)
    assert table.path.read_text() == "step,loss,other\n0,0,\n1,0.333333333,\n2,0.666666667,\n"
    assert table.series("loss") == ([0, 1, 2], [0, 0.333333333, 0.666666667])
    table.keep_until(-1)
    assert not table.path.exists()


def test_atomic_writing_replaces_whole_files(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    path.with_name("other").touch()
    assert path.stat().st_mode == path.with_name("other").stat().st_mode
    path.with_name("other").unlink()
    assert list(tmp_path.iterdir()) == [path]
