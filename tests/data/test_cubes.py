"""Hyperspectral cubes: files, splits, windows, accuracy, and the made one."""

from __future__ import annotations

import builtins
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import spectral
from sklearn.decomposition import PCA
from sklearn.metrics import cohen_kappa_score

from statescan.data import (
    PARTS,
    BandReduction,
    Cube,
    Windows,
    make_cube,
    map_accuracy,
    material_spectra,
    read_cube,
    smooth_spectra,
    split_pixels,
)

VALUES = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
LABELS = np.random.default_rng(1).choice([0, 2, 7], (5, 6))


def write(folder: Path, kind: str) -> tuple[Path, Path]:
    cube, labels = folder / f"cube.{kind}", folder / f"labels.{kind}"
    if kind == "npy":
        np.save(cube, VALUES)
        np.save(labels, LABELS)
    elif kind == "mat":
        scipy.io.savemat(cube, {"cube": VALUES, "note": "text"})
        scipy.io.savemat(labels, {"gt": LABELS.astype(np.uint8)})
    elif kind == "hdr":
        spectral.envi.save_image(str(cube), VALUES, interleave="bil")
        spectral.envi.save_image(str(labels), LABELS.astype(np.int16))
    else:
        for place, name, array in ((cube, "cube", VALUES), (labels, "gt", LABELS)):
            with h5py.File(place.with_suffix(".mat"), "w") as file:
                file[name] = array.T  # MATLAB counts the first axis fastest
        # The head that marks a file of version 7.3.
        for place in (cube, labels):
            place = place.with_suffix(".mat")
            body = place.read_bytes()
            place.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 384 + body)
        return cube.with_suffix(".mat"), labels.with_suffix(".mat")
    return cube, labels


@pytest.mark.parametrize("kind", ["npy", "mat", "hdr", "mat73"])
def test_every_kind_of_file_gives_the_same_cube(tmp_path: Path, kind: str) -> None:
    cube = read_cube(*write(tmp_path, kind))
    assert cube.values.dtype == np.float32 and np.array_equal(cube.values, VALUES)
    assert cube.labels is not None
    assert np.array_equal(cube.labels, np.select([LABELS == 2, LABELS == 7], [1, 2])), "labels are counted anew"
    assert cube.classes == ("class 2", "class 7")


