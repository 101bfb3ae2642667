"""Shapes cover the pixels that the tools which draw them say they cover."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeploy.data.shapes import Drawn, Polygons, Runs, Shape, runs_of_text

HEIGHT, WIDTH = 30, 32
# What pycocotools 2.0.11 makes of polygons on 30x32: maskUtils.frPyObjects([ring], 30, 32)
BY_PYCOCOTOOLS = [
    (
        (1.5, 2.25, 20.4, 3.0, 17.9, 25.5, 9.1, 14.2, 2.0, 27.75),
        "n1i05N2N2N2N2N2N3N12N1O1O2N1O1O2N1OL4F_;",
    ),
    ((-3.0, 5.0, 31.0, -4.0, 35.0, 29.0), "43k01O0O2O1O001N101O1O0O2O1O0O2O1O001O001O1O001O1O001O1O001O001O1O"),
    ((4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0), "l38f00000000000000db0"),
]


def painted(shape: Shape, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    class_map = np.zeros((height, width), np.uint8)
    shape.paint(class_map, 1)
    return class_map


def whole(text: str) -> Runs:
    return Runs(runs_of_text(text), 0, 0, HEIGHT, WIDTH, by_column=True)


@pytest.mark.parametrize("ring, text", BY_PYCOCOTOOLS)
def test_a_polygon_covers_the_pixels_that_pycocotools_gives_it(ring: tuple[float, ...], text: str) -> None:
    expected = painted(whole(text))
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(painted(Polygons((ring,))), expected)


def by_the_reference(ring: Sequence[float], height: int, width: int) -> NDArray[np.uint8]:
    """`rleFrPoly` of COCO's maskApi.c, step by step, on single numbers: the customary way to write it."""
    xs = [int(5 * value + 0.5) for value in ring[0::2]]
    ys = [int(5 * value + 0.5) for value in ring[1::2]]
    outline = []
    for (xs_, ys_), (xe, ye) in zip(
        zip(xs, ys, strict=True), zip(xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True), strict=True
    ):
        dx, dy = abs(xe - xs_), abs(ye - ys_)
        flip = (dx >= dy and xs_ > xe) or (dx < dy and ys_ > ye)
        (x0, y0), (x1, y1) = ((xe, ye), (xs_, ys_)) if flip else ((xs_, ys_), (xe, ye))
        slope = (y1 - y0) / dx if dx >= dy and dx else (x1 - x0) / dy if dy else 0.0
        for step in range(max(dx, dy) + 1):
            at = max(dx, dy) - step if flip else step
            if dx >= dy:
                outline.append((at + x0, int(y0 + slope * at + 0.5)))
            else:
                outline.append((int(x0 + slope * at + 0.5), at + y0))
    toggles = []
    for (u0, v0), (u1, v1) in itertools.pairwise(outline):
        x = ((min(u1, u0) if u1 < u0 else u1 - 1) + 0.5) / 5 - 0.5
        if u0 == u1 or math.floor(x) != x or not 0 <= x <= width - 1:
            continue
        y = min(max((min(v0, v1) + 0.5) / 5 - 0.5, 0), height)
        toggles.append(int(x) * height + math.ceil(y))
    flat = [sum(toggle <= place for toggle in toggles) % 2 for place in range(height * width)]
    return np.array(flat, np.uint8).reshape(width, height).T


coordinates = st.floats(-10, 30) | st.integers(-3, 22).map(float) | st.integers(-30, 220).map(lambda each: each / 10)


@settings(max_examples=60)
@given(
    points=st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7),
    height=st.integers(10, 20),
    width=st.integers(10, 20),
)
def test_any_polygon_is_filled_as_the_reference_fills_it(
    points: list[tuple[float, float]], height: int, width: int
) -> None:
    ring = tuple(number for point in points for number in point)
    assert np.array_equal(painted(Polygons((ring,)), height, width), by_the_reference(ring, height, width))


