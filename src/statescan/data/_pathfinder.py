"""Pathfinder: do two dots lie on one dashed curve? The images of Long Range Arena, drawn afresh.

Linsley et al. 2018 (the task); Tay et al. 2021 (32 and 128 pixels as a sequence of 1,024 and 16,384 numbers). Drawn by the
rules of github.com/drewlinsley/pathfinder with Long Range Arena's settings: two long dashed curves ("snakes") whose
dashes ("paddles") turn gently, short ones to distract, two dots. Lines are drawn twice as fine and made smaller with
Lanczos' filter; the draws are not those of the published program, their distribution is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from statescan.data._synthetic import at_least, batch_seed

#: Drawn so many times finer, then made smaller.
_FINER = 2
#: Tries of a paddle beside the first.
_PADDLE_RETRIES = 2
#: Tries of a distracting snake beside the first.
_SNAKE_RETRIES = 4
#: Where less of the image than this is free, no more is drawn.
_LEAST_FREE = 0.01


@dataclass(frozen=True)
class PathfinderSettings:
    """How an image is drawn; lengths in pixels.

    Fields:
        size: of the image's side.
        padding: border that is left free.
        seed_distance: between the beginnings of the two long snakes.
        paddle_length, thickness: of a paddle.
        margins: distances kept around a paddle; one is drawn for each image.
        marker_radius: of a dot.
        continuity: how much straighter than by chance a snake goes on.
        contour_length: paddles of a long snake.
        distractor_length, distractors: paddles of a short snake, and how many of these.
        snake_contrast, paddle_contrast: whose product is the brightness of a long snake; that of a short one is the first.
    """

    size: int
    padding: int = 1
    seed_distance: int = 7
    paddle_length: int = 2
    thickness: float = 0.5
    margins: tuple[int, ...] = (1,)
    marker_radius: float = 1.5
    continuity: float = 1.0
    contour_length: int = 14
    distractor_length: int = 4
    distractors: int = 5
    snake_contrast: float = 2.0
    paddle_contrast: float = 0.75

    def __post_init__(self) -> None:
        for name in ("size", "padding", "seed_distance", "paddle_length", "contour_length", "distractor_length"):
            at_least(name, getattr(self, name), 2 if name.endswith("r_length") else 1)
        if not self.margins or min(self.margins) < 1:
            raise ValueError(f"margins: expected at least one, each at least 1, got {self.margins}")
        if self.thickness * _FINER != round(self.thickness * _FINER) or self.thickness <= 0:
            raise ValueError(f"thickness: expected a multiple of {1 / _FINER}, got {self.thickness}")
        if self.size <= 4 * self.seed_distance:
            raise ValueError(
                f"size: expected more than four times the seed_distance of {self.seed_distance}, got {self.size}"
            )


#: Long Range Arena's settings (the hard level, contours of 14) by the image's side. Numbers of distractors are whole, as
#: the integer division of the program's time made them.
PATHFINDER: dict[int, PathfinderSettings] = {
    32: PathfinderSettings(32),
    64: PathfinderSettings(
        64,
        seed_distance=12,
        paddle_length=5,
        thickness=1.0,
        marker_radius=2.5,
        continuity=1.8,
        distractors=5,
        snake_contrast=0.8,
        paddle_contrast=1.0,
    ),
    128: PathfinderSettings(
        128,
        seed_distance=20,
        paddle_length=5,
        thickness=1.5,
        margins=(2, 3),
        marker_radius=3,
        continuity=1.8,
        distractors=8,
        snake_contrast=0.9,
        paddle_contrast=1.0,
    ),
}


@dataclass(frozen=True, eq=False)
class PathfinderImage:
    """An image and how it came about.

    Fields:
        values: (size, size), float64, 0 is empty; brighter than 1 where contrasts say so.
        unmarked: the same without the dots.
        label: 1 where both dots are on one snake, else 0.
        snakes: of the two long ones, the ends of their paddles: (paddles + 1, 2) of row and column, tip to tip.
        drawn: (2, size, size): each long snake alone.
        markers: (2, 2): row and column of the dots.
        marked: which snake each dot is on.
    """

    values: np.ndarray
    unmarked: np.ndarray
    label: int
    snakes: tuple[np.ndarray, np.ndarray]
    drawn: np.ndarray
    markers: np.ndarray
    marked: tuple[int, int]

    @property
    def pixels(self) -> np.ndarray:
        """(size, size), uint8: the darkest is 0, the brightest 255, as the published files have it."""
        low, high = self.values.min(), self.values.max()
        return np.round((self.values - low) * (255 / (high - low))).astype(np.uint8)


def pathfinder(size: int | PathfinderSettings = 32, *, seed: int = 0, label: int | None = None) -> PathfinderImage:
    """Draw one image; a pure function of its arguments.

    Two long snakes seldom fit, and are begun anew until they do: at 64 and 128 pixels that takes seconds.

    Arguments:
        size: 32, 64 or 128 for the settings of Long Range Arena, or settings.
        seed: of all that is random.
        label: 0 or 1; None: either, evenly.

    Raises:
        ValueError: for a size without settings, another label, or settings by which no two snakes fit.
    """
    settings = _settings(size)
    if label not in (None, 0, 1):
        raise ValueError(f"label: expected 0, 1 or None, got {label!r}")
    random = np.random.default_rng(seed)
    drawn_label = int(random.integers(2))
    label = drawn_label if label is None else label
    canvas = _Canvas(settings, int(random.choice(settings.margins)), random)
    for _ in range(1_000_000):
        found = canvas.two_snakes()
        if found is not None:
            break
    else:
        raise ValueError(
            f"settings: two snakes of {settings.contour_length} paddles do not fit in {settings.size} pixels"
        )
    images, snakes = found
    unmarked = canvas.distract(np.maximum(*images))
    image = unmarked
    origin = int(random.integers(2))
    terminal = origin if label else 1 - origin
    markers = np.array([snakes[origin][0], snakes[terminal][-1]])
    for marker in markers:
        image = np.maximum(image, _disc(marker, settings.marker_radius, settings.size))
    return PathfinderImage(image, unmarked, label, snakes, images, markers, (origin, terminal))


def pathfinder_batch(size: int | PathfinderSettings, batch_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images as sequences: (batch, size * size, 1) float32 in [0, 1] by rows, and their labels (batch,) int64."""
    at_least("batch_size", batch_size, 1)
    images = [pathfinder(size, seed=batch_seed(seed, "pathfinder", index)) for index in range(batch_size)]
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
    return pixels.flatten(1)[..., None].float() / 255, torch.tensor([image.label for image in images])