def test_bands_are_left_out_and_classes_named(tmp_path: Path) -> None:
    cube = read_cube(*write(tmp_path, "npy"), drop_bands=(1, 3), classes=("grass", "soil"))
    assert np.array_equal(cube.values, VALUES[..., [0, 2]]) and cube.classes == ("grass", "soil")


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    cube, labels = write(tmp_path, "mat")
    scipy.io.savemat(tmp_path / "two.mat", {"a": VALUES, "b": VALUES})
    np.save(tmp_path / "wide.npy", LABELS[:, :5])
    np.save(tmp_path / "none.npy", np.zeros((5, 6)))
    np.save(tmp_path / "half.npy", np.full((5, 6), 0.5))
    np.save(tmp_path / "broken.npy", np.where(np.arange(4) == 2, np.nan, VALUES))
    (tmp_path / "cube.txt").write_text("1 2 3")
    (tmp_path / "bad.mat").write_text("no MATLAB file at all" * 20)
    (tmp_path / "bad.hdr").write_text("no ENVI file")
    cases = [
        ((tmp_path / "absent.mat",), {}, "cube: no file '.*absent.mat'"),
        ((tmp_path / "cube.txt",), {}, "is no .mat, .npy or ENVI .hdr file"),
        ((tmp_path / "bad.mat",), {}, "cannot be read as a MATLAB file"),
        ((tmp_path / "bad.hdr",), {}, "cannot be read as an ENVI image"),
        ((tmp_path / "two.mat",), {}, r"2 variables of 3 axes; it has a \(5, 6, 4\), b \(5, 6, 4\); name one"),
        ((cube,), {"variable": "cubes"}, "has no variable 'cubes'; it has cube"),
        ((labels,), {}, r"no variable of 3 axes; it has gt \(5, 6\)"),
        ((tmp_path / "none.npy",), {}, r"holds float64 of shape \(5, 6\), expected numbers \(rows, columns, bands\)"),
        ((cube, tmp_path / "wide.npy"), {}, r"labels: the map has shape \(5, 5\), the cube \(5, 6\) pixels of 4 bands"),
        ((cube, tmp_path / "none.npy"), {}, "labels: no pixel is labelled"),
        ((cube, tmp_path / "half.npy"), {}, "holds numbers that are no labels"),
        ((tmp_path / "broken.npy",), {}, "NaN or infinity in 30 values of band 2 .*leave these bands out"),
        ((cube,), {"drop_bands": (4,)}, "drop_bands: bands 0 to 3, got 4"),
        ((cube, labels), {"classes": ("one",)}, "classes: 1 names for 2 labels"),
    ]
    for paths, options, message in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_cube(*paths, **options)
    with pytest.raises(ValueError, match=r"cube: expected \(rows, columns, bands\), got shape \(0, 3, 2\)"):
        Cube(np.zeros((0, 3, 2)))


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"scheme": "blocks", "block": 8, "gap": 4}])
def test_splits_are_disjoint_whole_and_a_function_of_the_seed(options: dict) -> None:
    cube = make_cube(64, 64, bands=4, seed=1)
    assert cube.labels is not None
    parts = split_pixels(cube.labels, training=0.2, validation=0.1, **options)
    assert np.array_equal(parts, split_pixels(cube.labels, training=0.2, validation=0.1, **options))
    assert not np.array_equal(parts, split_pixels(cube.labels, training=0.2, validation=0.1, seed=1, **options))
    assert not parts[cube.labels == 0].any()
    for label in range(1, 7):
        counts = {name: int(((parts == number) & (cube.labels == label)).sum()) for name, number in PARTS.items()}
        assert min(counts["training"], counts["validation"], counts["test"]) > 0
        if not options:
            total = int((cube.labels == label).sum())
            assert counts["none"] == 0 and abs(counts["training"] - 0.2 * total) <= 0.5


def test_random_splits_take_counts_of_a_class() -> None:
    cube = make_cube(32, 32, bands=4)
    assert cube.labels is not None
    parts = split_pixels(cube.labels, training=5, validation=3)
    for label in range(1, 7):
        assert [((parts == number) & (cube.labels == label)).sum() for number in (1, 2)] == [5, 3]


@pytest.mark.parametrize("gap", [0, 3, 6])
def test_blocks_keep_their_distance(gap: int) -> None:
    cube = make_cube(96, 96, bands=4)
    assert cube.labels is not None
    parts = split_pixels(cube.labels, training=0.2, validation=0.1, scheme="blocks", block=16, gap=gap)
    learnt = np.argwhere(parts == PARTS["training"])
    others = np.argwhere(parts > PARTS["training"])
    distances = np.abs(learnt[:, None] - others[None]).max(-1)
    assert distances.min() == gap + 1
    for row, column in ((0, 0), (32, 48)):
        block = parts[row : row + 16, column : column + 16]
        assert len(set(block[block > 0].tolist())) <= 1


