"""What a network sees of a photograph, and what becomes of its class maps.

Stretched, letterboxed or in tiles; the margin is mirrored (U-Net, arXiv:1505.04597, sec. 2).
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, photograph
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeploy import fitting, images
from segdeploy.errors import InvalidRequestError
from segdeploy.spec import GREY, Spec

PAPER = dataclasses.replace(SPEC, height=44, width=52, margin=10)


def test_without_a_margin_the_photo_is_stretched_to_the_network_size() -> None:
    photo = photograph(90, 30)
    expected = images.to_network_size(photo, height=64, width=64)
    np.testing.assert_array_equal(fitting.prepared(photo, SPEC), expected)


def test_a_photo_of_the_network_size_is_taken_as_it_is() -> None:
    photo = photograph(64, 64)
    np.testing.assert_array_equal(fitting.prepared(photo, SPEC), photo)


def test_with_a_margin_the_photo_is_stretched_to_the_interior() -> None:
    """The class map covers the interior alone, and it is the photo that is to be covered."""
    photo = photograph(90, 30)
    seen = fitting.prepared(photo, PAPER)
    assert seen.shape == (44, 52, 3)
    expected = images.to_network_size(photo, height=24, width=32)
    np.testing.assert_array_equal(seen[10:-10, 10:-10], expected)


def test_the_margin_is_the_mirrored_interior() -> None:
    """The border pixel is the mirror: it is not repeated."""
    seen = fitting.prepared(photograph(90, 30), PAPER)
    interior = seen[10:-10, 10:-10]
    np.testing.assert_array_equal(seen[9, 10:-10], interior[1])
    np.testing.assert_array_equal(seen[0, 10:-10], interior[10])
    np.testing.assert_array_equal(seen[-1, 10:-10], interior[-11])
    np.testing.assert_array_equal(seen[10:-10, 0], interior[:, 10])
    np.testing.assert_array_equal(seen[10:-10, -1], interior[:, -11])
    np.testing.assert_array_equal(seen[0, 0], interior[10, 10])


def test_no_margin_copies_nothing() -> None:
    photo = photograph(8, 8)
    assert np.shares_memory(fitting.with_margin(photo, 0), photo)


def test_an_interior_narrower_than_the_margin_is_mirrored_to_and_fro() -> None:
    photo = np.arange(3, dtype=np.uint8)[None, :, None].repeat(2, axis=0).repeat(3, axis=2)
    framed = fitting.with_margin(photo, 5)
    assert framed[0, :, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]


@pytest.mark.parametrize("height,width", [(1, 1), (1, 7), (7, 1)])
def test_a_side_of_one_pixel_is_repeated(height: int, width: int) -> None:
    """There is nothing to mirror."""
    photo = photograph(height, width)
    framed = fitting.with_margin(photo, 4)
    assert framed.shape == (height + 8, width + 8, 3)
    for axis, side in enumerate((height, width)):
        if side == 1:
            first = framed.take([0], axis=axis)
            np.testing.assert_array_equal(framed, np.broadcast_to(first, framed.shape))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30))
def test_a_margin_frames_any_photo_and_changes_none_of_it(height: int, width: int, margin: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    framed = fitting.with_margin(photo, margin)
    assert framed.shape == (height + 2 * margin, width + 2 * margin, 3)
    np.testing.assert_array_equal(framed[margin : margin + height, margin : margin + width], photo)


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_photo_of_any_size_fits_the_network(height: int, width: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for spec in (SPEC, PAPER):
        assert fitting.prepared(photo, spec).shape == (spec.height, spec.width, 3)


# Letterboxed

BOXED = fitting.with_fit(SPEC, "letterbox")


def by_red(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A network that draws the red of each pixel."""
    return np.ascontiguousarray(batch[..., 0])


def inside_of(spec: Spec) -> Any:  # noqa: ANN401 - a function of batches
    """The same without the margin of a Spec."""
    cut = slice(spec.margin, -spec.margin or None)
    return lambda batch: np.ascontiguousarray(batch[:, cut, cut, 0])


