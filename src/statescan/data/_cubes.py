"""Hyperspectral cubes and maps of labels: users' files, splits of the labelled pixels, windows around pixels, accuracy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

#: Parts of a split as they stand in its map.
PARTS = {"none": 0, "training": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class Cube:
    """An image of many bands and, where it is known, what its pixels show.

    Fields:
        values: (rows, columns, bands), float32.
        labels: (rows, columns), whole numbers, 0 where nothing is known, else 1 to the number of classes; None for none.
        classes: names of the classes 1, 2, …
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not self.values.size:
            raise ValueError(f"cube: expected (rows, columns, bands), got shape {self.values.shape}")
        broken = ~np.isfinite(self.values)
        if broken.any():
            bands = np.nonzero(broken.any((0, 1)))[0]
            shown = ", ".join(map(str, bands[:8])) + (", …" if len(bands) > 8 else "")
            raise ValueError(
                f"cube: NaN or infinity in {int(broken.sum())} values of band {shown} (counted from 0); leave these bands "
                "out (drop_bands) or fill the values"
            )
        if self.labels is None:
            return
        if self.labels.shape != self.values.shape[:2]:
            raise ValueError(
                f"labels: the map has shape {self.labels.shape}, the cube {self.values.shape[:2]} pixels of "
                f"{self.values.shape[2]} bands; expected one label a pixel"
            )
        if not (self.labels > 0).any():
            raise ValueError("labels: no pixel is labelled; 0 stands for unknown, classes are 1, 2, …")
        if self.labels.max() != len(self.classes):
            raise ValueError(f"classes: {len(self.classes)} names for labels up to {self.labels.max()}")