def test_splits_that_cannot_be_are_refused() -> None:
    labels = np.repeat([[1, 2]], 3, 0)
    cases = [
        ({"training": 0}, "training: a part between 0 and 1 or a whole number of pixels a class, got 0"),
        ({"training": 0.5, "validation": 0.5}, "leave no pixel for the test"),
        ({"training": 2, "validation": 1}, "class 1 has 3 pixels, too few for 2 of training, 1 of validation and one"),
        ({"scheme": "rows"}, "scheme: unknown 'rows'; known: random, blocks"),
        ({"scheme": "blocks", "block": 2}, "class 1 lies in 2 squares of side 2, expected at least one for each"),
        ({"scheme": "blocks", "block": 0}, "block, gap: at least 1 and at least 0, got 0 and 0"),
        ({"scheme": "blocks", "block": 1, "gap": 2}, "class 1 has no pixel left for"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            split_pixels(labels, **options)


# -- bands and windows ------------------------------------------------------------------------------------------------


def test_components_are_scikit_learns() -> None:
    spectra = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([5, 4, 3, 2, 1, 0.1])
    for whiten in (True, False):
        ours = BandReduction.fit(spectra, 3, whiten=whiten)
        theirs = PCA(3, whiten=whiten).fit(spectra)
        assert np.allclose(np.abs(ours(spectra)), np.abs(theirs.transform(spectra)), atol=1e-5)
        assert ours.kept == pytest.approx(theirs.explained_variance_ratio_.sum())
    alone = BandReduction.fit(spectra)(spectra)
    assert np.allclose(alone.std(0), 1, atol=1e-5) and np.allclose(alone.mean(0), 0, atol=1e-5)
    with pytest.raises(ValueError, match="components: from 1 to 6, got 7"):
        BandReduction.fit(spectra, 7)
    with pytest.raises(ValueError, match="cube: 5 bands, the reduction was fitted to 6"):
        ours(spectra[:, :5])


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
def test_windows_hold_their_pixel_and_mirror_the_border(window: int) -> None:
    windows = Windows(VALUES, window)
    pixels = np.arange(30)
    taken = windows.take(pixels)
    assert taken.shape == (30, window, window, 4)
    assert np.array_equal(taken[:, window // 2, window // 2], VALUES.reshape(30, 4))
    if window == 3:
        assert np.array_equal(taken[0, 0, 0], VALUES[1, 1])
        assert np.array_equal(taken[8], VALUES[0:3, 1:4])
    with pytest.raises(ValueError, match="window: at least 1, got 0"):
        Windows(VALUES, 0)


# -- accuracy ---------------------------------------------------------------------------------------------------------


def test_accuracy_is_what_it_is_defined_as() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 200)
    found = np.where(generator.random(200) < 0.7, truth, generator.integers(0, 4, 200))
    accuracy = map_accuracy(truth, found, 5)
    assert accuracy.overall == pytest.approx((truth == found).mean())
    assert accuracy.kappa == pytest.approx(cohen_kappa_score(truth, found))
    shares = [(found[truth == k] == k).mean() for k in range(4)]
    assert accuracy.average == pytest.approx(np.mean(shares)) and np.isnan(accuracy.per_class[4])
    assert map_accuracy(truth, truth, 4).kappa == 1 and map_accuracy(truth[:1], truth[:1], 4).kappa == 1
    with pytest.raises(ValueError, match="as many of both and at least one, got 200 and 3"):
        map_accuracy(truth, found[:3], 4)


# -- the made cube ----------------------------------------------------------------------------------------------------


def test_the_made_cube_is_a_function_of_its_seed() -> None:
    cube = make_cube(32, 40, bands=20, seed=3)
    assert cube.values.shape == (32, 40, 20) and len(cube.classes) == 6
    assert np.array_equal(cube.values, make_cube(32, 40, bands=20, seed=3).values)
    assert not np.array_equal(cube.values, make_cube(32, 40, bands=20, seed=4).values)
    assert cube.labels is not None and set(np.unique(cube.labels)) == set(range(7))
    with pytest.raises(ValueError, match="rows, columns, bands: at least 8, 8 and 4, got 4, 40, 20"):
        make_cube(4, 40, bands=20)


def test_materials_are_measured_where_the_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra, names, measured = material_spectra(50)
    assert measured and names[:2] == ("concrete", "lichen") and spectra.shape == (6, 50)
    assert spectra.min() > 0 and spectra.max() < 1
    leaf = spectra[names.index("maple leaf")]
    red, infrared = leaf[round(0.27 / 2.1 * 49)], leaf[round(0.45 / 2.1 * 49)]
    assert infrared > 3 * red, "leaves are bright beyond the red"
    real = builtins.__import__

    def without(name: str, *rest, **options):
        if name == "spectral":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    curves, _, measured = material_spectra(50)
    assert not measured and np.array_equal(curves, smooth_spectra(6, 50))