def test_coco_counts_down_the_columns_and_cvat_along_the_rows() -> None:
    """Read the other way round, a mask is turned on its side."""
    corner = (0, 1, 11)
    down = painted(Runs((1, 2, 9), 0, 0, 4, 3, by_column=True), 4, 3)
    along = painted(Runs((1, 2, 9), 0, 0, 4, 3, by_column=False), 4, 3)
    assert down.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert along.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert painted(Runs(corner, 0, 0, 4, 3, by_column=True), 4, 3)[0, 0] == 1


def test_a_box_of_runs_lies_where_it_says() -> None:
    found = painted(Runs((0, 2, 1, 1), 3, 5, 2, 2, by_column=False))
    assert [tuple(map(int, place)) for place in np.argwhere(found)] == [(3, 5), (3, 6), (4, 6)]


@given(runs=st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_text_of_runs_is_read_back(runs: list[int]) -> None:
    assert runs_of_text(as_text(runs)) == tuple(runs)


def as_text(runs: Sequence[int]) -> str:
    """`rleToString` of maskApi.c."""
    text = ""
    for index, run in enumerate(runs):
        value, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            code = value & 31
            value >>= 5
            more = value != -1 if code & 16 else value != 0
            text += chr((code | 32 if more else code) + 48)
    return text


@pytest.mark.parametrize("text", ["o", " ", "\N{SNOWMAN}", "ooooooooooooooooooooo0"])
def test_text_that_is_none_of_runs_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="runs"):
        runs_of_text(text)


@pytest.mark.parametrize(
    "shape",
    [
        Polygons(((1.0, 1.0, 5.0, 5.0),)),
        Polygons(((1.0, 1.0, 5.0, 5.0, 3.0),)),
        Polygons(((1.0, 1.0, 1e12, 5.0, 3.0, 9.0),)),
        Polygons(((1.0, 1.0, math.nan, 5.0, 3.0, 9.0),)),
        Polygons(((1.0, 1.0, 1e308, -1e308, 3.0, 9.0),)),
        Runs((3,), 0, 0, HEIGHT, WIDTH, by_column=True),
        Runs((-5, 965), 0, 0, HEIGHT, WIDTH, by_column=True),
        Runs((), 0, 0, HEIGHT, WIDTH, by_column=True),
        Runs((4,), HEIGHT - 1, 0, 2, 2, by_column=False),
        Runs((4,), -1, 0, 2, 2, by_column=False),
        Runs((10**18,), 0, 0, 10**9, 10**9, by_column=True),
        Drawn("polygon", ((1.0, 1.0), (2.0, 2.0))),
        Drawn("circle", ((1.0, 1.0),)),
        Drawn("line", ((1.0, 1.0), (2.0, 2.0))),
        Drawn("circle", ((1.0, 1.0), (1e9, 1.0))),
    ],
)
def test_what_is_no_shape_of_the_image_is_refused_before_it_takes_memory(shape: Shape) -> None:
    with pytest.raises(ValueError, match=r"polygon|point|runs|box|circle|line"):
        painted(shape)


def test_labelme_draws_the_outline_too() -> None:
    """Its own export does: a square from 2 to 5 has four pixels a side."""
    square = painted(Drawn("polygon", ((2.0, 2.0), (5.0, 2.0), (5.0, 5.0), (2.0, 5.0))))
    assert square.sum() == 16
    assert np.array_equal(square, painted(Drawn("rectangle", ((5.0, 5.0), (2.0, 2.0)))))
    circle = painted(Drawn("circle", ((10.0, 10.0), (10.0, 13.0))))
    assert circle[10, 7:14].all()
    assert not circle[10, [6, 14]].any()


def test_the_later_ring_does_not_cut_out_of_the_earlier() -> None:
    """COCO's parts of one thing are united."""
    ring = (2.0, 2.0, 10.0, 2.0, 10.0, 10.0, 2.0, 10.0)
    inner = (4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0)
    assert np.array_equal(painted(Polygons((ring, inner))), painted(Polygons((ring,))))
