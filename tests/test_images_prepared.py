"""What a network sees of a photograph: stretched, its margin mirrored (U-Net, arXiv:1505.04597, sec. 2)."""

import dataclasses

import numpy as np
import pytest
from conftest import SPEC, photograph
from hypothesis import given
from hypothesis import strategies as st

from segdeploy import images

PAPER = dataclasses.replace(SPEC, height=44, width=52, margin=10)


def test_without_a_margin_the_photo_is_stretched_to_the_network_size() -> None:
    photo = photograph(90, 30)
    expected = images.to_network_size(photo, height=64, width=64)
    np.testing.assert_array_equal(images.prepared(photo, SPEC), expected)


def test_a_photo_of_the_network_size_is_taken_as_it_is() -> None:
    photo = photograph(64, 64)
    np.testing.assert_array_equal(images.prepared(photo, SPEC), photo)


def test_with_a_margin_the_photo_is_stretched_to_the_interior() -> None:
    """The class map covers the interior alone, and it is the photo that is to be covered."""
    photo = photograph(90, 30)
    seen = images.prepared(photo, PAPER)
    assert seen.shape == (44, 52, 3)
    expected = images.to_network_size(photo, height=24, width=32)
    np.testing.assert_array_equal(seen[10:-10, 10:-10], expected)


def test_the_margin_is_the_mirrored_interior() -> None:
    """The border pixel is the mirror: it is not repeated."""
    seen = images.prepared(photograph(90, 30), PAPER)
    interior = seen[10:-10, 10:-10]
    np.testing.assert_array_equal(seen[9, 10:-10], interior[1])
    np.testing.assert_array_equal(seen[0, 10:-10], interior[10])
    np.testing.assert_array_equal(seen[-1, 10:-10], interior[-11])
    np.testing.assert_array_equal(seen[10:-10, 0], interior[:, 10])
    np.testing.assert_array_equal(seen[10:-10, -1], interior[:, -11])
    np.testing.assert_array_equal(seen[0, 0], interior[10, 10])


def test_no_margin_gives_back_the_very_photo() -> None:
    photo = photograph(8, 8)
    assert images.with_margin(photo, 0) is photo


def test_an_interior_narrower_than_the_margin_is_mirrored_to_and_fro() -> None:
    photo = np.arange(3, dtype=np.uint8)[None, :, None].repeat(2, axis=0).repeat(3, axis=2)
    framed = images.with_margin(photo, 5)
    assert framed[0, :, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]


@pytest.mark.parametrize("height,width", [(1, 1), (1, 7), (7, 1)])
def test_a_side_of_one_pixel_is_repeated(height: int, width: int) -> None:
    """There is nothing to mirror."""
    photo = photograph(height, width)
    framed = images.with_margin(photo, 4)
    assert framed.shape == (height + 8, width + 8, 3)
    np.testing.assert_array_equal(framed[0, 0], photo[0, 0])
    np.testing.assert_array_equal(framed[-1, -1], photo[-1, -1])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30))
def test_a_margin_frames_any_photo_and_changes_none_of_it(height: int, width: int, margin: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    framed = images.with_margin(photo, margin)
    assert framed.shape == (height + 2 * margin, width + 2 * margin, 3)
    np.testing.assert_array_equal(framed[margin : margin + height, margin : margin + width], photo)


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_photo_of_any_size_fits_the_network(height: int, width: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for spec in (SPEC, PAPER):
        assert images.prepared(photo, spec).shape == (spec.height, spec.width, 3)
