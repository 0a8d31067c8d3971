"""The folder of a training run: checked before work starts, and never left without its last good checkpoint."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from statescan.tasks._settings import FREE, TrainingSettings

Settings = TypeVar("Settings", bound=TrainingSettings)

#: Files that a new run replaces; the model's come last, when it is trained.
_OF_A_RUN = ("checkpoint.ckpt", "metrics.csv", "speed.csv", "curves.png", "config.json", "model.safetensors")

#: Errors of the operating system that say that a folder cannot take more.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class RunFolder:
    """What a run leaves: the model (``config.json``, ``model.safetensors``), ``metrics.csv``, ``speed.csv``, ``curves.png``.

    Beside these, ``settings.json`` and ``checkpoint.ckpt`` hold what is needed to go on.

    Arguments:
        path: the folder; made when it is first written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.metrics = MetricsFile(self.path / "metrics.csv")
        self.speed = MetricsFile(self.path / "speed.csv")
        self.checkpoint = self.path / "checkpoint.ckpt"
        self.picture = self.path / "curves.png"

    def settle(self, settings: Settings) -> Settings:
        """The settings that the run goes by: those of the run in the folder where it is resumed, or those given.

        Raises:
            ValueError: where there is a run that is not to be touched, or one with other settings.
        """
        if not self.settings.is_file():
            return settings
        if first_process() and not (settings.resume or settings.overwrite):
            raise ValueError(
                f"out: {str(self.path)!r} already holds a run; continue it with resume, replace it with overwrite, "
                "or choose another folder"
            )
        if not settings.resume:
            return settings
        before = json.loads(self.settings.read_text())
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(settings):
            given = getattr(settings, field.name)
            if field.name in FREE or field.name not in before or _plain(given) == before[field.name]:
                continue
            # A setting that was not given is taken from the run.
            if given != getattr(type(settings)(), field.name):
                raise ValueError(
                    f"resume: the run in {str(self.path)!r} has {field.name} {before[field.name]!r}, given "
                    f"{_plain(given)!r}; give the same, or choose another folder"
                )
            value = before[field.name]
            changed[field.name] = tuple(value) if isinstance(value, list) else value
        return dataclasses.replace(settings, **changed)

    def prepare(self, settings: TrainingSettings, *, needed: int) -> bool:
        """Make the folder ready for a run, or for the rest of one; says whether there is a checkpoint to resume from.

        Arguments:
            settings: from `settle`.
            needed: bytes that a checkpoint will take; twice as much must be free.

        Raises:
            ValueError: where the folder cannot be written or has no room.
        """
        resumed = settings.resume and self.checkpoint.is_file()
        if not first_process():
            return resumed
        self._check_room(2 * needed)
        if not resumed:
            for name in _OF_A_RUN:
                (self.path / name).unlink(missing_ok=True)
        write_atomically(self.settings, json.dumps(settings.as_dict(), indent=2).encode() + b"\n")
        return resumed

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn a full or unwritable folder, met while training, into one clear error."""
        try:
            yield
        except OSError as error:
            if error.errno not in _WRITING:
                raise
            kept = f"the last checkpoint is whole: {self.checkpoint}; make room and resume"
            left = kept if self.checkpoint.is_file() else "no checkpoint had been written yet"
            raise ValueError(f"out: cannot write in {str(self.path)!r}: {error.strerror}; {left}") from error

    def _check_room(self, needed: int) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"\0")
        except OSError as error:
            raise ValueError(f"out: cannot write in {str(self.path)!r}: {error.strerror}") from None
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ValueError(
                f"out: {str(self.path)!r} has {free / 1e6:,.0f} MB free, the run needs {needed / 1e6:,.0f} MB"
            )


class MetricsFile:
    """A table of numbers that grows a row at a time; a killed run leaves at most an unfinished last row.

    Arguments:
        path: of the csv file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, str]]:
        """The whole rows, by column."""
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(whole.splitlines()))

    def keep_until(self, step: int) -> None:
        """Drop the rows after a step, and an unfinished one."""
        if not self.path.is_file():
            return
        rows = [row for row in self.rows() if int(row["step"]) <= step]
        if not rows:
            self.path.unlink()
            return
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        write_atomically(self.path, ("\n".join(lines) + "\n").encode())

    def append(self, row: Mapping[str, float | int | None], columns: Sequence[str]) -> None:
        """Add a row; None and missing values are left empty."""
        new = not self.path.is_file()
        with self.path.open("a") as file:
            if new:
                file.write(",".join(columns) + "\n")
            file.write(",".join(_written(row.get(column)) for column in columns) + "\n")

    def series(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column, where it has any."""
        found = [(int(row["step"]), float(row[column])) for row in self.rows() if row.get(column)]
        return [step for step, _ in found], [value for _, value in found]


def first_process() -> bool:
    """Whether this is the only process of a run, or the one that writes its files."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _plain(value: Any) -> Any:
    """A setting as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name when it is whole; if something comes between, the old one stays."""
    for left in path.parent.glob(f".{path.name}.*"):  # of a killed process
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by one of this content, whole or not at all."""
    with replacing(path) as file:
        file.write(content)
