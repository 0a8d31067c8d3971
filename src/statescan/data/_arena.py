"""The six tasks of the Long Range Arena (Tay et al. 2021, arXiv 2011.04006), in the form that state-space models take.

ListOps and Pathfinder are generated, or read where their published files are there; reviews, pairs of papers and images are
read. Tokens, lengths and splits are those of github.com/state-spaces/s4, whose results later papers compare with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statescan._names import nearest
from statescan.data import _arena_files as files
from statescan.data._listops import LISTOPS_VOCABULARY, ListOps
from statescan.data._pathfinder import pathfinder_batch
from statescan.data._sequences import LabelledSequences
from statescan.data._synthetic import batch_seed

#: Padding, characters that are not in the vocabulary, and the end of a text.
_SPECIALS = 3
_PAD, _UNKNOWN, _END = range(_SPECIALS)
#: Seed of the published splits.
_SPLIT = 42
_DIGITS = tuple("0123456789")
_SOURCE = "lra_release.gz of github.com/google-research/long-range-arena"


@dataclass(frozen=True)
class ArenaTask:
    """One task.

    Fields:
        name: of it.
        length: positions of a sequence, the most where they differ.
        classes: of the answers.
        examples: published sequences to learn from.
        files: what the folder given as data holds.
        generated: whether it can do without one.
        shorter: lengths it can be had at, in words.
    """

    name: str
    length: int
    classes: tuple[str, ...]
    examples: int
    files: str
    generated: bool
    shorter: str


@dataclass(frozen=True)
class ArenaData:
    """Sequences to learn from, to validate with and to be tried on."""

    learn: LabelledSequences
    validation: LabelledSequences
    test: LabelledSequences


_NAMES = ("different", "connected")
_PICTURES = "the published folder pathfinder{0}, with curv_contour_length_14 in it (" + _SOURCE + ")"
#: By name, in the published order.
ARENA: dict[str, ArenaTask] = {
    task.name: task
    for task in (
        ArenaTask(
            "listops",
            2000,
            _DIGITS,
            96_000,
            f"basic_train.tsv, basic_val.tsv and basic_test.tsv ({_SOURCE})",
            True,
            "8 or more",
        ),
        ArenaTask(
            "text",
            4096,
            ("negative", "positive"),
            25_000,
            "aclImdb as published (train/pos, train/neg, test/pos, test/neg; ai.stanford.edu/~amaas/data/sentiment), or "
            "train.csv and test.csv with columns text and label",
            False,
            "2 or more",
        ),
        ArenaTask(
            "retrieval",
            4000,
            ("different", "related"),
            147_086,
            f"new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv ({_SOURCE})",
            False,
            "2 or more",
        ),
        ArenaTask(
            "image",
            1024,
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            45_000,
            "CIFAR-10 as published, cifar-10-batches-bin or cifar-10-batches-py (www.cs.toronto.edu/~kriz/cifar.html)",
            False,
            "1024, 256 (16 x 16) or 64 (8 x 8)",
        ),
        ArenaTask("pathfinder", 1024, _NAMES, 160_000, _PICTURES.format(32), True, "1024, or 4096 (64 x 64)"),
        ArenaTask("pathx", 16384, _NAMES, 160_000, _PICTURES.format(128), True, "16384, 4096 or 1024"),
    )
}


def arena_task(name: str) -> ArenaTask:
    """The task of this name.

    Raises:
        ValueError: for a name that does not exist; the nearest is shown.
    """
    if name not in ARENA:
        hint = nearest(name, ARENA)
        raise ValueError(f"task: unknown name {name!r}{hint}; known: {', '.join(ARENA)}")
    return ARENA[name]


def read_arena(
    name: str,
    folder: Path | None = None,
    *,
    length: int | None = None,
    examples: int | None = None,
    test_examples: int | None = None,
    level: str = "characters",
    seed: int = 0,
) -> ArenaData:
    """The sequences of a task.

    Reviews have no part for validation; as in the published experiments the test part stands in. Images hold 5,000 of
    the training images back, Pathfinder's are split 80, 10 and 10 in 100, both as published.

    Arguments:
        name: of the task.
        folder: with the published files; not needed for what is generated.
        length: positions of a sequence; None: as published. Texts are cut, images averaged, expressions drawn shorter.
        examples: sequences to learn from, chosen at random; None: all.
        test_examples: the same for validation and for the test.
        level: a text's ``characters`` (those that occur 15 times, or once where documents are compared), or its ``bytes``.
        seed: of what is generated and chosen.

    Raises:
        ValueError: for a task, length or level that does not exist, numbers that cannot be, files that are not what
            they should be, or no folder where one is needed.
        FileNotFoundError: for files that are not there; says what to place where.
    """
    task = arena_task(name)
    if level not in ("characters", "bytes"):
        raise ValueError(f"level: expected characters or bytes, got {level!r}")
    for label, value in (("length", length), ("examples", examples), ("test_examples", test_examples)):
        if value is not None and value < 1:
            raise ValueError(f"{label}: expected at least 1, got {value}")
    if folder is None and not task.generated:
        raise ValueError(f"data: the task {name!r} is read from files; give a folder that holds {task.files}")
    read = _Reader(task, folder, length or task.length, examples, test_examples, level, seed)
    return {
        "listops": read.listops,
        "text": read.text,
        "retrieval": read.retrieval,
        "image": read.image,
        "pathfinder": read.pathfinder,
        "pathx": read.pathfinder,
    }[name]()


@dataclass(frozen=True)
class _Reader:
    """One reading, with its settings at hand."""

    task: ArenaTask
    folder: Path | None
    length: int
    examples: int | None
    test_examples: int | None
    level: str
    seed: int

    def listops(self) -> ArenaData:
        self._at_least(8)
        if self.folder is None:
            counts = [self.examples or self.task.examples, *(self.test_examples or 2000,) * 2]
            shortest = 500 if self.length == self.task.length else self.length // 4
            drawn = ListOps(shortest=shortest, longest=self.length).sequences(
                sum(counts), seed=batch_seed(self.seed, "listops", 0)
            )
            ids, lengths, values = (part.split(counts) for part in drawn)
            size = len(LISTOPS_VOCABULARY)
            return ArenaData(
                *(
                    LabelledSequences(some.to(torch.uint8), ends, answers, _DIGITS, size)
                    for some, ends, answers in zip(ids, lengths, values, strict=True)
                )
            )
        place = self._place("basic_train.tsv")
        known = {token: index for index, token in enumerate(LISTOPS_VOCABULARY)}
        found = []
        for part in ("train", "val", "test"):
            rows, labels = [], []
            for tokens, label in files.listops_rows(place / f"basic_{part}.tsv"):
                ids = [known.get(token, _UNKNOWN) for token in tokens[: self.length - 1]]
                rows.append(np.array([*ids, _END], dtype=np.uint8))
                labels.append(label)
            found.append(self._sequences(place / f"basic_{part}.tsv", rows, labels, len(LISTOPS_VOCABULARY)))
        return self._fewer(*found)

    def text(self) -> ArenaData:
        self._at_least(2)
        place = self._place("train", "train.csv", "train.tsv")
        parts = []
        for part in ("train", "test"):
            texts, labels = [], []
            for text, label in files.review_rows(place, part):
                texts.append(text[: self.length])
                labels.append(label)
            parts.append((place / part, texts, labels))
        encode, size = self._encoder(parts[0][1], least=15)
        learn, test = (self._sequences(path, map(encode, texts), labels, size) for path, texts, labels in parts)
        return self._fewer(learn, test, test)

    def retrieval(self) -> ArenaData:
        self._at_least(2)
        place = self._place("new_aan_pairs.train.tsv")
        parts = []
        for part in ("train", "eval", "test"):
            path = place / f"new_aan_pairs.{part}.tsv"
            rows = [(one[: self.length], two[: self.length], label) for one, two, label in files.pair_rows(path)]
            parts.append((path, rows))
        encode, size = self._encoder([text for one, two, _ in parts[0][1] for text in (one, two)], least=1)
        return self._fewer(*(self._pairs(path, rows, encode, size) for path, rows in parts))

    def image(self) -> ArenaData:
        if self.length not in (1024, 256, 64):
            raise ValueError(f"length: image can be had at {self.task.shorter}, got {self.length}")
        names = ("data_batch_1.bin", "data_batch_1")
        train, test = files.cifar_images(self._place(*names))
        order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(_SPLIT))
        learn = self._grey(*train)
        cut = int(len(order) * 0.9)
        if not 0 < cut < len(order):
            raise ValueError(f"{self.folder}: {len(order)} training images cannot be split")
        return self._fewer(learn.select(order[:cut]), learn.select(order[cut:]), self._grey(*test))

    def pathfinder(self) -> ArenaData:
        side = round(self.length**0.5)
        if self.length not in (1024, 4096, 16384):
            raise ValueError(f"length: {self.task.name} can be had at {self.task.shorter}, got {self.length}")
        if self.folder is None:
            if self.examples is None:
                raise ValueError(
                    f"examples: drawing an image takes a tenth of a second at 32 x 32 and seconds at 128 x 128; say how "
                    f"many (published: {self.task.examples:,}), or give a folder that holds {self.task.files}"
                )
            held = self.test_examples or max(1, self.examples // 8)
            counts = [self.examples, held, held]
            pixels, labels = pathfinder_batch(side, sum(counts), seed=batch_seed(self.seed, "pathfinder", 0))
            lengths = torch.full((len(labels),), self.length)
            drawn = zip(pixels.split(counts), lengths.split(counts), labels.split(counts), strict=True)
            return ArenaData(*(LabelledSequences(*part, self.task.classes) for part in drawn))
        rows = files.pathfinder_rows(self._place("curv_contour_length_14"))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SPLIT)).tolist()
        held = len(rows) // 10
        if not held:
            raise ValueError(f"{self.folder}: {len(rows)} images cannot be split 80, 10 and 10 in 100")
        wanted = (order[: len(rows) - 2 * held], order[len(rows) - 2 * held : len(rows) - held], order[-held:])
        most = (self.examples, self.test_examples, self.test_examples)
        parts = []
        for numbers, limit in zip(wanted, most, strict=True):
            some = [rows[number] for number in numbers[:limit]]
            pixels = torch.from_numpy(np.stack([files.grey_image(path, side) for path, _ in some]))
            inputs = pixels.flatten(1)[..., None].float() / 255
            labels = torch.tensor([label for _, label in some])
            parts.append(LabelledSequences(inputs, torch.full_like(labels, self.length), labels, self.task.classes))
        return ArenaData(*parts)

    def _at_least(self, least: int) -> None:
        if self.length < least:
            raise ValueError(f"length: {self.task.name} can be had at {self.task.shorter}, got {self.length}")

    def _place(self, *names: str) -> Path:
        assert self.folder is not None
        return files.locate(Path(self.folder), names, wanted=self.task.files)

    def _encoder(self, texts: Iterable[str], *, least: int) -> tuple[Callable[[str], np.ndarray], int]:
        """What makes a text's tokens, the end among them, and how many tokens there are."""
        keep = self.length - 1
        if self.level == "bytes":
            return lambda text: np.append(
                np.frombuffer(text.encode()[:keep], np.uint8).astype(np.int16) + _SPECIALS, _END
            ), 256 + _SPECIALS
        counts: Counter[int] = Counter()
        for text in texts:
            found, times = np.unique(_codes(text[:keep]), return_counts=True)
            counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
        known = sorted(code for code, times in counts.items() if times >= least)
        # The commonest first, as published; `ids` is in the order of `known`, for searching.
        by_count = sorted(known, key=lambda code: (-counts[code], code))
        places = {code: _SPECIALS + place for place, code in enumerate(by_count)}
        codes, ids = np.array(known, dtype=np.uint32), np.array([places[code] for code in known], dtype=np.int32)

        def encode(text: str) -> np.ndarray:
            wanted = _codes(text[:keep])
            if not len(codes):
                return np.append(np.full(len(wanted), _UNKNOWN), _END)
            place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
            return np.append(np.where(codes[place] == wanted, ids[place], _UNKNOWN), _END)

        return encode, _SPECIALS + len(known)

    def _sequences(
        self, path: Path, rows: Iterable[np.ndarray], labels: Sequence[int], vocab_size: int
    ) -> LabelledSequences:
        if not labels:
            raise ValueError(f"{path}: holds no examples")
        tokens, lengths = _padded(list(rows), vocab_size)
        return LabelledSequences(tokens, lengths, torch.tensor(labels), self.task.classes, vocab_size)

    def _pairs(
        self, path: Path, rows: Sequence[tuple[str, str, int]], encode: Callable[[str], np.ndarray], vocab_size: int
    ) -> LabelledSequences:
        if not rows:
            raise ValueError(f"{path}: holds no examples")
        texts = [encode(text) for one, two, _ in rows for text in (one, two)]
        tokens, lengths = _padded(texts, vocab_size)
        labels = torch.tensor([label for *_, label in rows])
        return LabelledSequences(
            tokens.view(len(rows), 2, -1), lengths.view(-1, 2), labels, self.task.classes, vocab_size
        )

    def _grey(self, images: np.ndarray, labels: np.ndarray) -> LabelledSequences:
        """Brightness (ITU-R 601, in whole numbers as pictures have it), averaged to the length, normalised."""
        red, green, blue = (images[:, channel].astype(np.int32) for channel in range(3))
        grey = torch.from_numpy((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).float()
        smaller = 32 // round(self.length**0.5)
        if smaller > 1:
            grey = torch.nn.functional.avg_pool2d(grey[:, None], smaller)[:, 0]
        inputs = ((grey - 122.6) / 61.0).flatten(1)[..., None]
        lengths = torch.full((len(labels),), self.length)
        return LabelledSequences(inputs, lengths, torch.from_numpy(labels), self.task.classes)

    def _fewer(self, learn: LabelledSequences, validation: LabelledSequences, test: LabelledSequences) -> ArenaData:
        parts = []
        for number, (part, most) in enumerate(
            zip((learn, validation, test), (self.examples, self.test_examples, self.test_examples), strict=True)
        ):
            if most is not None and most < len(part):
                seed = batch_seed(self.seed, "fewer", min(number, 1))
                order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
                part = part.select(order[:most])
            parts.append(part)
        return ArenaData(*parts)


def _codes(text: str) -> np.ndarray:
    """The characters' numbers."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _padded(rows: Sequence[np.ndarray], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor of the smallest whole numbers that hold them, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = np.full((len(rows), int(lengths.max())), _PAD, dtype=np.uint8 if vocab_size <= 256 else np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(tokens), lengths
