"""Shapes that people draw around things, and the pixels that each covers."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

UInt8 = NDArray[np.uint8]
SCALE = 5  # of COCO's rasteriser: steps in a pixel
FURTHEST = 3  # of the image's longer side: so far may a point lie beyond it; people draw over its edge, not further
LONGEST_NUMBER = 7  # letters of COCO's text of runs: 35 bits


class Shape(Protocol):
    """A value that knows the pixels it covers, and can be pickled."""

    def paint(self, class_map: UInt8, value: int) -> None:
        """Set its pixels in (H, W). Raise ValueError, saying why, for what is no shape of an image of that size."""


@dataclasses.dataclass(frozen=True, slots=True)
class Polygons:
    """Rings x0, y0, x1, y1 and so on, in pixels, each filled as COCO's `rleFrPoly` fills it, to the pixel."""

    rings: tuple[tuple[float, ...], ...]

    def paint(self, class_map: UInt8, value: int) -> None:
        for ring in self.rings:
            first, inside = _filled(ring, *class_map.shape)
            class_map[:, first : first + inside.shape[1]][inside] = value


def _filled(ring: Sequence[float], height: int, width: int) -> tuple[int, NDArray[np.bool_]]:
    """The first column that a ring touches, and (H, columns) of the pixels inside it."""
    columns, rows = _crossings(_points(ring, height, width), height, width)
    if not columns.size:
        return 0, np.zeros((height, 0), bool)
    first, count = int(columns.min()), int(np.ptp(columns)) + 1
    inside = np.zeros(count * height + 1, bool)  # a byte a pixel, whatever the size of the image
    np.logical_xor.at(inside, (columns - first) * height + rows, True)  # noqa: FBT003 - NumPy takes it by its place
    np.logical_xor.accumulate(inside, out=inside)
    return first, inside[:-1].reshape(count, height).T


def _points(ring: Sequence[float], height: int, width: int) -> NDArray[np.int64]:
    """(points, 2) of x and y in fifths of a pixel, the first one again at the end."""
    if len(ring) < 6 or len(ring) % 2:  # noqa: PLR2004 - three points
        raise ValueError(f"a polygon of {len(ring)} numbers; it takes pairs, and three or more of them")
    points = np.array(ring, np.float64).reshape(-1, 2)
    require_near(points, height, width)
    scaled = np.trunc(SCALE * points + 0.5).astype(np.int64)
    return np.concatenate([scaled, scaled[:1]])


def require_near(points: NDArray[np.float64], height: int, width: int) -> None:
    """Raise ValueError for (points, 2) that lie far from an image; a walk along them would not end."""
    side = max(height, width)
    outside = ~((points >= -FURTHEST * side) & (points <= (FURTHEST + 1) * side)).all(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise ValueError(f"the point {x:g}, {y:g} lies far outside an image of {width}x{height}")


def _crossings(points: NDArray[np.int64], height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the outline crosses the middle of a column of pixels: that column, and the first row below it."""
    edges = [_walk(start, end) for start, end in itertools.pairwise(points)]
    u, v = np.concatenate(edges, axis=1)
    changed = np.flatnonzero(u[1:] != u[:-1]) + 1
    before, after = u[changed - 1], u[changed]
    x = (np.where(after < before, after, after - 1) + 0.5) / SCALE - 0.5
    y = (np.minimum(v[changed], v[changed - 1]) + 0.5) / SCALE - 0.5
    hit = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    return x[hit].astype(np.int64), np.ceil(np.clip(y[hit], 0, height)).astype(np.int64)


def _walk(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """(2, steps) of every place on an edge, one for each step along its longer side."""
    difference = np.abs(end - start)
    along = 0 if difference[0] >= difference[1] else 1
    flipped = start[along] > end[along]
    first, last = (end, start) if flipped else (start, end)
    steps = np.arange(difference[along] + 1)
    slope = (last[1 - along] - first[1 - along]) / max(int(difference[along]), 1)
    across = np.trunc(first[1 - along] + slope * steps + 0.5).astype(np.int64)
    places = np.stack([steps + first[along], across] if along == 0 else [across, steps + first[along]])
    return places[:, ::-1] if flipped else places


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
    """Lengths of runs outside and inside, in turn, in a box; `by_column`: down the columns, as COCO counts."""

    counts: tuple[int, ...]
    top: int
    left: int
    height: int
    width: int
    by_column: bool

    def paint(self, class_map: UInt8, value: int) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(f"a box of {self.width}x{self.height} at {self.left}, {self.top}")
        bottom, right = self.top + self.height, self.left + self.width
        if bottom > class_map.shape[0] or right > class_map.shape[1]:
            size = f"{class_map.shape[1]}x{class_map.shape[0]}"
            raise ValueError(f"a box of {self.width}x{self.height} at {self.left}, {self.top} in an image of {size}")
        if min(self.counts, default=-1) < 0 or sum(self.counts) != self.height * self.width:
            raise ValueError(f"runs of {sum(self.counts)} pixels in a box of {self.width}x{self.height}")
        inside = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        order = (self.width, self.height) if self.by_column else (self.height, self.width)
        box = inside.reshape(order)
        class_map[self.top : bottom, self.left : right][box.T if self.by_column else box] = value


def runs_of_text(text: str) -> tuple[int, ...]:
    """The lengths in COCO's compressed text (`rleFrString`): five bits a letter, differences from the third run on.

    Raise ValueError where the text is none.
    """
    counts: list[int] = []
    value, letters = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or letters == LONGEST_NUMBER:  # noqa: PLR2004 - six bits
            raise ValueError(f"runs with the letter {letter!r}")
        value |= (code & 31) << 5 * letters
        letters += 1
        if not code & 32:
            value -= (code & 16) << 1 + 5 * (letters - 1)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))  # noqa: PLR2004 - the third
            value, letters = 0, 0
    if letters:
        raise ValueError("runs that break off")
    return tuple(counts)


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """A polygon, rectangle or circle with its outline, as labelme's own export draws it with Pillow, to the pixel.

    `points`: x, y in pixels; of a rectangle two corners, of a circle its middle and a point on it.
    """

    kind: str
    points: tuple[tuple[float, float], ...]

    def paint(self, class_map: UInt8, value: int) -> None:
        require_near(np.array(self.points, np.float64).reshape(-1, 2), *class_map.shape)
        covered = Image.new("1", class_map.shape[::-1])
        self._draw(ImageDraw.Draw(covered))
        class_map[np.asarray(covered)] = value

    def _draw(self, draw: ImageDraw.ImageDraw) -> None:
        if self.kind == "polygon" and len(self.points) > 2:  # noqa: PLR2004 - three points
            draw.polygon(self.points, outline=1, fill=1)
        elif self.kind == "rectangle" and len(self.points) == 2:  # noqa: PLR2004 - two corners
            (x0, x1), (y0, y1) = (sorted(side) for side in zip(*self.points, strict=True))
            draw.rectangle((x0, y0, x1, y1), outline=1, fill=1)
        elif self.kind == "circle" and len(self.points) == 2:  # noqa: PLR2004 - its middle and its edge
            (x, y), edge = self.points
            radius = math.dist((x, y), edge)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
        else:
            raise ValueError(f"a {self.kind} of {len(self.points)} points")
