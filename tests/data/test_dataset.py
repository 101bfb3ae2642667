"""A labelled folder is read as its lists and its table say, and what is wrong with it is named."""

import itertools
import os
import unicodedata
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


def test_with_train_txt_alone_the_rest_validates(tmp_path: Path) -> None:
    """Every tenth image of the folder may be one that trains."""
    folder(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "train.txt").write_text("a.png\nc.png\n")
    data = layouts.open_folder(tmp_path)
    assert (named(data.train), named(data.val)) == (["a.png", "c.png"], ["b.png"])
    assert data.has_val_list


def test_a_train_txt_that_names_every_image_leaves_none_to_validate(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "train.txt").write_text("a.png\nb.png\n")
    with pytest.raises(InvalidRequestError, match=r"train\.txt names every image: none is left to validate"):
        layouts.open_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe", b"# nothing yet\n"])
@pytest.mark.parametrize("name", ["train.txt", "val.txt"])
def test_an_empty_list_is_not_an_absent_one(tmp_path: Path, name: str, content: bytes) -> None:
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequestError, match=rf"{name} is empty"):
        layouts.open_folder(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "b.png",
        "b",
        "images/b.png",
        "./images/b",
        "/elsewhere/set/images/b.png",
        "images\\b.png",
        "b.png b.png",
        "images/b.png\tmasks/b.png",
        "b,b",
        "b.png; masks/b.png",
        "# a comment\nb.png",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_names_an_image_by_name_stem_path_or_with_its_mask(tmp_path: Path, line: str, encoding: str) -> None:
    folder(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "val.txt").write_bytes(f"{line}\r\n".encode(encoding))
    own = dataset.Picture(tmp_path / "images/b.png", tmp_path / "masks/b.png")
    assert layouts.open_folder(tmp_path).val == (own,)


def test_names_with_the_marks_of_columns_are_names_first(tmp_path: Path) -> None:
    folder(tmp_path, "a, b.png", "a.png", "c d.png")
    (tmp_path / "val.txt").write_text("a, b.png\nc d.png c d.png\nc d.png, a, b.png\n")
    data = layouts.open_folder(tmp_path)
    assert [(picture.image.name, picture.label.name) for picture in data.val] == [
        ("a, b.png", "a, b.png"),
        ("c d.png", "c d.png"),
        ("c d.png", "a, b.png"),
    ]


def test_the_second_column_names_a_mask_of_another_stem(tmp_path: Path) -> None:
    photographs(tmp_path / "images", "a.jpg", "b.jpg")
    mask(tmp_path / "masks/a_labels.png", 0)
    mask(tmp_path / "masks/b.png", 0)
    (tmp_path / "val.txt").write_text("images/a.jpg masks/a_labels.png\n")
    assert layouts.open_folder(tmp_path).val[0].label.name == "a_labels.png"


def test_a_path_to_another_file_of_that_name_is_not_the_image(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png")
    photographs(tmp_path / "others", "a.png")
    (tmp_path / "val.txt").write_text("others/a.png\n")
    with pytest.raises(InvalidRequestError, match=r"val\.txt names 1 images .*, the first is others/a\.png"):
        layouts.open_folder(tmp_path)


def test_a_stem_of_two_images_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "a.jpg")
    (tmp_path / "val.txt").write_text("a\n")
    with pytest.raises(InvalidFileError, match=r"a may be a\.jpg or a\.png in .*images"):
        layouts.open_folder(tmp_path)


ACCENTED = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
APART = "cafe\N{COMBINING ACUTE ACCENT}"


@pytest.mark.parametrize("image, label, line", [*itertools.product([ACCENTED, APART], repeat=3)])
def test_names_that_differ_in_unicode_normalisation_alone_match(
    tmp_path: Path, image: str, label: str, line: str
) -> None:
    """A Mac writes the accent apart."""
    photographs(tmp_path / "images", f"{image}.png", "b.png")
    mask(tmp_path / f"masks/{label}.png", 0)
    mask(tmp_path / "masks/b.png", 0)
    (tmp_path / "val.txt").write_text(f"{line}.png\n", "utf-8")
    assert named(layouts.open_folder(tmp_path).val) == [f"{image}.png"]


def test_normalisation_does_not_change_the_default_split(tmp_path: Path) -> None:
    """The letter with its accent sorts behind z, the two apart before."""
    others = [f"{letter}.png" for letter in "abdefghijkz"]
    splits = []
    for place, name in enumerate((ACCENTED, APART)):
        data = layouts.open_folder(folder(tmp_path / str(place), *others, f"{name}.png"))
        splits.append([unicodedata.normalize("NFC", each) for each in named(data.val)])
    assert splits[0] == splits[1]


def test_two_images_that_differ_in_normalisation_alone_are_told_apart_by_a_list(tmp_path: Path) -> None:
    folder(tmp_path, f"{ACCENTED}.png", "b.png")
    photographs(tmp_path / "images", f"{APART}.png")
    (tmp_path / "val.txt").write_text(f"{APART}.png\n", "utf-8")
    (tmp_path / "masks" / f"{ACCENTED}.png").rename(tmp_path / "masks" / f"{APART}.png")
    assert named(layouts.open_folder(tmp_path).val) == [f"{APART}.png"]


LITTER = ["._a.png", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", ".hidden.png", "__MACOSX/._a.png"]


@pytest.mark.parametrize("name", LITTER)
@pytest.mark.parametrize("where", ["images", "masks"])
def test_what_a_system_left_is_no_data(tmp_path: Path, where: str, name: str) -> None:
    folder(tmp_path, "a.png", "b.png")
    before = layouts.open_folder(tmp_path)
    (tmp_path / where / name).parent.mkdir(exist_ok=True)
    (tmp_path / where / name).write_bytes(b"Mac OS X")
    assert layouts.open_folder(tmp_path) == before


@pytest.mark.parametrize("name", ["thumbs.png", "macosx.png", "a.b.png"])
def test_names_that_look_like_it_are_data(tmp_path: Path, name: str) -> None:
    assert named(layouts.open_folder(folder(tmp_path, name)).val) == [name]


@pytest.mark.parametrize("other", ["a.tif", "a.PNG", "a.bmp"])
def test_two_masks_for_one_image_are_refused(tmp_path: Path, other: str) -> None:
    """An empty a.tif took the place of a.png."""
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "masks" / other).touch()
    with pytest.raises(InvalidFileError, match=r"masks has a\.\w+ and a\.\w+ for a\.png"):
        layouts.open_folder(tmp_path)
    (tmp_path / "val.txt").write_text("b.png\n")
    (tmp_path / "train.txt").write_text("a.png,a.png\n")  # which of the two is said
    assert layouts.open_folder(tmp_path).train[0].label.name == "a.png"


def test_a_text_is_no_mask(tmp_path: Path) -> None:
    """It replaced the mask of its stem."""
    folder(tmp_path, "a.png", "b.png")
    for name in ("a.txt", "notes.txt"):
        (tmp_path / "masks" / name).touch()
    data = layouts.open_folder(tmp_path)
    assert [picture.label.name for picture in data.pictures] == ["b.png", "a.png"]
    assert data.strays == (tmp_path / "masks/a.txt",)
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(InvalidRequestError, match=r"1 images have no mask, the first is a\.png"):
        layouts.open_folder(tmp_path)


def test_images_that_no_list_names_are_counted(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png", "c.png")
    assert layouts.open_folder(tmp_path).unlisted == 0
    (tmp_path / "val.txt").write_text("a.png\n")
    assert layouts.open_folder(tmp_path).unlisted == 0
    (tmp_path / "train.txt").write_text("b.png\n")
    assert layouts.open_folder(tmp_path).unlisted == 1


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
        b"ground,0,0,0\nname,r,g,b\n",  # a header stands at the top
        b"name,x,y,z\nground,0,0,0\n",
        b"ground,0,0\n",
        b"ground,0,0,0,0\n",
        b"ground,0,0,zero\n",
        b"ground,0,0,256\n",
        b"ground,0,0,0 note\n",
        b'"' + b"a" * 140_000 + b'",0,0,0\n',  # above the field limit of the csv module
    ],
)
def test_a_bad_table_is_refused_with_what_it_should_hold(tmp_path: Path, content: bytes) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"classes\.csv is not a table of classes") as refused:
        layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert refused.value.remedy == "Give a line name,r,g,b for each class."


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"\x00\xd8\x00\x00\n", b"caf\xe9,0,0,0\n"])
def test_a_table_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"classes\.csv is no text") as refused:
        layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert refused.value.remedy == "Save it as UTF-8."


@pytest.mark.parametrize(
    "content",
    [
        b"name,r,g,b\nground,0,0,0\n#thing,1,2,3",
        b"# our classes\n\nName, Red, Green, Blue\nground,0,0,0\n",
        b"  # at night, too\nground,0,0,0 # black, as the sky\n",
        b"ground,0,0,0#\n",
        "name,r,g,b\r\nground,0,0,0\r\n".encode("utf-16"),
        "\ufeffname,r,g,b\nground,0,0,0\n".encode("utf-16-be"),
        "ground,0,0,0\n".encode("utf-16-le"),
        "ground,0,0,0\n".encode("utf-16-be"),
    ],
)
def test_headers_comments_and_encodings_of_a_table_are_no_classes(tmp_path: Path, content: bytes) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_bytes(content)
    found = layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert (found.names, found.colours) == (("ground",), ((0, 0, 0),))


def test_a_class_may_be_called_like_a_header_and_hold_the_mark_of_a_comment(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "classes.csv").write_text("name,0,0,0\nlane #2,1,1,1\n")
    found = layouts.classes_of(layouts.open_folder(tmp_path), ignore_index=255)
    assert found.names == ("name", "lane #2")


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
