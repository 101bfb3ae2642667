"""What every file in `data/layouts/` keeps: a new layout is tested because it is there."""

import importlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from layout_folders import ONE_FILE, WRITERS, Masks

import segdeploy
from segdeploy import images, palettes
from segdeploy.data import layouts
from segdeploy.data.dataset import Picture
from segdeploy.errors import InvalidRequestError, SegdeployError
from segdeploy.spec import MAX_CLASSES

every_layout = pytest.mark.parametrize("name", layouts.names())
HEIGHT, WIDTH = 30, 40
HIGHEST = 1  # class in the masks


def masks_of(count: int) -> Masks:
    """By name, masks in which both classes occur, each another one."""
    found = {}
    for index in range(count):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[: index + 1] = HIGHEST
        found[f"{index:02}"] = mask
    return found


def written(name: str, root: Path, count: int = 12) -> Path:
    """A labelled folder in that layout."""
    if name not in WRITERS:
        pytest.fail(f"tests/data/layout_folders.py does not say how a folder of the layout {name!r} is written")
    root.mkdir()
    WRITERS[name](root, masks_of(count))
    return root


@every_layout
def test_its_folder_is_recognised_and_opened_by_it(name: str, tmp_path: Path) -> None:
    """By no other that is asked before."""
    root = written(name, tmp_path / "data")
    recognising = {each for each in layouts.names() if layouts.layout(each).recognises(root)}
    assert recognising - {layouts.GENERAL} == {name} - {layouts.GENERAL}
    assert name in recognising
    assert layouts.is_labelled(root)
    opened = layouts.open_folder(root)
    assert (opened.root, opened.layout) == (root, name)
    assert opened.pictures == layouts.layout(name).open_folder(root).pictures


@every_layout
def test_every_picture_comes_once_with_its_own_mask(name: str, tmp_path: Path) -> None:
    data = layouts.open_folder(written(name, tmp_path / "data"))
    pictures = [*data.train, *data.val]
    assert data.val
    assert data.train
    assert len({picture.image for picture in pictures}) == len(pictures) == 12
    assert len({(picture.label, picture.reading.identity) for picture in pictures}) == 12
    rows = {int(np.count_nonzero(truth[:, 0])) for truth in map(truth_of, pictures)}
    assert rows == set(range(1, 13))