def test_a_letterboxed_photo_keeps_its_ratio_with_its_colour_around() -> None:
    photo = photograph(30, 90)
    seen = fitting.seen(photo, dataclasses.replace(BOXED, fill=(1, 2, 3)))
    inside = images.to_network_size(photo, height=21, width=64)
    np.testing.assert_array_equal(seen.image[21:42], inside)
    assert {tuple(pixel) for pixel in np.concatenate([seen.image[:21], seen.image[42:]]).reshape(-1, 3)} == {(1, 2, 3)}
    np.testing.assert_array_equal(seen.image[seen.inside], inside)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([SPEC, PAPER]))
def test_what_surrounds_a_letterboxed_photo_is_never_in_its_mask(height: int, width: int, spec: Spec) -> None:
    """The photo is black, and what surrounds it is not."""
    spec = dataclasses.replace(fitting.with_fit(spec, "letterbox"), fill=(255, 255, 255))
    photo = np.zeros((height, width, 3), np.uint8)
    class_map = fitting.drawn(photo, spec, inside_of(spec))
    assert class_map.size
    assert not class_map.any()
    assert fitting.prepared(photo, spec).any() == (class_map.shape != fitting.network_size(spec))


def test_the_mask_of_a_letterboxed_photo_lies_on_it() -> None:
    photo = np.zeros((64, 128, 3), np.uint8)
    photo[16:32, 64:96] = 200
    class_map = images.to_photo_size(fitting.drawn(photo, BOXED, by_red), height=64, width=128)
    expected = photo[..., 0] > 100
    assert np.mean((class_map > 100) == expected) > 0.99
    assert (class_map[18:30, 66:94] > 100).all()


# In tiles

TILED = fitting.with_fit(SPEC, "tile")
PAPER_TILED = fitting.with_fit(PAPER, "tile")


def test_an_eighth_of_a_side_overlaps_where_a_network_has_no_margin_of_its_own() -> None:
    assert (TILED.overlap, PAPER_TILED.overlap) == (8, 0)
    assert fitting.with_fit(SPEC, "tile", 3).overlap == 3
    assert fitting.with_fit(dataclasses.replace(TILED, overlap=5), None).overlap == 5
    assert fitting.with_fit(TILED, "stretch") == SPEC


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 11), st.sampled_from([SPEC, PAPER]))
def test_tiles_give_every_pixel_the_class_of_the_whole_image(height: int, width: int, overlap: int, spec: Spec) -> None:
    """Of a network that looks at each pixel alone, whatever the sizes."""
    spec = fitting.with_fit(spec, "tile", overlap)
    photo = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fitting.drawn(photo, spec, inside_of(spec)), photo[..., 0])


@given(st.integers(65, 400), st.integers(0, 31))
def test_neighbouring_tiles_decide_up_to_the_middle_of_what_they_share(length: int, overlap: int) -> None:
    about = fitting.plan(fitting.with_fit(SPEC, "tile", overlap), length, length)
    for before, after in zip(about.rows, about.rows[1:], strict=False):
        assert before.last == after.first
        assert before.start + SPEC.height - before.last >= overlap
        assert after.first - after.start >= overlap
    assert (about.rows[0].start, about.rows[-1].start + SPEC.height) == (0, length)


