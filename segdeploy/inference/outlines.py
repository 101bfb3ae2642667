"""The outlines of the regions of a class map, along the sides of pixels: polygons that cover the very pixels."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]
RIGHT, DOWN, LEFT, UP = range(4)  # how sides of pixels are followed: around their region, which lies to the right


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """Pixels of one class that are connected by their sides.

    `rings`: its outline, then those of its holes, each the (n, 2) corners x, y without the first once more. x grows to
    the right and y downward from the upper left corner of the class map. By the numbers an outline goes
    counterclockwise and a hole clockwise, on a screen the other way round. From its first corner a ring goes to the
    right or left, then up or down, in turns. It comes to no point twice; two rings of a region may touch in corners.
    `area`: in pixels.
    """

    index: int
    rings: list[Ints]
    area: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Sides:
    """All sides of pixels that are followed in one direction, and the straight runs that they make.

    `pixels`: those that have such a side, by their places along the rows. Of each run `first` and `last`, its pixels in
    the order in which it is followed, and `corners` (n, 2), the x, y where it begins. The runs are in the order of the
    rows, or, where they are followed up or down, of the columns.
    """

    pixels: Ints
    first: Ints
    last: Ints
    corners: Ints


def regions(class_map: NDArray[np.uint8]) -> list[Region]:
    """Every region of a class map (H, W), by class, then in the order of their first pixels along the rows."""
    sides = _all_sides(class_map)
    corners = np.concatenate([each.corners for each in sides])
    classes = class_map.ravel()[np.concatenate([each.first for each in sides])]
    following = _following(sides, class_map.shape[1])
    count = len(sides[RIGHT].first)  # every ring has runs to the right
    order, ends = _walked(following, count)
    if _part(following, _ring_of(order, ends), corners, classes):
        order, ends = _walked(following, count)
    ring_of, starts = _ring_of(order, ends), np.append(0, ends[:-1])
    areas = _areas(corners[order], starts, ends)
    owners = _owners(sides, ring_of, areas, class_map.shape)
    return _grouped(np.split(corners[order], starts[1:]), classes[order[starts]], areas, owners)


def _grouped(rings: Sequence[Ints], classes: NDArray[np.uint8], areas: Ints, owners: Ints) -> list[Region]:
    """The rings by region; `classes`, `areas` and `owners` are those of each ring."""
    covered = np.zeros_like(areas)
    np.add.at(covered, owners, areas)
    outlines = np.flatnonzero(areas > 0)
    outlines = outlines[np.argsort(classes[outlines], kind="stable")]
    facts = zip(outlines.tolist(), classes[outlines].tolist(), covered[outlines].tolist(), strict=True)
    found = {ring: Region(index, [rings[ring]], area) for ring, index, area in facts}
    holes = np.flatnonzero(areas < 0)
    for hole, owner in zip(holes.tolist(), owners[holes].tolist(), strict=True):
        found[owner].rings.append(rings[hole])
    return list(found.values())


def _all_sides(class_map: NDArray[np.uint8]) -> list[_Sides]:
    """Of the sides above, to the right, below and to the left: the four directions in their order."""
    width, flat = class_map.shape[1], class_map.ravel()
    across = np.flatnonzero(flat[width:] != flat[:-width])
    changes = flat[1:] != flat[:-1]
    changes[width - 1 :: width] = True
    along = np.flatnonzero(changes)
    return [
        _rows(flat, np.append(np.arange(width), across + width), width, reverse=False),
        _columns(flat, np.append(along, flat.size - 1), class_map.shape, reverse=False),
        _rows(flat, np.append(across, np.arange(flat.size - width, flat.size)), width, reverse=True),
        _columns(flat, np.append(0, along + 1), class_map.shape, reverse=True),
    ]


def _rows(flat: NDArray[np.uint8], pixels: Ints, width: int, *, reverse: bool) -> _Sides:
    """The sides above pixels; in reverse, those below."""
    begin, end = _runs(pixels, flat[pixels], width)
    first, last = (pixels[end], pixels[begin]) if reverse else (pixels[begin], pixels[end])
    return _Sides(pixels, first, last, np.stack([first % width, first // width], axis=1) + reverse)


def _columns(flat: NDArray[np.uint8], pixels: Ints, shape: tuple[int, int], *, reverse: bool) -> _Sides:
    """The sides to the right of pixels; in reverse, those to the left."""
    height, width = shape
    places = np.sort(_turned(pixels, width, height))
    ordered = _turned(places, height, width)
    begin, end = _runs(places, flat[ordered], height)
    first, last = (ordered[end], ordered[begin]) if reverse else (ordered[begin], ordered[end])
    return _Sides(pixels, first, last, np.stack([first % width + (not reverse), first // width + reverse], axis=1))


def _turned(places: Ints, length: int, other: int) -> Ints:
    """Places in lines of `length` as places in lines of `other`, across."""
    return places % length * other + places // length


def _runs(places: Ints, classes: NDArray[np.uint8], length: int) -> tuple[Ints, Ints]:
    """The first and the last of those that follow one another in a line of `length` and are of one class."""
    goes_on = (np.diff(places) == 1) & (classes[1:] == classes[:-1]) & (places[1:] % length != 0)
    breaks = np.flatnonzero(~goes_on)
    return np.append(0, breaks + 1), np.append(breaks, len(places) - 1)


def _following(sides: Sequence[_Sides], width: int) -> Ints:
    """Of each run the one that is followed next, both counted through all directions.

    Around the pixel at its end, where that has a side ahead; else along the pixel diagonally ahead. So pixels that only
    touch in a corner are not connected.
    """
    offsets = _offsets(sides)
    diagonally = (1 - width, 1 + width, width - 1, -1 - width)
    following = []
    for direction, each in enumerate(sides):
        right, left = (direction + 1) % 4, (direction + 3) % 4
        around, is_there = _found(sides[right].first, each.last)
        along, _ = _found(sides[left].first, each.last + diagonally[direction])
        following.append(np.where(is_there, offsets[right] + around, offsets[left] + along))
    return np.concatenate(following)


def _offsets(sides: Sequence[_Sides]) -> Ints:
    """How many runs there are before those of each direction."""
    return np.cumsum([0, *(len(each.first) for each in sides)])


def _found(among: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """The places of values, and whether they are there."""
    order = np.argsort(among, kind="stable")
    places = order[np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)]
    return places, among[places] == wanted


def _walked(following: Ints, count: int) -> tuple[Ints, Ints]:
    """The runs in the order of their rings, and where each ring ends; a ring begins with one of the first `count`."""
    after, seen = following.tolist(), bytearray(len(following))
    order, ends = list[int](), list[int]()
    for run in range(count):
        if not seen[run]:
            while not seen[run]:
                seen[run] = 1
                order.append(run)
                run = after[run]  # noqa: PLW2901 - on, until it is where it began
            ends.append(len(order))
    return np.array(order, np.intp), np.array(ends, np.intp)


def _ring_of(order: Ints, ends: Ints) -> Ints:
    """The ring of each run."""
    rings = np.empty_like(order)
    rings[order] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    return rings


def _part(following: Ints, ring_of: Ints, corners: Ints, classes: NDArray[np.uint8]) -> bool:
    """Part each ring that comes to a corner twice into two that touch there; whether there was any.

    It goes on into a hole, or from one hole into another. As it does not cross itself, no two of its corners part it
    crosswise: what follows at each of them is exchanged, in any order.
    """
    places = (corners[:, 1] * (corners[:, 0].max() + 1) + corners[:, 0]) * 256 + classes
    ordered = np.argsort(places, kind="stable")
    twice = np.flatnonzero(places[ordered[1:]] == places[ordered[:-1]])
    one, other = ordered[twice], ordered[twice + 1]
    is_same = ring_of[one] == ring_of[other]
    one, other = one[is_same], other[is_same]
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    following[before[one]], following[before[other]] = other, one
    return len(one) > 0


def _areas(points: Ints, starts: Ints, ends: Ints) -> Ints:
    """Of each ring, in pixels; negative for a hole."""
    after = np.roll(points[:, 1], -1)
    after[ends - 1] = points[starts, 1]
    return np.add.reduceat(points[:, 0] * (after - points[:, 1]), starts)


def _owners(sides: Sequence[_Sides], ring_of: Ints, areas: Ints, shape: tuple[int, int]) -> Ints:
    """Of each ring the outline of its region.

    To the left of where a hole reaches furthest to the left, the region ends at its outline, or at another hole that
    reaches further: so every hole leads to the outline.
    """
    height, width = shape
    offsets = _offsets(sides)
    rings, leftmost = np.unique(ring_of[offsets[DOWN] : offsets[LEFT]], return_index=True)
    pixels = sides[DOWN].first[leftmost]
    bounds = sides[UP].pixels[np.searchsorted(sides[UP].pixels, pixels, side="right") - 1]
    tops = _turned(sides[UP].last, width, height)
    runs = np.searchsorted(tops, _turned(bounds, width, height), side="right") - 1
    owners = np.arange(len(areas))
    owners[rings] = ring_of[offsets[UP] + runs]
    owners[areas > 0] = np.flatnonzero(areas > 0)
    while not np.array_equal(owners, further := owners[owners]):
        owners = further
    return owners
