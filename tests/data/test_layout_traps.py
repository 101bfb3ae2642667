"""What public data sets hide from whoever reads them: each trap is planted in a folder that is otherwise whole."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from layout_folders import WRITERS, Masks, save
from PIL import Image
from test_layouts import masks_of

import segdeploy
from segdeploy.data import layouts
from segdeploy.data.dataset import DataFolder, Picture
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError

VOID = 255


def written(name: str, root: Path, masks: Masks | None = None) -> Path:
    root.mkdir(exist_ok=True)
    WRITERS[name](root, masks or masks_of(12))
    return root


def truth(picture: Picture, classes: int, ignore_index: int = VOID) -> list[list[int]]:
    found = picture.truth(classes=classes, ignore_index=ignore_index)
    assert found is not None
    return [list(map(int, row)) for row in found]


def first(root: Path) -> Picture:
    return layouts.open_folder(root).pictures[0]


# CamVid


@pytest.mark.parametrize("ignore_index", [VOID, 11])
def test_camvid_void_is_the_ignored_index_of_whoever_asks(tmp_path: Path, ignore_index: int) -> None:
    root = written("camvid", tmp_path / "data")
    picture = first(root)
    save(picture.label, np.array([[0, 10, 11]], np.uint8))
    assert truth(picture, 11, ignore_index) == [[0, 10, ignore_index]]
    save(picture.label, np.array([[0, 12, 11]], np.uint8))
    with pytest.raises(InvalidFileError, match="has the value 12, which CamVid does not know"):
        truth(picture, 11)


def test_camvid_lists_choose_and_name_what_is_missing(tmp_path: Path) -> None:
    root = written("camvid", tmp_path / "data")
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join(lines[:4]))
    data = layouts.open_folder(root)
    assert [picture.image.stem for picture in data.train] == ["01", "02", "03", "04"]
    assert data.unlisted == 5
    (root / "train.txt").write_text("/SegNet/CamVid/train/77.png /SegNet/CamVid/trainannot/77.png\n")
    with pytest.raises(InvalidRequestError, match="names 1 images that are not in train/"):
        layouts.open_folder(root)


@pytest.mark.skipif("SEGDEPLOY_DATA" not in os.environ, reason="SEGDEPLOY_DATA does not name the folder of camvid/")
def test_camvid_as_it_lies_on_disk(segdeploy_data: Path) -> None:
    data = layouts.open_folder(segdeploy_data / "camvid")
    assert (data.layout, len(data.train), len(data.val)) == ("camvid", 367, 101)
    assert {value for row in truth(data.val[0], 11) for value in row} == {*range(11), VOID}


def test_camvid_both_colours_of_the_sidewalk_are_one_class(tmp_path: Path) -> None:
    root = written("camvid_original", tmp_path / "data")
    picture = first(root)
    colours = [(0, 0, 192), (60, 40, 222), (0, 0, 0), (128, 0, 192), (64, 192, 128), (64, 0, 64)]
    save(picture.label, np.array([colours], np.uint8))
    assert truth(picture, 11) == [[4, 4, VOID, 3, 4, VOID]]  # Sidewalk twice, Void, LaneMkgsDriv, ParkingBlock, Tunnel
    save(picture.label, np.array([[(1, 2, 3)]], np.uint8))
    with pytest.raises(InvalidFileError, match="has the colour 1,2,3, which CamVid does not name"):
        truth(picture, 11)


def test_camvid_own_table_of_colours_counts(tmp_path: Path) -> None:
    root = written("camvid_original", tmp_path / "data")
    (root / "label_colors.txt").write_text("1 1 1\t\tSky\n128 0 0\tBuilding\n128 128 128 Road\n0 0 192 Sidewalk\n")
    assert {value for row in truth(first(root), 11) for value in row} == {1, 3}
    for line in ("1 1 1 Dragon", "300 1 1 Sky", "Sky"):
        (root / "label_colors.txt").write_text(line)
        with pytest.raises(InvalidFileError, match="names no class of CamVid"):
            layouts.open_folder(root)


# Cityscapes, ADE20K, VOC, SBD


def test_cityscapes_ids_that_are_no_train_ids_are_void(tmp_path: Path) -> None:
    """0 is `unlabeled` and no road; -1, the licence plate, is 255 in eight bits."""
    picture = first(written("cityscapes", tmp_path / "data"))
    save(picture.label, np.array([[0, 1, 7, 8, 29, 33, 255]], np.uint8))
    assert truth(picture, 19) == [[VOID, VOID, 0, 1, VOID, 18, VOID]]
    save(picture.label, np.array([[34]], np.uint8))
    with pytest.raises(InvalidFileError, match="has the value 34, which Cityscapes does not know"):
        truth(picture, 19)


def test_cityscapes_test_images_take_no_part(tmp_path: Path) -> None:
    root = written("cityscapes", tmp_path / "data")
    save(root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", np.zeros((4, 4, 3), np.uint8))
    data = layouts.open_folder(root)
    assert (len(data.pictures), data.unlisted) == (12, 1)
    next(root.rglob("*_gtFine_labelIds.png")).unlink()
    with pytest.raises(InvalidRequestError, match="1 images have no mask") as refused:
        layouts.open_folder(root)
    assert "_gtFine_labelIds.png" in refused.value.remedy


def test_ade20k_is_shifted_by_one_and_0_is_void(tmp_path: Path) -> None:
    root = written("ade20k", tmp_path / "data")
    picture = first(root)
    save(picture.label, np.array([[0, 1, 150]], np.uint8))
    assert truth(picture, 150) == [[VOID, 0, 149]]
    save(picture.label, np.array([[151]], np.uint8))
    with pytest.raises(InvalidFileError, match="has the value 151"):
        truth(picture, 150)


def test_ade20k_names_are_those_of_its_table(tmp_path: Path) -> None:
    root = written("ade20k", tmp_path / "data")
    data = layouts.open_folder(root)
    assert data.classes is not None
    assert not data.classes.named
    rows = [f"{index}\t0.1\t1\t1\t0\tname{index}, other" for index in range(1, 149)]
    rows += ["149\t0.1\t1\t1\t0\tscreen, silver screen", "150\t0.1\t1\t1\t0\tscreen, CRT screen"]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))
    classes = layouts.classes_of(layouts.open_folder(root), ignore_index=VOID)
    assert classes.names[:2] == ("name1", "name2")
    assert classes.names[148:] == ("screen, silver screen", "screen, CRT screen")
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tName", *rows[:7]]))
    with pytest.raises(InvalidFileError, match="is not the table of ADE20K's 150 classes"):
        layouts.open_folder(root)


def test_voc_indices_count_and_not_the_colours_of_the_palette(tmp_path: Path) -> None:
    picture = first(written("voc", tmp_path / "data"))
    image = Image.fromarray(np.array([[0, 20, 255]], np.uint8))
    image.putpalette([9, 9, 9] * 256)
    image.save(picture.label)
    assert truth(picture, 21) == [[0, 20, VOID]]


def test_voc_masks_in_the_colours_of_a_label_map(tmp_path: Path) -> None:
    """CVAT and Datumaro write VOC so."""
    root = written("voc", tmp_path / "data")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:250,50,83::\n")
    data = layouts.open_folder(root)
    assert layouts.classes_of(data, ignore_index=VOID).names == ("background", "road")
    save(data.train[0].label, np.array([[(0, 0, 0), (250, 50, 83)]], np.uint8))
    assert truth(data.train[0], 2) == [[0, 1]]
    for text in ("road\n", "a:0,0,0::\nb:0,0,0::\n", "a:0,0,256::\n", ""):
        (root / "labelmap.txt").write_text(text)
        with pytest.raises(InvalidFileError, match=r"labelmap\.txt"):
            layouts.open_folder(root)


def test_sbd_matlab_files_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    root = written("sbd", tmp_path / "data")
    for mask in (root / "cls").iterdir():
        mask.rename(mask.with_suffix(".mat"))
    with pytest.raises(InvalidRequestError, match="MATLAB files") as refused:
        layouts.open_folder(root)
    assert "loadmat" in refused.value.remedy


# Pairs


def test_carvana_values_are_0_and_1_or_255(tmp_path: Path) -> None:
    root = written("carvana", tmp_path / "data")
    picture = first(root)
    save(picture.label, np.array([[0, 1, 255]], np.uint8))
    assert truth(picture, 2) == [[0, 1, 1]]
    save(picture.label, np.array([[0, 2]], np.uint8))
    with pytest.raises(InvalidFileError, match="has the value 2"):
        truth(picture, 2)
    (root / "classes.csv").write_text("a,0,0,0\nb,1,1,1\nc,2,2,2\n")
    assert truth(first(root), 3) == [[0, 2]]


def test_folders_by_parts_around_or_inside(tmp_path: Path) -> None:
    for index, forms in enumerate(
        [("train/rgb", "train/gt", "val/rgb", "val/gt"), ("a/train", "gt/train", "a/valid", "gt/valid")]
    ):
        root = tmp_path / str(index)
        for place, name in zip(forms, ("x", "x", "y", "y"), strict=True):
            is_mask = "gt" in place
            save(root / place / f"{name}.png", np.zeros((4, 4) if is_mask else (4, 4, 3), np.uint8))
        data = layouts.open_folder(root)
        assert data.layout == "folders"
        assert [picture.image.stem for picture in data.train] == ["x"]
        assert [picture.image.stem for picture in data.val] == ["y"]
        assert data.has_val_list


def test_folders_of_unknown_names_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "zwei" / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / "eins" / f"{name}.png", np.zeros((4, 4), np.uint8))
    data = layouts.open_folder(tmp_path)
    assert {picture.label.parent.name for picture in data.pictures} == {"eins"}
    for name in "abc":
        save(tmp_path / "zwei" / f"{name}.png", np.zeros((4, 4), np.uint8))
    assert not layouts.is_labelled(tmp_path)


def test_two_folders_of_photographs_are_no_pair(tmp_path: Path) -> None:
    """Calibration images in two folders stay what they were."""
    for folder in ("day", "night"):
        save(tmp_path / folder / "a.jpg", np.zeros((4, 4, 3), np.uint8))
    assert not layouts.is_labelled(tmp_path)


@pytest.mark.parametrize("name", ["folders", "carvana", "voc", "camvid", "plain"])
def test_names_that_differ_in_unicode_normalisation_alone_match(name: str, tmp_path: Path) -> None:
    """MacOS writes an accent apart."""
    root = written(name, tmp_path / "data", {"00": np.eye(8, dtype=np.uint8), "01": np.eye(8, dtype=np.uint8)})
    picture = layouts.open_folder(root).val[0]
    stem = picture.image.stem
    picture.image.rename(picture.image.with_name(picture.image.name.replace(stem, "é", 1)))
    apart = unicodedata.normalize("NFD", "é")
    picture.label.rename(picture.label.with_name(picture.label.name.replace(stem, apart, 1)))
    for table in [path for path in root.rglob("*.txt") if path.is_file()]:
        table.write_text(table.read_text().replace(stem, apart))
    (again,) = [each for each in layouts.open_folder(root).pictures if each.image.stem == "é"]
    assert again.label.name.startswith(apart)
    assert again.truth(classes=2, ignore_index=VOID) is not None


# nnU-Net


def write_document(root: Path, text: str) -> None:
    (root / "dataset.json").write_text(text)


def test_nnunet_ignored_label_is_void_and_the_suffix_belongs_to_the_channel(tmp_path: Path) -> None:
    root = written("nnunet", tmp_path / "data")
    write_document(root, '{"labels": {"background": 0, "thing": 1, "ignore": 2}, "file_ending": ".png"}')
    picture = first(root)
    assert picture.image.name == "case_01_0000.png"
    assert picture.label.name == "case_01.png"
    save(picture.label, np.array([[0, 1, 2]], np.uint8))
    assert truth(picture, 2) == [[0, 1, VOID]]


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"labels": {"a": 0, "b": [1, 2]}, "file_ending": ".png"}', "has regions"),
        ('{"labels": {"a": 0, "b": 0}, "file_ending": ".png"}', "no class each"),
        ('{"labels": {"a": 0, "b": 999}, "file_ending": ".png"}', "no class each"),
        ('{"labels": {}, "file_ending": ".png"}', "0 classes"),
        ('{"labels": {"a": 0}, "file_ending": ".nii.gz"}', "is of volumes"),
        ('{"labels": {"a": 0}}', "cannot be read as annotations"),
        ('{"labels": ', "cannot be read as annotations"),
        ("[" * 100_000, "cannot be read as annotations"),
    ],
)
def test_nnunet_document_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    root = written("nnunet", tmp_path / "data")
    write_document(root, text)
    with pytest.raises(SegdeployError, match=reason):
        layouts.open_folder(root)


def test_nnunet_channels_in_several_files_are_refused(tmp_path: Path) -> None:
    root = written("nnunet", tmp_path / "data")
    save(root / "imagesTr/case_00_0001.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(InvalidRequestError, match="is no first channel"):
        layouts.open_folder(root)


# Which layout it is


def test_a_layout_that_is_named_says_what_the_folder_lacks(tmp_path: Path) -> None:
    root = written("plain", tmp_path / "data")
    for name in set(layouts.names()) - {"plain", "folders"}:
        with pytest.raises(InvalidRequestError, match="data") as refused:
            layouts.open_folder(DataFolder(root, name))
        assert f"which the layout {name} needs" in refused.value.what
    with pytest.raises(InvalidRequestError, match="there is no layout 'atlantis'") as refused:
        layouts.open_folder(DataFolder(root, "atlantis"))
    assert "cityscapes" in refused.value.remedy


def test_a_named_layout_goes_before_what_is_recognised(tmp_path: Path) -> None:
    root = written("cityscapes", written("voc", tmp_path / "data"))
    with pytest.raises(InvalidRequestError, match="looks like the layouts cityscapes and voc"):
        segdeploy.check_data(root)
    for name in ("cityscapes", "voc"):
        assert segdeploy.check_data(segdeploy.DataFolder(root, name)).layout == name


def test_recognising_a_long_folder_reads_little_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand files are listed when the folder is opened, not before."""
    root = written("cityscapes", tmp_path / "data")
    monkeypatch.setattr(Path, "iterdir", None)
    monkeypatch.setattr(Path, "rglob", None)
    monkeypatch.setattr("segdeploy.data.dataset.files_in", None)
    assert layouts.is_labelled(root)


def test_converting_names_two_images_of_one_stem_by_their_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        save(tmp_path / "data" / part / "rgb" / "a.png", np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / "data" / part / "gt" / "a.png", np.eye(4, dtype=np.uint8))
    segdeploy.convert_masks(tmp_path / "data", out=tmp_path / "ours")
    names = sorted(path.name for path in (tmp_path / "ours/images").iterdir())
    assert names == ["train_rgb_a.png", "val_rgb_a.png"]
    assert (tmp_path / "ours/val.txt").read_text() == "val_rgb_a.png\n"


def test_a_mask_that_cannot_be_converted_leaves_nothing_behind(tmp_path: Path) -> None:
    root = written("cityscapes", tmp_path / "data")
    save(layouts.open_folder(root).val[-1].label, np.array([[99]], np.uint8))
    with pytest.raises(InvalidFileError, match="has the value 99"):
        segdeploy.convert_masks(root, out=tmp_path / "ours")
    assert [path for path in (tmp_path / "ours").rglob("*") if path.is_file()] == []