def mean_of_neighbours(reach: int) -> Any:  # noqa: ANN401 - a function of batches
    """A network of that field of view, whose border is padded with zeros as a convolution's is."""

    def classify(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        padded = np.pad(batch[..., 0].astype(np.uint16), ((0, 0), (reach, reach), (reach, reach)))
        shifts = range(2 * reach + 1)
        height, width = batch.shape[1:3]
        total = sum(padded[:, down : down + height, right : right + width] for down in shifts for right in shifts)
        return np.asarray(total // len(shifts) ** 2).astype(np.uint8)

    return classify


@pytest.mark.parametrize("height,width", [(64, 64), (65, 200), (250, 131)])
def test_no_seam_shows_where_the_overlap_reaches_as_far_as_the_network(height: int, width: int) -> None:
    photo = photograph(height, width)
    network = mean_of_neighbours(3)
    whole = network(photo[None])[0]
    np.testing.assert_array_equal(fitting.drawn(photo, fitting.with_fit(SPEC, "tile", 3), network), whole)
    if (height, width) != (64, 64):
        assert (fitting.drawn(photo, fitting.with_fit(SPEC, "tile", 0), network) != whole).any()


def test_a_network_with_a_margin_sees_the_photo_around_each_tile_and_a_mirror_around_the_photo() -> None:
    """Overlap-tile: valid convolutions over the mirrored photo, whole, are the same."""
    photo = photograph(70, 90)

    def network(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        found = mean_of_neighbours(PAPER.margin)(batch)
        return np.ascontiguousarray(found[:, PAPER.margin : -PAPER.margin, PAPER.margin : -PAPER.margin])

    whole = network(fitting.with_margin(photo, PAPER.margin)[None])[0]
    np.testing.assert_array_equal(fitting.drawn(photo, PAPER_TILED, network), whole)


def test_a_photo_smaller_than_a_tile_lies_in_the_middle_mirrored_around() -> None:
    photo = photograph(20, 30)
    seen = fitting.seen(photo, TILED)
    np.testing.assert_array_equal(seen.image[22:42, 17:47], photo)
    np.testing.assert_array_equal(seen.image[21, 17:47], photo[1])
    np.testing.assert_array_equal(seen.image[seen.inside], photo)


def test_samples_go_round_the_tiles_of_a_photo() -> None:
    photo = photograph(150, 100)
    about = fitting.plan(TILED, 150, 100)
    assert about.tiles == 3 * 2
    every = [fitting.seen(photo, TILED, place) for place in range(2 * about.tiles)]
    assert len({seen.image.tobytes() for seen in every}) == about.tiles
    covered = np.zeros(photo.shape[:2], bool)
    for seen in every:
        np.testing.assert_array_equal(seen.image[seen.inside], photo[seen.window])
        covered[seen.window] = True
    assert covered.all()


def test_tiles_of_one_colour_are_computed_once() -> None:
    photo = np.zeros((300, 300, 3), np.uint8)
    photo[:, 150:] = 7
    photo[250, 20] = 9
    calls = []

    def network(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        calls.append(len(batch))
        return by_red(batch)

    np.testing.assert_array_equal(fitting.drawn(photo, fitting.with_fit(SPEC, "tile", 0), network), photo[..., 0])
    assert fitting.plan(fitting.with_fit(SPEC, "tile", 0), 300, 300).tiles == 25
    assert len(calls) == 2 + 5 + 2  # two colours, the tiles that show both, and the two that see the dot


def test_auto_takes_tiles_above_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_PIXELS", 100 * 100)
    spec = fitting.with_fit(SPEC, "auto")
    assert fitting.plan(spec, 100, 100) == fitting.plan(SPEC, 100, 100)
    assert fitting.plan(spec, 101, 100) == fitting.plan(TILED, 101, 100)


@pytest.mark.parametrize(
    "change,what",
    [
        ({"fit": "crop"}, "there is no fit 'crop'"),
        ({"overlap": 32}, "an overlap of 32 pixels on each side leaves nothing of a tile of 64"),
        ({"overlap": -1}, "an overlap of -1"),
        ({"fill": (1, 2, 256)}, "the colour"),
    ],
)
def test_a_fit_that_means_nothing_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        dataclasses.replace(SPEC, **change)


def test_a_spec_says_its_fit_only_where_photographs_are_not_stretched() -> None:
    """Files from before say the same of a network that stretches."""
    assert not {"fit", "fill", "overlap"} & SPEC.to_dict().keys()
    assert BOXED.to_dict()["fit"] == "letterbox"
    for spec in (SPEC, BOXED, TILED, dataclasses.replace(BOXED, fill=(0, 0, 0))):
        assert Spec.from_json(spec.to_json()) == spec
    assert BOXED.fill == GREY
