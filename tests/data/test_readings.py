"""What makes a class map of a file: its values, its colours, or painted shapes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from layout_folders import save

from segdeploy import artifact, image_files
from segdeploy.data.readings import BAND, INDICES, UNKNOWN, VOID, Colours, MaskReading, Painted, Values
from segdeploy.data.shapes import Polygons
from segdeploy.errors import InvalidFileError

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (1, 1, 1)
READINGS: list[MaskReading] = [
    Values(((0, 0), (7, 1)), "a table"),
    Values(((0, 1), (7, 0)), "a table"),
    Colours(((RED, 0), (BLUE, 1)), "a table"),
    Colours(((RED, 0), (BLUE, 1)), "a table", VOID),
    Painted(4, 4, 0, ()),
    Painted(4, 4, VOID, ()),
    Painted(4, 4, 0, ((1, Polygons(((0.0, 0.0, 4.0, 0.0, 4.0, 4.0),))),)),
    INDICES,
]


def test_each_reading_has_an_identity_of_its_own_that_stays() -> None:
    """What was remembered of a mask counts while it is read in the same way."""
    assert len({reading.identity for reading in READINGS}) == len(READINGS)
    for reading in READINGS:
        again = pickle.loads(pickle.dumps(reading))  # noqa: S301 - as the processes that train get it
        assert again == reading
        assert again.identity == reading.identity
    assert INDICES.identity == ""


@pytest.mark.parametrize("reading", READINGS[:4])
def test_a_digest_changes_with_the_file_and_with_the_reading(tmp_path: Path, reading: MaskReading) -> None:
    path = tmp_path / "a.png"
    save(path, np.zeros((4, 4), np.uint8))
    before = reading.sha256(path)
    assert before not in {artifact.sha256(path), *(each.sha256(path) for each in READINGS if each != reading)}
    save(path, np.ones((4, 4), np.uint8))
    assert reading.sha256(path) != before


def test_a_digest_of_indices_is_that_of_the_file(tmp_path: Path) -> None:
    """Checkpoints that were trained before remember it so."""
    save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    assert INDICES.sha256(tmp_path / "a.png") == artifact.sha256(tmp_path / "a.png")


def test_colours_are_looked_up_in_every_band_of_a_long_image(tmp_path: Path) -> None:
    pixels = np.full((2 * BAND + 3, 2, 3), RED, np.uint8)
    pixels[BAND:, 1] = BLUE
    save(tmp_path / "a.png", pixels)
    found = READINGS[2].class_map(tmp_path / "a.png", ignore_index=255)
    assert np.array_equal(found, (pixels[..., 2] == 255).astype(np.uint8))
    pixels[-1, 0] = GREY
    save(tmp_path / "a.png", pixels)
    with pytest.raises(InvalidFileError, match=r"has the colour 1,1,1, which a table does not name \(0\.1% of"):
        READINGS[2].class_map(tmp_path / "a.png", ignore_index=255)
    assert READINGS[3].class_map(tmp_path / "a.png", ignore_index=9)[-1, 0] == 9


def test_colours_stored_as_jpeg_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", np.full((8, 8, 3), RED, np.uint8))
    with pytest.raises(InvalidFileError, match="is a JPEG, which changes colours"):
        READINGS[3].class_map(tmp_path / "a.jpg", ignore_index=255)


def test_void_shapes_and_a_void_background_become_the_ignored_index() -> None:
    square = Polygons(((0.0, 0.0, 2.0, 0.0, 2.0, 4.0, 0.0, 4.0),))
    for background, shape, expected in ((VOID, 0, [0, 0, 7, 7]), (0, VOID, [7, 7, 0, 0])):
        found = Painted(4, 4, background, ((shape, square),)).class_map(Path("a.json"), ignore_index=7)
        assert found.tolist() == [expected] * 4


@pytest.mark.parametrize("height, width", [(0, 1), (-2, -2), (1, image_files.MAX_PIXELS + 1), (10**9, 10**9)])
def test_no_memory_is_taken_for_a_size_that_is_none(height: int, width: int) -> None:
    with pytest.raises(InvalidFileError, match=r"a\.json describes an image of"):
        Painted(height, width, 0, ()).class_map(Path("a.json"), ignore_index=255)


def test_unknown_is_no_class_and_no_void() -> None:
    assert UNKNOWN != VOID
    assert max(UNKNOWN, VOID) < 0
