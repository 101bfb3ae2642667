"""Counts against plain loops, and the policies: what is ignored, what is absent, how far a border reaches."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segdeploy import metrics

CLASSES = 4
IGNORED = 255
quick = settings(max_examples=80)
SHAPE = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
ClassMap = np.ndarray[Any, np.dtype[np.uint8]]


def maps(count: int, *, ignored: int | None = None) -> st.SearchStrategy[list[ClassMap]]:
    """Class maps of one shape; the first may hold ignored pixels."""
    known = st.integers(0, CLASSES - 1)
    first = known if ignored is None else st.one_of(known, st.just(ignored))
    kinds = [first] + [known] * (count - 1)
    return SHAPE.flatmap(lambda shape: st.tuples(*(hnp.arrays(np.uint8, shape, elements=k) for k in kinds))).map(list)


@quick
@given(pair=maps(2, ignored=IGNORED))
def test_confusion_is_a_plain_count(pair: list[ClassMap]) -> None:
    """Truth by row, prediction by column; pixels of ignored truth count nowhere."""
    truth, predicted = pair
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if t != IGNORED:
            expected[t, p] += 1
    counts = metrics.confusion(truth, predicted, classes=CLASSES, ignore_index=IGNORED)
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.int64


@quick
@given(pair=maps(2))
def test_an_ignored_index_among_the_classes_counts_nowhere(pair: list[ClassMap]) -> None:
    """Where void is class 0, its pixels are nobody's error; predicting it elsewhere still is one."""
    truth, predicted = pair
    counts = metrics.confusion(truth, predicted, classes=CLASSES, ignore_index=0)
    expected = metrics.confusion(truth, predicted, classes=CLASSES, ignore_index=IGNORED)
    expected[0] = 0
    np.testing.assert_array_equal(counts, expected)


def test_256_classes_fill_the_matrix() -> None:
    """Truth times classes plus prediction goes up to 65,535: it must not wrap around in a short type."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    counts = metrics.confusion(every, every[::-1], classes=256, ignore_index=0)
    assert counts.shape == (256, 256)
    assert counts.sum() == 255
    assert counts[255, 15] == 1


def test_scores_by_hand() -> None:
    """Class 0: 3 right, 1 missed, 2 taken; class 1: 4 right, 2 missed, 1 taken."""
    counts = np.array([[3, 1], [2, 4]])
    np.testing.assert_allclose(metrics.iou(counts), [3 / 6, 4 / 7])
    assert metrics.miou(counts) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert metrics.pixel_accuracy(counts) == 0.7


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    """Cityscapes' policy: neither 0 nor 1 for a class that is in neither truth nor prediction."""
    counts = np.array([[6, 0, 2], [0, 0, 0], [0, 0, 2]])
    each = metrics.iou(counts)
    np.testing.assert_allclose(each[[0, 2]], [0.75, 0.5])
    assert np.isnan(each[1])
    assert metrics.miou(counts) == 0.625


def test_a_class_only_predicted_or_only_true_scores_zero() -> None:
    """It is present on one side, so it is wrong and not absent."""
    only_predicted = np.array([[3, 1], [0, 0]])
    assert metrics.iou(only_predicted).tolist() == [0.75, 0.0]
    assert metrics.iou(only_predicted.T).tolist() == [0.75, 0.0]


def test_without_a_counted_pixel_there_is_no_score() -> None:
    """None, which JSON holds, and no warning of a mean over nothing."""
    truth = np.full((3, 3), IGNORED, np.uint8)
    counts = metrics.confusion(truth, np.zeros_like(truth), classes=2, ignore_index=IGNORED)
    assert counts.sum() == 0
    assert metrics.miou(counts) is None
    assert metrics.pixel_accuracy(counts) is None


@quick
@given(pair=maps(2, ignored=IGNORED))
def test_scores_stay_in_their_range(pair: list[ClassMap]) -> None:
    """And a perfect prediction scores one in every class that occurs."""
    truth, predicted = pair
    counts = metrics.confusion(truth, predicted, classes=CLASSES, ignore_index=IGNORED)
    miou, accuracy = metrics.miou(counts), metrics.pixel_accuracy(counts)
    assert (miou is None) == (accuracy is None) == bool((truth == IGNORED).all())
    if miou is None or accuracy is None:
        return
    assert 0 <= miou <= 1
    assert 0 <= accuracy <= 1
    perfect = metrics.confusion(truth, truth, classes=CLASSES, ignore_index=IGNORED)
    assert metrics.miou(perfect) == metrics.pixel_accuracy(perfect) == 1


