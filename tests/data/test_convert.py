"""Masks in colours become class indices by the colours of classes.csv; a colour that nothing names stops it."""

from pathlib import Path

import numpy as np
import pytest
from conftest import photographs
from PIL import Image

import segdeploy
from segdeploy import ConvertOptions, images
from segdeploy.data import convert
from segdeploy.errors import InvalidFileError, InvalidRequestError

TABLE = "name,r,g,b\nsky,128,128,128\nroad,128,64,128\ncar,64,0,128\n"
SKY, ROAD, CAR, VOID, OTHER = (128, 128, 128), (128, 64, 128), (64, 0, 128), (0, 0, 0), (1, 2, 3)
Colour = tuple[int, int, int]


def coloured(path: Path, *colours: Colour) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array([colours], np.uint8)).save(path)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Two masks in colours, with their table beside the folder."""
    (tmp_path / "classes.csv").write_text(TABLE)
    coloured(tmp_path / "colours/a.png", SKY, ROAD, CAR)
    coloured(tmp_path / "colours/b.png", CAR, CAR, SKY)
    return tmp_path / "colours"


def indices(path: Path) -> list[int]:
    return [int(value) for value in images.read_mask(path)[0]]


def test_a_colour_becomes_the_line_of_its_class(colours: Path, tmp_path: Path) -> None:
    report = segdeploy.convert_masks(colours, out=tmp_path / "masks")
    assert (report.masks, report.out, report.ignored) == (2, tmp_path / "masks", 0)
    assert report.pixels == {"sky": 2, "road": 1, "car": 3}
    assert (indices(tmp_path / "masks/a.png"), indices(tmp_path / "masks/b.png")) == ([0, 1, 2], [2, 2, 0])
    again = np.array(Image.open(tmp_path / "masks/a.png").convert("RGB"))
    assert np.array_equal(again, np.array(Image.open(colours / "a.png")))


@pytest.mark.parametrize("ignore_index", [3, 11, 255])
def test_void_is_set(colours: Path, tmp_path: Path, ignore_index: int) -> None:
    coloured(colours / "c.png", VOID, SKY, OTHER)
    options = ConvertOptions(void=[VOID, OTHER], ignore_index=ignore_index)
    report = segdeploy.convert_masks(colours, out=tmp_path / "masks", options=options)
    assert indices(tmp_path / "masks/c.png") == [ignore_index, 0, ignore_index]
    assert report.ignored == 2


def test_every_other_colour_can_be_void(colours: Path, tmp_path: Path) -> None:
    coloured(colours / "c.png", VOID, SKY, OTHER)
    segdeploy.convert_masks(colours, out=tmp_path / "masks", options=ConvertOptions(void_others=True))
    assert indices(tmp_path / "masks/c.png") == [255, 0, 255]


def test_a_colour_that_nothing_names_stops_it_and_nothing_is_written(colours: Path, tmp_path: Path) -> None:
    coloured(colours / "c.png", SKY, OTHER, OTHER)
    with pytest.raises(
        InvalidFileError, match=r"c\.png has the colour 1,2,3, which classes\.csv does not name"
    ) as refused:
        segdeploy.convert_masks(colours, out=tmp_path / "masks")
    assert "66.7%" in refused.value.what
    assert "--void 1,2,3" in refused.value.remedy
    assert list((tmp_path / "masks").glob("*")) == []


@pytest.mark.parametrize("colour", [(127, 128, 128), (128, 128, 129), (129, 64, 128)])
def test_a_colour_beside_a_class_is_not_that_class(colours: Path, tmp_path: Path, colour: Colour) -> None:
    coloured(colours / "c.png", colour)
    with pytest.raises(InvalidFileError, match=f"has the colour {','.join(map(str, colour))}"):
        segdeploy.convert_masks(colours, out=tmp_path / "masks")


def test_nothing_that_is_there_is_written_over(colours: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "images", "a.png")
    before = (tmp_path / "images/a.png").read_bytes()
    for out in (tmp_path / "images", colours):
        with pytest.raises(InvalidRequestError, match=r"a\.png is there already"):
            segdeploy.convert_masks(colours, out=out)
    assert (tmp_path / "images/a.png").read_bytes() == before
    assert indices_of_colours(colours / "a.png") == [SKY, ROAD, CAR]


def indices_of_colours(path: Path) -> list[Colour]:
    return [(int(red), int(green), int(blue)) for red, green, blue in np.array(Image.open(path))[0]]


def test_two_masks_of_one_stem_are_refused(colours: Path, tmp_path: Path) -> None:
    coloured(colours / "a.bmp", SKY)
    with pytest.raises(InvalidRequestError, match="is of two masks"):
        segdeploy.convert_masks(colours, out=tmp_path / "masks")


def test_a_jpeg_is_refused(colours: Path, tmp_path: Path) -> None:
    """Its colours are near those that were drawn, and no more."""
    coloured(colours / "c.jpg", SKY)
    with pytest.raises(InvalidFileError, match=r"c\.jpg is a JPEG, which changes colours"):
        segdeploy.convert_masks(colours, out=tmp_path / "masks", options=ConvertOptions(void_others=True))


def test_masks_of_black_and_white_and_of_palettes_have_colours_too(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("ground,0,0,0\nthing,255,255,255\n")
    (tmp_path / "grey").mkdir()
    grey = Image.fromarray(np.array([[0, 255]], np.uint8))
    grey.save(tmp_path / "grey/a.png")
    grey.convert("P").save(tmp_path / "grey/b.png")
    options = ConvertOptions(classes=tmp_path / "table.csv")
    segdeploy.convert_masks(tmp_path / "grey", out=tmp_path / "masks", options=options)
    assert indices(tmp_path / "masks/a.png") == indices(tmp_path / "masks/b.png") == [0, 1]


@pytest.mark.parametrize(
    "table, options, reason",
    [
        ("a,0,0,0\nb,0,0,0\n", ConvertOptions(), "a and b have one colour, 0,0,0"),
        ("a,0,0,0\nb,1,1,1\n", ConvertOptions(void=[(1, 1, 1)]), "b and void have one colour, 1,1,1"),
        ("a,0,0,0\nb,1,1,1\n", ConvertOptions(ignore_index=1), "1 is ignored, and is the index of b"),
    ],
)
def test_a_table_that_does_not_tell_classes_apart_is_refused(
    colours: Path, tmp_path: Path, table: str, options: ConvertOptions, reason: str
) -> None:
    (tmp_path / "classes.csv").write_text(table)
    with pytest.raises(InvalidRequestError, match=reason):
        segdeploy.convert_masks(colours, out=tmp_path / "masks", options=options)
    assert not (tmp_path / "masks").exists()


def test_what_it_needs_is_named(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nothing is missing or has no masks"):
        convert.convert(tmp_path / "nothing", tmp_path / "masks")
    (tmp_path / "classes.csv").unlink()
    with pytest.raises(InvalidRequestError, match=r"there is no table of classes .*classes\.csv"):
        convert.convert(colours, tmp_path / "masks")


def test_what_it_writes_can_be_trained_on(colours: Path, tmp_path: Path) -> None:
    for name in "cd":
        coloured(colours / f"{name}.png", SKY, ROAD, CAR)
    photographs(tmp_path / "images", *(f"{name}.png" for name in "abcd"), height=1, width=3)
    segdeploy.convert_masks(colours, out=tmp_path / "masks")
    report = segdeploy.check_data(tmp_path)
    assert (report.images, report.faults) == (4, ())
    assert [each.name for each in report.classes] == ["sky", "road", "car"]
