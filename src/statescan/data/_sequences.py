"""Labelled sequences: users' files, real data of installed packages, and ListOps."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statescan._names import nearest
from statescan.data._listops import LISTOPS_VOCABULARY, ListOps
from statescan.data._synthetic import batch_seed


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences padded at their ends, and what is to be told of each.

    Fields:
        inputs: (examples, length, channels) numbers, or (examples, length) token ids; of pairs (examples, 2, length) ids.
        lengths: (examples,), how many positions of each count; of pairs (examples, 2).
        targets: (examples,) class numbers, or (examples, outputs) numbers for regression.
        classes: names of the classes; none for regression.
        vocab_size: tokens there are, or None for numbers.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor
    classes: tuple[str, ...] = ()
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        examples = self.inputs.shape[0]
        if examples == 0:
            raise ValueError("sequences: there are none")
        if self.lengths.shape[:1] != (examples,) or self.targets.shape[:1] != (examples,):
            raise ValueError(
                f"sequences: {examples} inputs, {self.lengths.shape[0]} lengths and {self.targets.shape[0]} targets; "
                "expected as many of each"
            )
        if self.inputs.is_floating_point() and not bool(torch.isfinite(self.inputs).all()):
            row = int((~torch.isfinite(self.inputs)).flatten(1).any(1).nonzero()[0])
            raise ValueError(f"sequences: example {row} holds NaN or infinity; fill or drop it")

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def paired(self) -> bool:
        """Whether each example is two sequences."""
        return self.lengths.ndim == 2

    def select(self, index: Tensor) -> LabelledSequences:
        """Those of these numbers, in this order."""
        return dataclasses.replace(
            self, inputs=self.inputs[index], lengths=self.lengths[index], targets=self.targets[index]
        )

    def split(self, fraction: float, *, seed: int) -> tuple[LabelledSequences, LabelledSequences]:
        """At random: this fraction of the examples, and the others; at least one of each."""
        if len(self) < 2:
            raise ValueError(f"sequences: {len(self)} cannot be split in two")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = min(len(self) - 1, max(1, round(fraction * len(self))))
        return self.select(order[:cut]), self.select(order[cut:])

    def standardised(self, like: LabelledSequences) -> LabelledSequences:
        """Channels shifted and scaled to mean 0 and deviation 1 over the positions of `like`; tokens as they are."""
        if self.vocab_size is not None:
            return self
        counted = like.inputs[torch.arange(like.inputs.shape[1]) < like.lengths[:, None]]
        scale = counted.std(0).clamp(min=1e-8)
        inside = (torch.arange(self.inputs.shape[1]) < self.lengths[:, None])[..., None]
        return dataclasses.replace(self, inputs=torch.where(inside, (self.inputs - counted.mean(0)) / scale, 0.0))


@dataclass(frozen=True)
class SequenceBatch:
    """Some of them; fields as in `LabelledSequences`, token ids as int64. Of pairs all the first ones come first."""

    inputs: Tensor
    lengths: Tensor
    targets: Tensor


def pad(sequences: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(length, channels) arrays of one number of channels, padded with zeros -> (examples, longest, channels), lengths."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    inputs = torch.zeros(len(sequences), int(lengths.max()), sequences[0].shape[1])
    for target, sequence in zip(inputs, sequences, strict=True):
        target[: len(sequence)] = torch.from_numpy(np.ascontiguousarray(sequence, dtype=np.float32))
    return inputs, lengths


def _ts(path: Path, classes: tuple[str, ...] = ()) -> LabelledSequences:
    """A ``.ts`` file of the UCR and UEA archives: channels and the label separated by colons, values by commas."""
    sequences, labels, inside = [], [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not inside:
            inside = line.lower() == "@data"
            continue
        if not line:
            continue
        *channels, label = line.split(":")
        try:
            values = [np.array(channel.split(","), dtype=np.float32) for channel in channels]
            sequences.append(np.stack(values, axis=1))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected channels of equally many numbers, separated by colons, and a label"
            ) from None
        labels.append(label)
    if not sequences:
        raise ValueError(f"{path}: no sequences after a line @data; is this a .ts file?")
    if len({sequence.shape[1] for sequence in sequences}) > 1:
        raise ValueError(f"{path}: sequences of different numbers of channels")
    names = classes or tuple(sorted(set(labels)))
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(f"{path}: label {unknown[0]!r} is not one of the training file's: {', '.join(names)}")
    return LabelledSequences(*pad(sequences), torch.tensor([names.index(label) for label in labels]), names)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as arrays of numbers that numpy.savez wrote: {error}") from None


def _npz(path: Path, classes: tuple[str, ...] = ()) -> LabelledSequences:
    """Arrays ``inputs`` (examples, length[, channels]) and ``targets`` (examples[, outputs]); ``lengths`` may be there."""
    arrays = _arrays(path)
    missing = [name for name in ("inputs", "targets") if name not in arrays]
    if missing:
        raise ValueError(f"{path}: no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}")
    inputs, targets = arrays["inputs"], arrays["targets"]
    lengths = arrays["lengths"] if "lengths" in arrays else np.full(len(inputs), inputs.shape[1])
    tokens = np.issubdtype(inputs.dtype, np.integer) and inputs.ndim == 2
    if not tokens:
        inputs = inputs.astype(np.float32)[..., None] if inputs.ndim == 2 else inputs.astype(np.float32)
    whole = np.issubdtype(targets.dtype, np.integer)
    names = classes or (tuple(str(i) for i in range(int(targets.max()) + 1)) if whole else ())
    goal = targets.astype(np.int64) if whole else targets.astype(np.float32).reshape(len(targets), -1)
    return LabelledSequences(
        torch.from_numpy(inputs.astype(np.int64) if tokens else inputs),
        torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(goal),
        names,
        int(inputs.max()) + 1 if tokens else None,
    )


_READERS: dict[str, Callable[..., LabelledSequences]] = {".ts": _ts, ".npz": _npz}


def _digits(seed: int) -> tuple[LabelledSequences, LabelledSequences]:
    """1,797 real handwritten digits of 8 x 8 pixels, read pixel by pixel; of scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("data: 'digits' comes with scikit-learn: pip install 'statescan[eval]'") from None
    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels.astype(np.float32)[..., None])
    whole = LabelledSequences(
        inputs, torch.full((len(inputs),), inputs.shape[1]), torch.from_numpy(labels), tuple("0123456789")
    )
    return whole.split(0.8, seed=seed)


