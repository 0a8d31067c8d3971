"""Pathfinder: the statistics of the published images, and that labels say what was drawn."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from statescan.data import PATHFINDER, PathfinderSettings, pathfinder, pathfinder_batch


@cache
def images() -> list:
    return [pathfinder(32, seed=seed) for seed in range(100)]


def test_statistics_are_those_of_the_published_generator() -> None:
    """Of 200 of its images at 32 pixels, here of 100; without the dots, nearly invisible there."""
    values = np.stack([image.unmarked for image in images()])
    lit = values[values > 0.1]
    ours = [values.mean(), values.mean((1, 2)).std(), (values > 0.1).mean(), *np.quantile(lit, [0.1, 0.5, 0.9])]
    published = [0.074, 0.011, 0.134, 0.14, 0.56, 0.83]
    np.testing.assert_allclose(ours, published, rtol=0.15)
    assert values.max() == pytest.approx(1.15, rel=0.02)


def test_labels_are_even() -> None:
    labels = [image.label for image in images()]
    # Three standard deviations of a fair coin.
    assert abs(np.mean(labels) - 0.5) < 3 * 0.5 / np.sqrt(len(labels))


@pytest.mark.parametrize(
    "settings", [PATHFINDER[32], dataclasses.replace(PATHFINDER[128], contour_length=6)], ids=["32", "128"]
)
def test_snakes_hang_together_and_labels_say_which_dots_do(settings: PathfinderSettings) -> None:
    margin = max(settings.margins)
    for image in images()[:60] if settings.size == 32 else [pathfinder(settings, seed=seed) for seed in range(4)]:
        for points, drawn in zip(image.snakes, image.drawn, strict=True):
            assert len(points) == settings.contour_length + 1
            # A paddle and the gap before it, in whole pixels that are always rounded up.
            steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
            assert steps.max() <= settings.paddle_length + 2 * margin + 2
            for row, column in points:
                assert drawn[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max() > 0.1
        origin, terminal = image.marked
        assert image.label == int(origin == terminal)
        assert image.markers[0].tolist() == image.snakes[origin][0].tolist()
        assert image.markers[1].tolist() == image.snakes[terminal][-1].tolist()
        for row, column in image.markers:
            assert image.values[row, column] >= 0.95
        assert (image.values >= image.drawn.max(0)).all()


def test_the_two_begin_at_the_distance_that_was_set() -> None:
    for image in images()[:50]:
        distance = np.linalg.norm(image.snakes[0][0] - image.snakes[1][0])
        assert abs(distance - PATHFINDER[32].seed_distance) <= 1


def test_path_x() -> None:
    image = pathfinder(dataclasses.replace(PATHFINDER[128], contour_length=4), seed=1)
    assert image.values.shape == (128, 128)
    assert 0.005 < image.values.mean() < 0.05
    settings = PATHFINDER[128]
    assert (settings.contour_length, settings.seed_distance, settings.margins) == (14, 20, (2, 3))


def test_an_image_is_a_function_of_its_seed() -> None:
    first, again, other = (pathfinder(32, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.values, again.values) and first.label == again.label
    assert not np.array_equal(first.values, other.values)
    assert [pathfinder(32, seed=3, label=label).label for label in (0, 1)] == [0, 1]


def test_batches_are_sequences() -> None:
    inputs, labels = pathfinder_batch(32, 3, seed=0)
    assert inputs.shape == (3, 1024, 1) and inputs.dtype == torch.float32
    assert inputs.amin() == 0 and inputs.amax() == 1
    assert labels.shape == (3,) and labels.dtype == torch.int64
    again, _ = pathfinder_batch(32, 2, seed=0)
    assert torch.equal(again, inputs[:2])
    assert pathfinder(32).pixels.dtype == np.uint8 and pathfinder(32).pixels.max() == 255


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pathfinder(48), "size: expected 32, 64, 128 or settings, got 48"),
        (lambda: pathfinder(32, label=2), "label: expected 0, 1 or None, got 2"),
        (lambda: pathfinder_batch(32, 0, seed=0), "batch_size: expected at least 1, got 0"),
        (lambda: PathfinderSettings(32, thickness=0.3), "thickness: expected a multiple of 0.5, got 0.3"),
        (lambda: PathfinderSettings(28), "size: expected more than four times the seed_distance of 7, got 28"),
        (lambda: PathfinderSettings(32, margins=()), r"margins: expected at least one, each at least 1, got \(\)"),
        (lambda: PathfinderSettings(32, contour_length=1), "contour_length: expected at least 2, got 1"),
    ],
)
def test_mistakes_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
