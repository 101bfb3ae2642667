"""Outlines along the sides of pixels: drawn again, they give the class map back pixel for pixel."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from segdeploy import images
from segdeploy.inference import outlines
from segdeploy.inference.outlines import Region

MASKS = sorted((Path(__file__).parents[2] / "examples/nuclei/masks").glob("*.png"))
NOTHING = 255

small = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))


def mapped(*rows: str) -> NDArray[np.uint8]:
    return np.array([[int(letter) for letter in row] for row in rows], np.uint8)


DRAWN = {
    "one pixel": mapped("0"),
    "one class": mapped("111", "111"),
    "one row": mapped("01102"),
    "one column": mapped("0", "1", "1"),
    "a pixel in another": mapped("000", "010", "000"),
    "holes within holes": mapped("1111111", "1000001", "1011101", "1010101", "1011101", "1000001", "1111111"),
    "pixels that touch in a corner": mapped("10", "01"),
    "a chessboard": mapped("01010", "10101", "01010"),
    "a hole that touches the outline": mapped("110", "101", "111"),
    "a hole that touches the outline twice": mapped("0110", "1001", "1111"),
    "a chain of holes that touch": mapped("11111", "10111", "11011", "11101", "11111"),
    "a ring of holes that parts the inside": mapped("11111", "11011", "10101", "11011", "11111"),
    "a hole around the corner of another": mapped("111111", "100001", "101101", "101111", "111011", "111111"),
    "a region with the highest index": np.array([[255, 0], [0, 255]], np.uint8),
}


def polygon(region: Region) -> shapely.Polygon:
    return shapely.Polygon(region.rings[0], region.rings[1:])


def wrong(regions: Sequence[Region], class_map: NDArray[np.uint8]) -> list[str]:
    """What is not as it must be. shapely tells what a polygon is and what lies in it, OpenCV what is connected."""
    rows, columns = np.indices(class_map.shape) + 0.5
    times, back = np.zeros(class_map.shape, int), np.zeros_like(class_map)
    found = []
    for region in regions:
        shape = polygon(region)
        inside = shapely.contains_xy(shape, columns, rows)
        times += inside
        back[inside] = region.index
        if not shape.is_valid:
            found.append(shapely.is_valid_reason(shape))
        elif not shape.exterior.is_ccw or any(hole.is_ccw for hole in shape.interiors):
            found.append("a ring goes the wrong way round")
        if shape.area != region.area or inside.sum() != region.area:
            found.append(f"{region.area} pixels are {shape.area}")
        if not all(turns_at_each_corner(ring) for ring in region.rings):
            found.append("a corner is none")
    if (times != 1).any() or (back != class_map).any():
        found.append("other pixels")
    if len(regions) != connected(class_map):
        found.append(f"{len(regions)} regions of {connected(class_map)}")
    return found


def turns_at_each_corner(ring: NDArray[np.intp]) -> bool:
    """To the side, then up or down, in turns, and closed by the last step."""
    moves = np.diff(np.append(ring, ring[:1], axis=0), axis=0)
    across = moves[:, 0] != 0
    return bool((across != (moves[:, 1] != 0)).all() and across[::2].all() and not across[1::2].any())


def connected(class_map: NDArray[np.uint8]) -> int:
    flags = [(class_map == index).astype(np.uint8) for index in np.unique(class_map)]
    return sum(cv2.connectedComponents(flag, connectivity=4)[0] - 1 for flag in flags)


@given(class_map=small)
def test_random_class_maps_come_back(class_map: NDArray[np.uint8]) -> None:
    assert wrong(outlines.regions(class_map), class_map) == []


@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))
def test_noise_comes_back(seed: int, share: float) -> None:
    """At every share of pixels: holes that touch in corners, regions that do, and all inside one another."""
    class_map = (np.random.default_rng(seed).random((20, 23)) < share).astype(np.uint8)
    assert wrong(outlines.regions(class_map), class_map) == []


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_hard_comes_back(name: str) -> None:
    assert wrong(outlines.regions(DRAWN[name]), DRAWN[name]) == []


@pytest.mark.parametrize("path", MASKS, ids=[path.stem[:8] for path in MASKS])
def test_masks_of_nuclei_come_back(path: Path) -> None:
    with Image.open(path) as mask:
        class_map = np.asarray(mask).astype(np.uint8)
    assert wrong(outlines.regions(class_map), class_map) == []


def test_a_class_map_that_was_enlarged_comes_back() -> None:
    """As the masks of large photographs are."""
    with Image.open(MASKS[0]) as mask:
        class_map = images.to_photo_size(np.asarray(mask).astype(np.uint8), height=301, width=497)
    assert wrong(outlines.regions(class_map), class_map) == []


def test_regions_come_by_class_then_along_the_rows() -> None:
    class_map = mapped("1001", "0220", "1000")
    first = [(region.index, *region.rings[0][0].tolist()) for region in outlines.regions(class_map)]
    assert first == [(0, 1, 0), (0, 0, 1), (0, 3, 1), (1, 0, 0), (1, 3, 0), (1, 0, 2), (2, 1, 1)]


def test_a_hole_belongs_to_the_region_around_it() -> None:
    """Also one to whose left there is another hole."""
    class_map = mapped("0000000", "0110110", "0110010", "0000000", "0111110", "0101010", "0111110")
    found = {region.index: len(region.rings) - 1 for region in outlines.regions(class_map) if len(region.rings) > 1}
    assert found == {0: 2, 1: 2}


# The checks see what they are for


def test_a_ring_that_touches_itself_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without parting, the outline runs on into the hole that it touches: the same area, and no valid polygon."""
    monkeypatch.setattr(outlines, "_part", lambda *_: False)
    class_map = DRAWN["a hole that touches the outline"]
    assert any("Self-intersection" in text for text in wrong(outlines.regions(class_map), class_map))


def test_a_hole_of_another_region_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class_map = mapped("0000000", "0111010", "0101000", "0111000", "0000000")
    assert wrong(outlines.regions(class_map), class_map) == []
    monkeypatch.setattr(outlines, "_owners", lambda _sides, _ring_of, areas, _shape: np.zeros(len(areas), int))
    assert "other pixels" in wrong(outlines.regions(class_map), class_map)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (0.6, 0.6)])
def test_outlines_beside_the_pixels_are_seen(shift: tuple[float, float]) -> None:
    """As whoever counts from 1 writes them, or follows the centres of pixels."""
    class_map = DRAWN["a pixel in another"]
    moved = [
        Region(each.index, [ring + np.array(shift) for ring in each.rings], each.area)
        for each in outlines.regions(class_map)
    ]
    assert "other pixels" in wrong(moved, class_map)


def test_outlines_the_wrong_way_round_are_seen() -> None:
    class_map = DRAWN["a pixel in another"]
    turned = [
        Region(each.index, [ring[::-1] for ring in each.rings], each.area) for each in outlines.regions(class_map)
    ]
    assert "a ring goes the wrong way round" in wrong(turned, class_map)
