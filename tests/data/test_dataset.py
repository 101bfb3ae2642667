"""A labelled folder is read as its lists and its table say, and what is wrong with it is named."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import photographs
from PIL import Image

from segdeploy import palettes
from segdeploy.data import dataset, layouts
from segdeploy.errors import InvalidFileError, InvalidRequestError


def mask(path: Path, *indices: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array([indices], np.uint8)).save(path)


def folder(root: Path, *names: str) -> Path:
    """Images of the given names, each with a mask of class 0."""
    photographs(root / "images", *names, height=2, width=2)
    for name in names:
        mask(root / "masks" / f"{Path(name).stem}.png", 0)
    return root


def named(pictures: tuple[dataset.Picture, ...]) -> list[str]:
    return [picture.image.name for picture in pictures]


def test_without_lists_every_tenth_image_validates(tmp_path: Path) -> None:
    data = layouts.open_folder(folder(tmp_path, *(f"{index:02}.png" for index in range(23))))
    assert named(data.val) == ["00.png", "10.png", "20.png"]
    assert named(data.train) == [f"{index:02}.png" for index in range(23) if index % 10]


def test_one_image_is_enough_to_score(tmp_path: Path) -> None:
    """`eval` needs no training images."""
    data = layouts.open_folder(folder(tmp_path, "only.png"))
    assert (named(data.train), named(data.val)) == ([], ["only.png"])


def test_lists_are_taken_in_their_order(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "val.txt").write_text("c.png\r\n\r\n  a.png  \r\n")
    (tmp_path / "train.txt").write_text("d.png\n")
    data = layouts.open_folder(tmp_path)
    assert (named(data.train), named(data.val)) == (["d.png"], ["c.png", "a.png"])


def test_with_val_txt_alone_the_rest_trains(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "val.txt").write_text("b.png\n")
    data = layouts.open_folder(tmp_path)
    assert (named(data.train), named(data.val)) == (["a.png", "c.png"], ["b.png"])


def test_a_list_may_name_files_in_any_encoding_and_begin_with_a_mark(tmp_path: Path) -> None:
    """Notepad writes the mark; a name on Linux is bytes."""
    latin = os.fsdecode(b"caf\xe9.png")
    folder(tmp_path, "a.png", latin)
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9.png\n")
    assert named(layouts.open_folder(tmp_path).val) == [latin]


def test_a_mask_belongs_to_the_image_of_its_stem(tmp_path: Path) -> None:
    photographs(tmp_path / "images", "a.jpg", "b.PNG")
    mask(tmp_path / "masks/a.png", 0)
    mask(tmp_path / "masks/b.png", 0)
    (tmp_path / "val.txt").write_text("a.jpg\nb.PNG\n")
    data = layouts.open_folder(tmp_path)
    assert data.val == tuple(
        dataset.Picture(tmp_path / "images" / image, tmp_path / "masks" / own)
        for image, own in [("a.jpg", "a.png"), ("b.PNG", "b.png")]
    )


def test_an_unknown_name_in_a_list_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "val.txt").write_text("a.png\nlost.png\ngone.png\n")
    with pytest.raises(InvalidRequestError, match=r"val\.txt names 2 images .*, the first is lost\.png"):
        layouts.open_folder(tmp_path)


def test_an_image_without_a_mask_is_refused_with_where_to_put_it(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(InvalidRequestError, match=r"1 images have no mask, the first is b\.png") as refused:
        layouts.open_folder(tmp_path)
    assert refused.value.remedy == "Put masks/b.png there, or leave the image out of the lists."


def test_an_image_outside_the_lists_needs_no_mask(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "masks/c.png").unlink()
    (tmp_path / "val.txt").write_text("a.png\n")
    (tmp_path / "train.txt").write_text("b.png\n")
    assert named(layouts.open_folder(tmp_path).train) == ["b.png"]


@pytest.mark.parametrize("made", [[], ["images"]])
def test_a_folder_without_images_is_refused(tmp_path: Path, made: list[str]) -> None:
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(InvalidRequestError, match="images is missing or has no images"):
        layouts.open_folder(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="there is no folder"):
        layouts.open_folder(tmp_path / "nothing")


@pytest.mark.parametrize("made", [[], ["masks"]])
def test_an_unlabelled_folder_is_refused(tmp_path: Path, made: list[str]) -> None:
    photographs(tmp_path / "images", "a.png")
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(InvalidRequestError, match="has no labels: masks/ is missing or empty"):
        layouts.open_folder(tmp_path)


def test_the_table_names_the_classes_and_their_colours(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_text('\ufeffground,0,0,0\n\n"house, red", 255 ,1,2\r\nWäldchen,0,255,0', "utf-8")
    found = layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert found.names == ("ground", "house, red", "Wäldchen")
    assert found.colours == ((0, 0, 0), (255, 1, 2), (0, 255, 0))


@pytest.mark.parametrize(
    "content",
    [
        b"name,r,g,b\nground,0,0,0\n",
        b"ground,0,0\n",
        b"ground,0,0,0,0\n",
        b"ground,0,0,zero\n",
        b"\xff\xfe\n",
        b'"' + b"a" * 140_000 + b'",0,0,0\n',  # above the field limit of the csv module
    ],
)
def test_a_bad_table_is_refused_with_what_it_should_hold(tmp_path: Path, content: bytes) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"classes\.csv is not a table of classes") as refused:
        layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert refused.value.remedy == "Give a line name,r,g,b for each class, and no header."


@pytest.mark.parametrize("count", [0, 257])
def test_a_table_of_too_few_or_too_many_classes_is_refused(tmp_path: Path, count: int) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_text("".join(f"class {index},0,0,0\n" for index in range(count)))
    with pytest.raises(InvalidRequestError, match=rf"classes\.csv names {count} classes; a class map holds 1 to 256"):
        layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)


def test_without_a_table_classes_are_numbered_up_to_the_highest_in_any_mask(tmp_path: Path) -> None:
    """A class that only validation shows must not fail after the first epoch."""
    folder(tmp_path, "a.png", "b.png")
    mask(tmp_path / "masks/a.png", 0, 4, 255)
    mask(tmp_path / "masks/b.png", 2, 255)
    data = layouts.open_folder(tmp_path)
    assert named(data.val) == ["a.png"]
    found = layouts.classes_of(data, ignore_index=255)
    assert found.names == ("class_0", "class_1", "class_2", "class_3", "class_4")
    assert found.colours == tuple(palettes.default_colours(5))


def test_the_ignored_index_is_no_class(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png")
    mask(tmp_path / "masks/b.png", 0, 1, 11)
    data = layouts.open_folder(tmp_path)
    assert len(layouts.classes_of(data, ignore_index=11).names) == 2
    assert len(layouts.classes_of(data, ignore_index=255).names) == 12


@pytest.mark.parametrize("indices", [(0, 255), (255, 255), (0, 0)])
def test_masks_of_one_class_are_refused(tmp_path: Path, indices: tuple[int, int]) -> None:
    """0/255 masks, the commonest of all, would train a network of one class that is always right."""
    folder(tmp_path, "a.png")
    mask(tmp_path / "masks/a.png", *indices)
    with pytest.raises(InvalidRequestError, match="one class") as caught:
        layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert "divide by 255" in caught.value.remedy


def test_truth_holds_the_networks_classes_and_the_ignored_index(tmp_path: Path) -> None:
    mask(tmp_path / "mask.png", 0, 1, 11)
    assert dataset.read_truth(tmp_path / "mask.png", classes=2, ignore_index=11).tolist() == [[0, 1, 11]]


def test_a_strange_class_in_a_mask_is_refused(tmp_path: Path) -> None:
    """It would be scored as a mistake of the network."""
    mask(tmp_path / "mask.png", 0, 1, 7, 255)
    with pytest.raises(InvalidFileError, match=r"mask\.png has class 7; the network has 2 classes and ignores 255"):
        dataset.read_truth(tmp_path / "mask.png", classes=2, ignore_index=255)