def truth_of(picture: Picture) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The mask, which has the size of its image."""
    truth = picture.truth(classes=HIGHEST + 1, ignore_index=255)
    assert truth is not None
    assert truth.shape == segdeploy.read_image(picture.image).shape[:2]
    return truth


@every_layout
def test_it_gives_the_images_masks_and_classes_that_were_written(name: str, tmp_path: Path) -> None:
    """Whatever the form: what is drawn into a mask comes out, pixel by pixel, beside its own image."""
    data = layouts.open_folder(written(name, tmp_path / "data"))
    expected = masks_of(12)
    found = {index_of(picture): picture for picture in data.pictures}
    assert found.keys() == expected.keys()
    for key, picture in found.items():
        assert np.array_equal(truth_of(picture), expected[key])
        again = pickle.loads(pickle.dumps(picture))  # noqa: S301 - as the processes that train get it
        assert again == picture
        assert np.array_equal(truth_of(again), expected[key])


def index_of(picture: Picture) -> str:
    """The two digits that the writers put into the name of an image."""
    words: list[str] = re.findall(r"\d+", picture.image.stem)
    return next(word for word in words if int(word) < 12)[-2:]


@every_layout
def test_what_is_converted_is_the_same_in_our_own_layout(name: str, tmp_path: Path) -> None:
    """The same images, byte by byte, masks, classes and division."""
    data = layouts.open_folder(written(name, tmp_path / "data"))
    classes = layouts.classes_of(data, ignore_index=255)
    report = segdeploy.convert_masks(tmp_path / "data", out=tmp_path / "ours")
    ours = layouts.open_folder(tmp_path / "ours")
    assert (ours.layout, report.masks) == ("plain", 12)
    known = layouts.classes_of(ours, ignore_index=255)
    assert (known.names, known.colours) == (classes.names, classes.colours)
    for before, after in ((data.train, ours.train), (data.val, ours.val)):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert one.image.read_bytes() == other.image.read_bytes()
            assert np.array_equal(truth_of(one), truth_of(other))
    with pytest.raises(InvalidRequestError, match="is there already"):
        segdeploy.convert_masks(tmp_path / "data", out=tmp_path / "ours")


@every_layout
def test_the_check_says_the_layout_and_finds_no_error(name: str, tmp_path: Path) -> None:
    report = segdeploy.check_data(written(name, tmp_path / "data"))
    assert report.layout == name
    assert f", layout {name}: " in next(report.header())
    assert {fault.name for fault in report.faults} <= {"absent-class"}
    assert sum(each.pixels for each in report.classes) == 12 * HEIGHT * WIDTH


@every_layout
def test_what_systems_leave_in_folders_changes_nothing(name: str, tmp_path: Path) -> None:
    root = written(name, tmp_path / "data")
    before = layouts.open_folder(root)
    for folder in {picture.image.parent for picture in before.pictures} | {
        picture.label.parent for picture in before.pictures
    }:
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "._00.png").write_bytes(b"\0")
        (folder / "Thumbs.db").write_bytes(b"\0")
    assert layouts.open_folder(root) == before


@every_layout
def test_a_folder_gives_the_same_pictures_in_the_same_order(name: str, tmp_path: Path) -> None:
    """Files are listed in any order; a training run is repeated to the bit, and a proof says which images it took."""
    first = layouts.open_folder(written(name, tmp_path / "data"))
    assert layouts.open_folder(tmp_path / "data") == first
    moved = layouts.open_folder((tmp_path / "data").rename(tmp_path / "elsewhere"))
    for before, after in ((first.train, moved.train), (first.val, moved.val)):
        assert [picture.image.name for picture in before] == [picture.image.name for picture in after]
    assert first.has_val_list == moved.has_val_list


@every_layout
def test_its_classes_are_those_of_a_spec(name: str, tmp_path: Path) -> None:
    data = layouts.open_folder(written(name, tmp_path / "data"))
    classes = layouts.classes_of(data, ignore_index=255)
    assert HIGHEST < len(classes.names) <= MAX_CLASSES
    assert len(set(classes.names)) == len(classes.names) == len(classes.colours)
    assert all(0 <= value <= 255 for colour in classes.colours for value in colour)


@every_layout
@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_what_is_no_folder_of_it_is_not_recognised_and_refused(name: str, tmp_path: Path, *, made: bool) -> None:
    root = tmp_path / "data"
    if made:
        root.mkdir()
    assert not layouts.layout(name).recognises(root)
    with pytest.raises(SegdeployError) as refused:
        layouts.layout(name).open_folder(root)
    assert str(root) in refused.value.what
    assert refused.value.remedy


@every_layout
def test_an_image_without_its_mask_is_named(name: str, tmp_path: Path) -> None:
    root = written(name, tmp_path / "data")
    if name in ONE_FILE:
        pytest.skip("one file holds every mask: an image without a shape there is background or void")
    picture = layouts.open_folder(root).train[0]
    picture.label.unlink()
    with pytest.raises(SegdeployError) as refused:
        layouts.open_folder(root)
    assert picture.image.name in refused.value.what
    assert picture.label.name in refused.value.remedy


@every_layout
@pytest.mark.usefixtures("workspace")
def test_its_folder_serves_a_verb_like_any_other(name: str, tmp_path: Path) -> None:
    """Scored, and proven with the points of mIoU that labels allow."""
    root = written(name, tmp_path / "data")
    data = layouts.open_folder(root)
    found = segdeploy.evaluate("unet", data=root, engine="ort:fp32", force=True)
    assert found.images == len(data.val)
    assert found.miou is not None
    certificate = segdeploy.parity("unet", data=root, engine="ort:fp32", force=True)
    assert certificate.images == len(data.val)
    assert certificate.stages[0].miou_change is not None


# The values of published masks


with_values = [name for name in layouts.names() if hasattr(layouts.layout(name), "PUBLISHED_VALUES")]


def classes_and_values(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    published = importlib.import_module(f"segdeploy.data.layouts.{name}").PUBLISHED_VALUES
    return tuple(published), tuple(published.values())


@pytest.mark.parametrize("name", with_values)
def test_published_values_are_read_as_the_classes_that_they_are_of(name: str, tmp_path: Path) -> None:
    """A mask in the data's own values is one of its masks: the reading of the layout gives the class map back."""
    classes, values = classes_and_values(name)
    class_map = np.arange(len(classes), dtype=np.uint8)[None]
    (tmp_path / "mask.png").write_bytes(images.mask_png(np.array(values, np.uint8)[class_map], [(0, 0, 0)]))
    reading = importlib.import_module(f"segdeploy.data.layouts.{name}").READING
    np.testing.assert_array_equal(reading.class_map(tmp_path / "mask.png", ignore_index=255), class_map)
    assert layouts.published_values(classes) == values


def test_the_values_of_a_data_set_are_those_that_it_publishes() -> None:
    """Cityscapes in helpers/labels.py of cityscapesScripts; ADE20K counts its classes from 1, VOC and CamVid from 0."""
    assert with_values == ["ade20k", "camvid", "cityscapes", "voc"]
    cityscapes = dict(zip(*classes_and_values("cityscapes"), strict=True))
    assert (cityscapes["road"], cityscapes["sky"], cityscapes["person"], cityscapes["bicycle"]) == (7, 23, 24, 33)
    assert layouts.published_values(palettes.ADE20K.classes) == tuple(range(1, 151))
    assert layouts.published_values(palettes.VOC.classes) == tuple(range(21))
    assert layouts.published_values(palettes.CAMVID.classes) == tuple(range(11))


def test_classes_are_known_in_any_order_and_with_their_synonyms() -> None:
    """`objectInfo150.txt` has synonyms, other people's configurations spaces and capitals."""
    written = {"wall": "Wall", "bed": "bed ", "building": "building, edifice"}
    classes = [written.get(name, name) for name in reversed(palettes.ADE20K.classes)]
    assert layouts.published_values(classes) == tuple(range(150, 0, -1))


@pytest.mark.parametrize(
    "classes",
    [
        ("ground", "thing"),
        palettes.CITYSCAPES.classes[:-1],
        (*palettes.CITYSCAPES.classes, "caravan"),
        (*palettes.CITYSCAPES.classes[:-1], "bike"),
        (*palettes.CITYSCAPES.classes[:-1], "Road"),
        tuple(f"class_{index}" for index in range(150)),
    ],
)
def test_values_of_other_classes_are_refused(classes: tuple[str, ...]) -> None:
    """A class more or less may be another data set, and its ids others."""
    with pytest.raises(
        InvalidRequestError, match=r"are those of no data set whose values are known \(ade20k, camvid, c"
    ):
        layouts.published_values(classes)


def test_a_folder_that_no_layout_recognises_is_told_what_the_plain_one_needs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert not layouts.is_labelled(tmp_path)
    with pytest.raises(InvalidRequestError, match="images is missing or has no images") as refused:
        layouts.open_folder(tmp_path)
    assert refused.value.remedy == "Give a folder with images/ and masks/."