def test_counts_over_a_data_set_add_up() -> None:
    """The score of the set is not the mean of its images' scores."""
    first, second = np.array([[1, 1], [0, 0]]), np.array([[0, 0], [0, 8]])
    assert metrics.miou(first + second) == pytest.approx((1 / 2 + 8 / 9) / 2)
    assert metrics.miou(first + second) != np.mean([metrics.miou(first), metrics.miou(second)])


@quick
@given(class_map=maps(1), width=st.integers(1, 5))
def test_the_boundary_band_is_a_city_block_distance(class_map: list[ClassMap], width: int) -> None:
    """Every pixel that is `width` steps or fewer from a pixel of another class, by brute force."""
    (plane,) = class_map
    H, W = plane.shape
    expected = np.zeros((H, W), bool)
    for row, column in np.ndindex(H, W):
        others = np.argwhere(plane != plane[row, column])
        expected[row, column] = bool(len(others)) and np.abs(others - (row, column)).sum(axis=1).min() <= width
    np.testing.assert_array_equal(metrics.boundary_band(plane, width=width), expected)


def test_the_boundary_band_is_three_pixels_wide_on_each_side() -> None:
    plane = np.zeros((1, 12), np.uint8)
    plane[:, 6:] = 1
    assert metrics.boundary_band(plane)[0].nonzero()[0].tolist() == [3, 4, 5, 6, 7, 8]


def test_a_plane_of_one_class_has_no_boundary() -> None:
    """Its rim is the image's end and no border of a class."""
    assert not metrics.boundary_band(np.full((5, 7), 2, np.uint8)).any()
    assert metrics.boundary_band(np.zeros((1, 1), np.uint8)).tolist() == [[False]]


def rim(inside: np.ndarray[Any, np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """The pixels of a region with a neighbour, across an edge, that is not of it."""
    H, W = inside.shape
    steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return [
        (row, column)
        for row, column in np.argwhere(inside).tolist()
        if any(
            0 <= row + down < H and 0 <= column + right < W and not inside[row + down, column + right]
            for down, right in steps
        )
    ]


def hit_share(of: list[tuple[int, int]], near: list[tuple[int, int]], width: int) -> float:
    return float(np.mean([any(abs(a - c) + abs(b - d) <= width for c, d in near) for a, b in of]))


@quick
@given(pair=maps(2), width=st.integers(0, 3))
def test_boundary_f1_is_precision_and_recall_of_boundary_pixels(pair: list[ClassMap], width: int) -> None:
    """By brute force: class by class, and the mean over those with a boundary in either map."""
    scores = []
    for each in range(CLASSES):
        reference, candidate = (rim(plane == each) for plane in pair)
        if not reference and not candidate:
            continue
        if not reference or not candidate:
            scores.append(0.0)
            continue
        precision, recall = hit_share(candidate, reference, width), hit_share(reference, candidate, width)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    expected = np.mean(scores) if scores else None
    assert metrics.boundary_f1(*pair, width=width) == (None if expected is None else pytest.approx(expected))


def test_boundary_f1_forgives_three_pixels_and_no_more() -> None:
    """A border that moved by four is missed by both sides; by three, it is met."""
    planes = [np.zeros((6, 24), np.uint8) for _ in range(3)]
    for plane, start in zip(planes, (8, 11, 12), strict=True):
        plane[:, start:] = 1
    assert metrics.boundary_f1(planes[0], planes[0]) == 1
    assert metrics.boundary_f1(planes[0], planes[1]) == 1
    assert metrics.boundary_f1(planes[0], planes[2]) == 0


def test_boundary_f1_of_an_object_that_was_missed_is_that_of_its_class() -> None:
    """Nothing of it is found, nor of the hole in the ground around it."""
    plane = np.zeros((9, 9), np.uint8)
    plane[4:6, 4:6] = 1
    assert metrics.boundary_f1(plane, np.zeros_like(plane)) == 0
    assert metrics.boundary_f1(np.zeros_like(plane), np.ones_like(plane)) is None


def test_a_share_is_of_pixels_and_not_of_images() -> None:
    hits = [np.ones((1, 3), bool), np.array([[False]])]
    assert metrics.share(hits) == 0.75
    assert metrics.share([]) is None
    assert metrics.share([np.zeros((0, 4), bool)]) is None