def read_cube(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    variable: str | None = None,
    labels_variable: str | None = None,
    drop_bands: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> Cube:
    """A cube from a file, and its map of labels from another.

    Arguments:
        path: a ``.mat`` file (also of version 7.3), a ``.npy`` file, or the ``.hdr`` file of an ENVI image; of shape (rows,
            columns, bands).
        labels: such a file of shape (rows, columns); labels may skip numbers and are counted anew in their order, 0 stays.
        variable, labels_variable: which one of several in a ``.mat`` file; the only one of its number of axes unless given.
        drop_bands: bands to leave out, counted from 0.
        classes: names of the classes in the order of their labels; ``class 3`` for the label 3 unless given.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file of another kind, an unknown variable, shapes that do not fit, NaN, or no labelled pixel.
    """
    values = np.ascontiguousarray(_read(path, 3, variable, "cube"), dtype=np.float32)
    if drop_bands:
        bands = values.shape[2]
        wrong = [band for band in drop_bands if not 0 <= band < bands]
        if wrong:
            raise ValueError(f"drop_bands: bands 0 to {bands - 1}, got {wrong[0]}")
        values = np.delete(values, list(drop_bands), axis=2)
    if labels is None:
        return Cube(values)
    given = _read(labels, 2, labels_variable, "labels")
    if not np.all(np.equal(np.mod(given, 1), 0)) or given.min() < 0:
        raise ValueError(f"labels: {str(labels)!r} holds numbers that are no labels; expected whole numbers from 0 on")
    numbers = np.unique(given.astype(np.int64))
    numbers = numbers[numbers > 0]
    if classes and len(classes) != len(numbers):
        raise ValueError(f"classes: {len(classes)} names for {len(numbers)} labels")
    counted = np.where(given > 0, np.searchsorted(numbers, given) + 1, 0)
    return Cube(values, counted, tuple(classes) or tuple(f"class {number}" for number in numbers))


def _read(path: str | os.PathLike[str], axes: int, variable: str | None, what: str) -> np.ndarray:
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{what}: no file {str(place)!r}")
    kind = place.suffix.lower()
    if kind == ".npy":
        try:
            array = np.load(place, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{what}: {str(place)!r} cannot be read as an array: {error}") from None
    elif kind == ".mat":
        array = _choose(_mat(place, what), axes, variable, f"{what}: {str(place)!r}")
    elif kind == ".hdr":
        array = _envi(place, what)
        array = array[:, :, 0] if axes == 2 and array.ndim == 3 and array.shape[2] == 1 else array
    else:
        raise ValueError(f"{what}: {str(place)!r} is no .mat, .npy or ENVI .hdr file")
    if array.ndim != axes or array.dtype.kind not in "biuf":
        shape = "(rows, columns, bands)" if axes == 3 else "(rows, columns)"
        raise ValueError(f"{what}: {str(place)!r} holds {array.dtype} of shape {array.shape}, expected numbers {shape}")
    return array


def _mat(place: Path, what: str) -> dict[str, np.ndarray]:
    """The numeric arrays of a MATLAB file, in MATLAB's order of axes."""
    import scipy.io

    try:
        return {name: v for name, v in scipy.io.loadmat(place).items() if isinstance(v, np.ndarray) and v.ndim >= 2}
    except NotImplementedError:  # version 7.3 is HDF5
        import h5py

        with h5py.File(place) as file:
            return {name: np.asarray(v).T for name, v in file.items() if isinstance(v, h5py.Dataset) and v.ndim >= 2}
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{what}: {str(place)!r} cannot be read as a MATLAB file: {error}") from None


def _choose(arrays: Mapping[str, np.ndarray], axes: int, variable: str | None, what: str) -> np.ndarray:
    shown = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
    if variable is not None:
        if variable not in arrays:
            raise ValueError(f"{what} has no variable {variable!r}; it has {shown}")
        return arrays[variable]
    fitting = [name for name, array in arrays.items() if array.ndim == axes]
    if len(fitting) != 1:
        found = "no variable" if not fitting else f"{len(fitting)} variables"
        raise ValueError(f"{what} has {found} of {axes} axes; it has {shown}" + ("; name one" if fitting else ""))
    return arrays[fitting[0]]


def _envi(place: Path, what: str) -> np.ndarray:
    import spectral
    from spectral.io.spyfile import SpyException

    try:
        image = spectral.envi.open(str(place))
    except (SpyException, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{what}: {str(place)!r} cannot be read as an ENVI image: {error}") from None
    return np.array(image.load(), copy=True)


# -- splits -----------------------------------------------------------------------------------------------------------


def split_pixels(
    labels: np.ndarray,
    *,
    training: float = 0.25,
    validation: float = 0.25,
    scheme: Literal["random", "blocks"] = "random",
    block: int = 16,
    gap: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Which labelled pixels a model learns from, is validated with and is tested on: a map of `PARTS`.

    Windows around neighbouring pixels overlap, so that with ``random``, the usual split, a test pixel's window mostly
    holds pixels that were learnt from: scores are then too good. ``blocks`` gives whole squares of the image to one part
    and leaves out what lies within `gap` of a pixel that is learnt from.

    Arguments:
        labels: (rows, columns), 0 where nothing is known.
        training, validation: parts of each class below 1, or counts of pixels a class; the rest is for the test.
        scheme: ``random``, or ``blocks``.
        block: side of the squares.
        gap: with ``blocks``, a window's side - 1 has no window of test or validation share a pixel with one of training.
        seed: of the choice.

    Raises:
        ValueError: where a class has too few pixels, or lies in too few squares, for a pixel in each part.
    """
    for name, size in (("training", training), ("validation", validation)):
        if not (0 < size < 1 or (size >= 1 and float(size).is_integer())):
            raise ValueError(f"{name}: a part between 0 and 1 or a whole number of pixels a class, got {size}")
    if scheme not in ("random", "blocks"):
        raise ValueError(f"scheme: unknown {scheme!r}; known: random, blocks")
    if training < 1 and validation < 1 and training + validation >= 1:
        raise ValueError(f"training, validation: {training} and {validation} leave no pixel for the test")
    generator = np.random.default_rng(seed)
    if scheme == "random":
        return _split_random(labels, training, validation, generator)
    if block < 1 or gap < 0:
        raise ValueError(f"block, gap: at least 1 and at least 0, got {block} and {gap}")
    return _split_blocks(labels, training, validation, block, gap, generator)


def _wanted(size: float, count: int) -> int:
    return max(1, round(size * count)) if size < 1 else int(size)


def _split_random(labels: np.ndarray, training: float, validation: float, generator: np.random.Generator) -> np.ndarray:
    parts = np.zeros(labels.shape, dtype=np.int8)
    for label in range(1, labels.max() + 1):
        pixels = generator.permutation(np.flatnonzero(labels == label))
        first = _wanted(training, len(pixels))
        second = first + _wanted(validation, len(pixels))
        if second >= len(pixels):
            raise ValueError(
                f"labels: class {label} has {len(pixels)} pixels, too few for {first} of training, {second - first} of "
                "validation and one of the test"
            )
        for part, chosen in zip(("training", "validation", "test"), np.split(pixels, [first, second]), strict=True):
            parts.flat[chosen] = PARTS[part]
    return parts


def _split_blocks(
    labels: np.ndarray, training: float, validation: float, block: int, gap: int, generator: np.random.Generator
) -> np.ndarray:
    rows, columns = labels.shape
    across = -(-columns // block)
    square = (np.arange(rows)[:, None] // block) * across + np.arange(columns)[None] // block
    count = int(square.max()) + 1
    held = np.stack(
        [np.bincount(square[labels == label], minlength=count) for label in range(1, labels.max() + 1)]
    )  # (classes, squares)
    for index, where in enumerate((held > 0).sum(1)):
        if where < 3:
            raise ValueError(
                f"labels: class {index + 1} lies in {where} squares of side {block}, expected at least one for each of "
                "training, validation and test; use smaller squares (block) or scheme='random'"
            )
    of_square = np.full(count, PARTS["test"], dtype=np.int8)
    for later, (part, size) in zip((2, 1), (("training", training), ("validation", validation)), strict=True):
        wanted = np.array([_wanted(size, int(pixels)) for pixels in held.sum(1)])
        for place in _choose_squares(held, wanted, of_square == PARTS["test"], later, generator):
            of_square[place] = PARTS[part]
    parts = np.where(labels > 0, of_square[square], 0).astype(np.int8)
    for part, size in (("training", training), ("validation", validation)):
        if size >= 1:
            parts = _thinned(parts, labels, PARTS[part], int(size), generator)
    if gap:
        near = _near(parts == PARTS["training"], gap)
        parts[near & (parts != PARTS["training"])] = 0
    for part in ("training", "validation", "test"):
        for label in range(1, labels.max() + 1):
            if not ((parts == PARTS[part]) & (labels == label)).any():
                raise ValueError(
                    f"labels: class {label} has no pixel left for {part} at a distance of more than {gap} from those of "
                    "training; use larger squares (block), smaller windows, or scheme='random'"
                )
    return parts


def _choose_squares(
    held: np.ndarray, wanted: np.ndarray, free: np.ndarray, later: int, generator: np.random.Generator
) -> list[int]:
    """Squares that hold as many pixels of each class as are wanted, and few more.

    Of every class, as many free squares that hold it are left over as there are `later` parts.
    """
    free, lacking, chosen = free.copy(), wanted.astype(np.int64), []
    while (lacking > 0).any():
        index = int(np.argmax(lacking / wanted))
        spare = np.array(
            [(held[:, place] == 0).all() or _leaves(held, free, place, later) for place in range(len(free))]
        )
        places = np.flatnonzero(free & spare & (held[index] > 0))
        if not len(places):
            lacking[index] = 0
            continue
        useful = np.minimum(held[:, places], np.maximum(lacking, 0)[:, None]).sum(0)
        gain = useful - 0.5 * (held[:, places].sum(0) - useful)
        # One of the better half, so that seeds give different splits.
        better = places[np.argsort(-gain, kind="stable")][: max(1, len(places) // 2)]
        place = int(generator.choice(better))
        free[place] = False
        lacking = lacking - held[:, place]
        chosen.append(place)
    return chosen


def _leaves(held: np.ndarray, free: np.ndarray, place: int, later: int) -> bool:
    """Whether, without this square, enough free squares are left of each class it holds."""
    inside = held[:, place] > 0
    return bool((((held[inside] > 0) & free).sum(1) > later).all())


def _thinned(parts: np.ndarray, labels: np.ndarray, part: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """At most so many pixels of each class in a part."""
    for label in range(1, labels.max() + 1):
        pixels = np.flatnonzero((parts == part) & (labels == label))
        parts.flat[generator.permutation(pixels)[size:]] = 0
    return parts


def _near(mask: np.ndarray, distance: int) -> np.ndarray:
    """Cells whose row and column are both at most so far from those of a cell of the mask."""
    for axis in (0, 1):
        found = mask.copy()
        for step in range(1, min(distance, mask.shape[axis] - 1) + 1):
            ahead = [slice(None), slice(None)]
            behind = [slice(None), slice(None)]
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            found[tuple(ahead)] |= mask[tuple(behind)]
            found[tuple(behind)] |= mask[tuple(ahead)]
        mask = found
    return mask


# -- bands and windows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BandReduction:
    """Bands to fewer numbers: standardised bands, or principal components, as a matrix.

    Fields:
        mean: (bands,).
        matrix: (bands, components).
        kept: part of the bands' variance that the components hold.
    """

    mean: np.ndarray
    matrix: np.ndarray
    kept: float = 1.0

    @classmethod
    def fit(cls, spectra: np.ndarray, components: int | None = None, *, whiten: bool = True) -> BandReduction:
        """The principal components of spectra (pixels, bands), or each band by itself where no number is given.

        Arguments:
            components: how many.
            whiten: to variance 1 each, as published.
        """
        bands = spectra.shape[1]
        mean = spectra.mean(0, dtype=np.float64)
        if components is None:
            scale = spectra.std(0, dtype=np.float64)
            return cls(mean, np.diag(1 / np.where(scale > 0, scale, 1.0)))
        if not 1 <= components <= min(bands, len(spectra)):
            raise ValueError(f"components: from 1 to {min(bands, len(spectra))}, got {components}")
        covariance = np.cov(spectra.astype(np.float64), rowvar=False).reshape(bands, bands)
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
        # The sign of a component is free: its largest part is positive.
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(bands)])
        matrix = vectors[:, :components]
        if whiten:
            least = variances[0] * 1e-12
            matrix = matrix / np.sqrt(np.maximum(variances[:components], max(least, 1e-300)))
        total = float(variances.sum())
        return cls(mean, matrix, float(variances[:components].sum()) / total if total else 1.0)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(…, bands) -> (…, components), float32."""
        if values.shape[-1] != len(self.mean):
            raise ValueError(f"cube: {values.shape[-1]} bands, the reduction was fitted to {len(self.mean)}")
        return ((values - self.mean) @ self.matrix).astype(np.float32)


@dataclass(frozen=True)
class Windows:
    """Square windows around the pixels of a cube, its border mirrored.

    A pixel stands in row and column window // 2 of its window.

    Arguments:
        values: (rows, columns, bands).
        window: side.
    """

    values: np.ndarray
    window: int
    _view: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window: at least 1, got {self.window}")
        before, after = self.window // 2, (self.window - 1) // 2
        margins = ((before, after), (before, after), (0, 0))
        padded = np.pad(self.values, margins, mode="symmetric" if min(self.values.shape[:2]) == 1 else "reflect")
        view = np.lib.stride_tricks.sliding_window_view(padded, (self.window, self.window), axis=(0, 1))
        object.__setattr__(self, "_view", view)

    def take(self, pixels: np.ndarray) -> np.ndarray:
        """Numbers of pixels, counted along the rows -> their windows (pixels, window, window, bands)."""
        columns = self.values.shape[1]
        return np.ascontiguousarray(self._view[pixels // columns, pixels % columns].transpose(0, 2, 3, 1))


# -- accuracy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapAccuracy:
    """How well labels are found.

    Fields:
        overall: part of the pixels (OA).
        average: mean of the parts of each class (AA).
        kappa: Cohen's: agreement beyond that of chance.
        per_class: part of each class's pixels; NaN for a class without any.
        confusion: (classes, classes), pixels by truth and answer.
    """

    overall: float
    average: float
    kappa: float
    per_class: tuple[float, ...]
    confusion: np.ndarray


def map_accuracy(truth: np.ndarray, found: np.ndarray, classes: int) -> MapAccuracy:
    """Accuracy of answers, both numbered from 0 to classes - 1, over all given pixels.

    Raises:
        ValueError: where their numbers differ, or there is no pixel.
    """
    truth, found = np.asarray(truth).ravel(), np.asarray(found).ravel()
    if truth.shape != found.shape or not len(truth):
        raise ValueError(f"truth, found: as many of both and at least one, got {len(truth)} and {len(found)}")
    confusion = np.bincount(truth * classes + found, minlength=classes * classes).reshape(classes, classes)
    total = confusion.sum()
    overall = float(np.trace(confusion) / total)
    with np.errstate(invalid="ignore"):
        per_class = np.diag(confusion) / confusion.sum(1)
    chance = float((confusion.sum(0) * confusion.sum(1)).sum() / total**2)
    kappa = 1.0 if chance == 1 else (overall - chance) / (1 - chance)
    return MapAccuracy(overall, float(np.nanmean(per_class)), kappa, tuple(map(float, per_class)), confusion)
