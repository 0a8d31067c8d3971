"""Digits drawn with strokes of random shape: images of ten classes, generated from a seed, for trials without files."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

#: Points of a stroke after it was smoothed.
_POINTS = 24

# Each digit is a list of strokes in a box from (-1, -1), top left, to (1, 1): corners, or (x, y, rx, ry, from, to), an arc
# in degrees, clockwise from the right.
_ARC = tuple[float, float, float, float, float, float]
_STROKES: dict[int, list[list[tuple[float, float]] | _ARC]] = {
    0: [(0.0, 0.0, 0.62, 0.95, -90.0, 270.0)],
    1: [[(-0.35, -0.6), (0.1, -0.95), (0.1, 0.95)]],
    2: [(0.0, -0.45, 0.6, 0.5, 180.0, 400.0), [(0.46, -0.13), (-0.6, 0.9)], [(-0.6, 0.9), (0.65, 0.9)]],
    3: [(-0.05, -0.48, 0.55, 0.45, 200.0, 450.0), (-0.05, 0.45, 0.65, 0.48, 270.0, 520.0)],
    4: [[(0.2, -0.95), (-0.65, 0.3), (0.7, 0.3)], [(0.3, -0.4), (0.3, 0.95)]],
    5: [[(0.55, -0.9), (-0.45, -0.9)], [(-0.45, -0.9), (-0.5, -0.1)], (-0.02, 0.35, 0.62, 0.55, 215.0, 500.0)],
    6: [(0.45, 0.25, 0.98, 1.2, 270.0, 190.0), (0.02, 0.42, 0.55, 0.5, 0.0, 360.0)],
    7: [[(-0.6, -0.9), (0.6, -0.9)], [(0.6, -0.9), (-0.15, 0.95)]],
    8: [(0.0, -0.48, 0.48, 0.45, 90.0, 450.0), (0.0, 0.46, 0.6, 0.5, -90.0, 270.0)],
    9: [(-0.02, -0.42, 0.55, 0.5, 0.0, 360.0), [(0.53, -0.45), (0.5, 0.2), (0.25, 0.95)]],
}


def stroke_digits(count: int, *, seed: int = 0, size: int = 28) -> tuple[Tensor, Tensor]:
    """Digits drawn with strokes: slanted, turned, stretched, moved, bent and thickened at random, with some noise.

    Arguments:
        count: images; the classes are drawn evenly.
        seed: of everything; the first images do not depend on how many follow.
        size: side in pixels.

    Returns:
        images (count, 1, size, size) float32 from 0 (paper) to 1 (ink), and the digits (count,) int64.

    Raises:
        ValueError: fewer than one image, or sides below 8 pixels.
    """
    if count < 1 or size < 8:
        raise ValueError(f"count, size: at least 1 and 8, got {count} and {size}")
    labels = np.empty(count, dtype=np.int64)
    images = np.empty((count, 1, size, size), dtype=np.float32)
    centres = (np.arange(size) + 0.5) / size * 2.6 - 1.3
    grid = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    for index in range(count):
        stream = np.random.default_rng([seed, index])
        labels[index] = stream.integers(10)
        starts, ends = _segments(int(labels[index]), stream)
        distance = _distance(grid, starts, ends).reshape(size, size)
        width, softness = stream.uniform(0.09, 0.2), 2.0 / size
        ink = np.clip((width - distance) / softness + 0.5, 0, 1) * stream.uniform(0.75, 1.0)
        images[index, 0] = np.clip(ink + 0.06 * stream.standard_normal((size, size)), 0, 1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _segments(digit: int, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of lines, (pieces, 2) where they start and where they end."""
    angle, slant = stream.normal(0, 0.14), stream.normal(0, 0.18)
    scale = stream.uniform(0.72, 1.05, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1.0, -slant], [0.0, 1.0]]) @ np.diag(scale)
    shift = stream.normal(0, 0.1, 2)
    # A slow wave bends all strokes alike, so that they still meet.
    phase, height, speed = stream.uniform(0, 2 * math.pi, 2), stream.normal(0, 0.07, 2), stream.uniform(1.5, 3.5, 2)
    starts, ends = [], []
    for stroke in _STROKES[digit]:
        points = _arc(stroke, stream) if isinstance(stroke, tuple) else _line(stroke, stream)
        bent = points + height * np.sin(speed * points[:, ::-1] + phase)
        placed = bent @ matrix.T + shift
        starts.append(placed[:-1])
        ends.append(placed[1:])
    return np.concatenate(starts), np.concatenate(ends)


def _arc(arc: _ARC, stream: np.random.Generator) -> np.ndarray:
    x, y, across, down, first, last = arc
    first, last = first + stream.normal(0, 8), last + stream.normal(0, 8)
    angles = np.radians(np.linspace(first, last, _POINTS))
    radii = np.array([across, down]) * stream.uniform(0.85, 1.12, 2)
    return np.array([x, y]) + radii * np.stack([np.cos(angles), np.sin(angles)], -1)


def _line(corners: list[tuple[float, float]], stream: np.random.Generator) -> np.ndarray:
    points = np.array(corners) + stream.normal(0, 0.06, (len(corners), 2))
    places = np.linspace(0, len(points) - 1, _POINTS)
    return np.stack([np.interp(places, np.arange(len(points)), points[:, axis]) for axis in (0, 1)], -1)


def _distance(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Distance of each point (points, 2) to the nearest piece."""
    # Horizontal and vertical parts by themselves: many times faster than arrays of pairs.
    x, y = (points[:, axis, None].astype(np.float32) - starts[:, axis].astype(np.float32) for axis in (0, 1))
    across, down = ((ends - starts)[:, axis].astype(np.float32) for axis in (0, 1))
    place = np.clip((x * across + y * down) / np.maximum(across**2 + down**2, np.float32(1e-12)), 0, 1)
    return np.sqrt(((x - place * across) ** 2 + (y - place * down) ** 2).min(1))