def _settings(size: int | PathfinderSettings) -> PathfinderSettings:
    if isinstance(size, PathfinderSettings):
        return size
    if size not in PATHFINDER:
        raise ValueError(f"size: expected {', '.join(map(str, PATHFINDER))} or settings, got {size!r}")
    return PATHFINDER[size]


@dataclass
class _Snake:
    """A snake as far as it is drawn. Its last paddle is kept apart from the mask, for the next begins there."""

    image: np.ndarray
    last: np.ndarray
    pivot: tuple[int, int]
    angle: float
    points: list[tuple[int, int]]


class _Canvas:
    """The mask of one image: 1 where a paddle would come too near to what is there."""

    def __init__(self, settings: PathfinderSettings, margin: int, random: np.random.Generator) -> None:
        self.settings, self.margin, self.random = settings, margin, random
        self.mask = np.zeros((settings.size, settings.size))

    def two_snakes(self) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None:
        """Both long snakes on a fresh mask: each alone, and their points; None where they did not fit."""
        settings = self.settings
        self.mask = _border(np.zeros((settings.size, settings.size)), settings.padding)
        contrast = settings.snake_contrast * settings.paddle_contrast
        first = self._first_seed(contrast)
        second = None if first is None else self._second_seed(first.points[0], contrast)
        if first is None or second is None:
            return None
        for _ in range(settings.contour_length - 1):
            for snake in (first, second):
                if not self._extend(snake, contrast):
                    return None
        # Of both the last paddle is still apart; the published program masks that of the second alone.
        self.mask = np.maximum(self.mask, second.last)
        return np.stack([first.image, second.image]), (np.array(first.points), np.array(second.points))

    def distract(self, image: np.ndarray) -> np.ndarray:
        """The image with short snakes between the long ones, as many as find room."""
        for _ in range(self.settings.distractors):
            for _ in range(1 + _SNAKE_RETRIES):
                before = self.mask
                snake = self._seed(1, self.settings.snake_contrast, least_free=_LEAST_FREE)
                if snake is not None and all(
                    self._extend(snake, self.settings.snake_contrast)
                    for _ in range(self.settings.distractor_length - 1)
                ):
                    self.mask = np.maximum(self.mask, snake.last)
                    image = np.maximum(image, snake.image)
                    break
                self.mask = before
        return image

    def _first_seed(self, contrast: float) -> _Snake | None:
        return self._seed(2 * self.settings.seed_distance, contrast)

    def _second_seed(self, tail: tuple[int, int], contrast: float) -> _Snake | None:
        """A paddle on the circle around the first one's tail."""
        for _ in range(1 + _PADDLE_RETRIES):
            angle, around = self._angle(), self.random.integers(360) * math.pi / 180
            row = round(tail[0] + self.settings.seed_distance * math.sin(around))
            column = round(tail[1] + self.settings.seed_distance * math.cos(around))
            snake = self._begin((row, column), angle, contrast)
            if snake is not None:
                return snake
        return None

    def _seed(self, border: int, contrast: float, *, least_free: float = 0.0) -> _Snake | None:
        """A paddle anywhere that is free, its tail so far from the borders."""
        for _ in range(1 + _PADDLE_RETRIES):
            angle = self._angle()
            struct = _struct(self.settings.paddle_length, self.settings.thickness, self.margin, angle)
            # Where all of it lies beyond a corner, the published program takes the whole image for full. That is
            # most directions, and decides how many distractors there are.
            if struct is None or (self.mask <= 0.3).mean() < least_free:
                return None
            blocked = _dilate(_border(self.mask, border), struct)
            free = np.argwhere(blocked <= 0.3)
            if not len(free):
                return None
            row, column = free[self.random.integers(len(free))].tolist()
            snake = self._begin((row, column), angle, contrast)
            if snake is not None:
                return snake
        return None

    def _begin(self, tail: tuple[int, int], angle: float, contrast: float) -> _Snake | None:
        length = self.settings.paddle_length
        head = _moved(tail, angle, length)
        pivot = _moved(head, _opposite(angle), length + self.margin)
        if not all(0 <= place < self.settings.size for place in (*head, *pivot, *tail)):
            return None
        image, mask = self._paddle(tail, angle, contrast)
        return _Snake(image, mask, pivot, angle, [tail, head])

    def _extend(self, snake: _Snake, contrast: float) -> bool:
        """Add a paddle beyond the last one, where there is a place; says whether there was."""
        length, margin = self.settings.paddle_length, self.margin
        pivot = _moved(snake.pivot, snake.angle, length + 2 * margin)
        ends, angles, odds = self._ends(pivot, snake.angle)
        if not len(ends):
            return False
        reached = np.cumsum(odds / odds.sum())
        for _ in range(1 + _PADDLE_RETRIES):
            index = int(np.argmax(reached > self.random.random()))
            head, angle = (int(ends[index, 0]), int(ends[index, 1])), float(angles[index])
            image, mask = self._paddle(head, _opposite(angle), contrast)
            if (self.mask + mask).max() < 1.8:
                break
        else:
            return False
        snake.image = np.maximum(snake.image, image)
        self.mask = np.maximum(self.mask, snake.last)
        snake.last, snake.pivot, snake.angle = mask, pivot, angle
        snake.points.append(head)
        return True

    def _ends(self, pivot: tuple[int, int], angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the next paddle may end: pixels of a circle about the pivot, their directions and odds."""
        step, size = self.settings.paddle_length + self.margin, self.settings.size
        around = np.arange(0, 360, 360 / (2 * step * np.pi)) * np.pi / 180
        places = np.stack([pivot[0] + step * np.sin(around), pivot[1] + step * np.cos(around)], axis=1)
        inside = ((places >= 0) & (places < size)).all(1)
        ends = np.unique(places[inside].astype(int), axis=0).reshape(-1, 2)
        angles = np.arctan2(ends[:, 0] - pivot[0], ends[:, 1] - pivot[1])
        turn = np.abs(angles - angle)
        turn = np.minimum(np.minimum(turn, 2 * np.pi - turn) * self.settings.continuity, np.pi / 2)
        near = _dilate(self.mask, _ball(self.margin))
        odds = (1 - near[ends[:, 0], ends[:, 1]]) * np.maximum(np.cos(turn), 0) ** 2
        return (ends, angles, odds) if odds.sum() >= 1e-4 else (ends[:0], angles[:0], odds[:0])

    def _paddle(self, place: tuple[int, int], angle: float, contrast: float) -> tuple[np.ndarray, np.ndarray]:
        """An image of a paddle that begins at a place, and the mask around it."""
        line, mask = _line(self.settings.paddle_length, self.settings.thickness, self.margin, angle)
        return _placed(line * contrast, place, self.settings.size), _placed(mask, place, self.settings.size)

    def _angle(self) -> float:
        return int(self.random.integers(-180, 180)) * math.pi / 180


def _moved(place: tuple[int, int], angle: float, distance: float) -> tuple[int, int]:
    """The pixel at so far in a direction, always rounded up."""
    return math.ceil(place[0] + distance * math.sin(angle)), math.ceil(place[1] + distance * math.cos(angle))


def _opposite(angle: float) -> float:
    return angle + math.pi if angle < 0 else angle - math.pi


def _border(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask with its border closed."""
    closed = np.ones_like(mask)
    inner = slice(width, mask.shape[0] - width)
    closed[inner, inner] = mask[inner, inner]
    return closed


@cache
def _ball(radius: int) -> np.ndarray:
    """A filled circle in a square just large enough."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def _dilate(image: np.ndarray, struct: np.ndarray) -> np.ndarray:
    """The largest value under the structure, put with its middle on every pixel."""
    middle = struct.shape[0] // 2
    padded = np.pad(image, middle, constant_values=0)
    rows, columns = image.shape
    dilated = np.zeros_like(image)
    for row, column in np.argwhere(struct):
        np.maximum(dilated, padded[row : row + rows, column : column + columns], out=dilated)
    return dilated


@cache
def _line(length: int, thickness: float, margin: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A line from the middle of a square, and what is nearer to it than the margin, in [0, 1]."""
    reach = length + math.ceil(thickness) + margin
    middle, size = reach * _FINER, 2 * reach * _FINER + 1
    fine = _stroke(middle, _moved((middle, middle), angle, length * _FINER), round(thickness * _FINER), size)
    mask = _dilate(fine, _ball(margin * _FINER))
    return _smaller(fine, 2 * reach + 1), _smaller(mask, 2 * reach + 1)


@cache
def _struct(length: int, thickness: float, margin: int, angle: float) -> np.ndarray | None:
    """Pixels that a paddle would take, relative to its beginning; None where at a corner all are outside the image.

    The paddle begins one pixel below and right of the middle, as in the published program.
    """
    _, mask = _line(length, thickness, margin, angle)
    middle = length + margin
    struct = _placed(mask, (middle + 1, middle + 1), 2 * middle + 1) >= 1
    rows, columns = (np.argwhere(struct) - middle).T
    corners = [((down * rows >= 0) & (right * columns >= 0)).any() for down in (-1, 1) for right in (-1, 1)]
    return struct if all(corners) else None


def _stroke(start: int, end: tuple[int, int], width: int, size: int) -> np.ndarray:
    """A straight line of so many pixels' width from (start, start)."""
    image = np.zeros((size, size))
    steps = max(abs(end[0] - start), abs(end[1] - start))
    if width == 1 or not steps:
        along = np.linspace(0, 1, steps + 1)
        rows = np.floor(start + along * (end[0] - start) + 0.5).astype(int)
        columns = np.floor(start + along * (end[1] - start) + 0.5).astype(int)
        image[rows, columns] = 1
        return image
    direction = np.array([end[0] - start, end[1] - start]) / math.hypot(end[0] - start, end[1] - start)
    rows, columns = np.mgrid[:size, :size] - start
    forward = rows * direction[0] + columns * direction[1]
    aside = np.abs(rows * direction[1] - columns * direction[0])
    total = math.hypot(end[0] - start, end[1] - start)
    image[(forward >= -0.5) & (forward <= total + 0.5) & (aside <= width / 2)] = 1
    return image


@cache
def _lanczos(source: int, target: int) -> np.ndarray:
    """Weights (target, source) of Lanczos' filter of three lobes, stretched to the smaller scale."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    x = (np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


def _smaller(image: np.ndarray, size: int) -> np.ndarray:
    """An image in [0, 1] made smaller, in the 256 steps that pictures have."""
    weights = _lanczos(image.shape[0], size)
    narrower = np.round(np.clip(image @ weights.T, 0, 1) * 255)
    return np.round(np.clip(weights @ narrower, 0, 255)) / 255


def _placed(small: np.ndarray, place: tuple[int, int], size: int) -> np.ndarray:
    """A small square with its middle at a place of an otherwise empty one; what lies beyond is cut off."""
    reach = small.shape[0] // 2
    padded = np.zeros((size + 2 * reach, size + 2 * reach))
    padded[place[0] : place[0] + small.shape[0], place[1] : place[1] + small.shape[1]] = small
    return padded[reach : reach + size, reach : reach + size]


def _disc(place: np.ndarray, radius: float, size: int) -> np.ndarray:
    """A filled circle."""
    rows, columns = np.mgrid[: size * _FINER, : size * _FINER]
    inside = (rows - place[0] * _FINER) ** 2 + (columns - place[1] * _FINER) ** 2 <= (radius * _FINER) ** 2
    return _smaller(inside.astype(float), size)