def _listops(seed: int, *, train: int = 20_000, test: int = 2_000) -> tuple[LabelledSequences, ...]:
    """Expressions of reduced length (50 to 256 tokens), to learn from and to be tried on."""
    task = ListOps(shortest=50, longest=256, max_depth=6)
    tokens, lengths, values = task.sequences(train + test, seed=batch_seed(seed, "listops", 0))
    whole = LabelledSequences(tokens, lengths, values, tuple("0123456789"), len(LISTOPS_VOCABULARY))
    index = torch.arange(train + test)
    return whole.select(index[:train]), whole.select(index[train:])


#: Data by name, each made from a seed: what to learn from, what to be tried on.
SEQUENCE_DATA: dict[str, Callable[[int], tuple[LabelledSequences, ...]]] = {"digits": _digits, "listops": _listops}


def read_sequences(
    source: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[LabelledSequences, LabelledSequences]:
    """Sequences to learn from and others to be tried on.

    Arguments:
        source: a name of `SEQUENCE_DATA`, a ``.ts`` file (UCR, UEA) or a ``.npz`` file of arrays ``inputs``, ``targets``
            and, where sequences end early, ``lengths``.
        test: a second such file; else the first is split at random.
        test_fraction: how much of it is for the test.
        seed: of the split, and of data that are generated.

    Raises:
        ValueError: for a name or a kind of file that is not known, or a file that is not what it should be.
        FileNotFoundError: where there is no such file.
    """
    if str(source) in SEQUENCE_DATA:
        learn, tried = SEQUENCE_DATA[str(source)](seed)
        return learn, tried
    path = Path(source)
    if path.suffix not in _READERS:
        hint = nearest(str(source), SEQUENCE_DATA)
        raise ValueError(
            f"data: {str(source)!r} is neither a file ending in {' or '.join(_READERS)} nor a known name{hint}; known: "
            f"{', '.join(SEQUENCE_DATA)}"
        )
    learn = _read(path)
    if test is None:
        return learn.split(1 - test_fraction, seed=seed)
    tried = _read(Path(test), learn.classes)
    if learn.inputs.shape[2:] != tried.inputs.shape[2:]:
        raise ValueError(
            f"{test}: {tuple(tried.inputs.shape[2:])} channels, the training file has {learn.inputs.shape[2:]}"
        )
    return learn, tried


def _read(path: Path, classes: tuple[str, ...] = ()) -> LabelledSequences:
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {str(path)!r}")
    try:
        return _READERS[path.suffix](path, classes)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
