"""Who takes which part: images that prove take no other, and those that cannot be read are left out and named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import known, photographs
from PIL import Image
from quick_exports import UNSIGNED, copied, hashes, quickly

import segdeploy
from segdeploy import artifact, workspace
from segdeploy.data import layouts
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.making import ExportOptions
from segdeploy.quantization import images_in_parts
from segdeploy.quantization.images_in_parts import Parts, parts_of

Asked = dict[str, Any]


def packaged_alone(_: Path, __: Path) -> Asked:
    return {"at_hand": workspace.pictures_of(None), "calibrate": None, "data": None}


def calibrate_alone(photos: Path, _: Path) -> Asked:
    return {"at_hand": (), "calibrate": photos, "data": None}


def labelled_alone(_: Path, labelled: Path) -> Asked:
    return {"at_hand": (), "calibrate": None, "data": labelled}


def labelled_without_lists(_: Path, labelled: Path) -> Asked:
    (labelled / "val.txt").unlink()
    return {"at_hand": (), "calibrate": None, "data": labelled}


def both_folders(photos: Path, labelled: Path) -> Asked:
    return {"at_hand": (), "calibrate": photos, "data": labelled}


def packaged_and_labelled(_: Path, labelled: Path) -> Asked:
    return {"at_hand": workspace.pictures_of(None), "calibrate": None, "data": labelled}


def the_same_images_twice(_: Path, labelled: Path) -> Asked:
    """Whoever calibrates on what is also given to prove."""
    return {"at_hand": (), "calibrate": labelled / "images", "data": labelled}


def the_same_images_under_other_names(_: Path, labelled: Path) -> Asked:
    other = copied(labelled / "images", labelled.parent / "other", lambda name: f"copy of {name}")
    return {"at_hand": (), "calibrate": other, "data": labelled}


def copies_in_one_folder(photos: Path, labelled: Path) -> Asked:
    """Frames of a camera that stood still; sorted by their bytes, copies are neighbours."""
    images = copied(photos, labelled.parent / "twice/images", str)
    shutil.copy(photos / "0.png", images / "copy of 0.png")
    return {"at_hand": (), "calibrate": None, "data": images.parent}


def copies_in_both_lists(_: Path, labelled: Path) -> Asked:
    shutil.copy(labelled / "images/0.png", labelled / "images/1.png")
    return {"at_hand": (), "calibrate": None, "data": labelled}


@pytest.mark.parametrize(
    "asked",
    [
        packaged_alone,
        calibrate_alone,
        labelled_alone,
        labelled_without_lists,
        both_folders,
        packaged_and_labelled,
        the_same_images_twice,
        the_same_images_under_other_names,
        copies_in_one_folder,
        copies_in_both_lists,
    ],
    ids=lambda asked: asked.__name__,
)
def test_images_that_prove_take_no_other_part(
    asked: Callable[[Path, Path], Asked], photos: Path, labelled: Path
) -> None:
    """Not by their names: by their bytes."""
    parts = parts_of(**asked(photos, labelled))
    assert parts.calibrate
    assert parts.rank
    assert parts.prove
    others = {*hashes(parts.calibrate), *hashes([picture.image for picture in parts.rank])}
    assert others.isdisjoint(hashes([picture.image for picture in parts.prove]))


@pytest.mark.parametrize("lists", ["none", "val.txt", "train.txt", "both"])
def test_what_validates_proves_as_in_every_command(labelled: Path, lists: str) -> None:
    """Without val.txt, half of the folder proved: mostly images that training had seen."""
    (labelled / "val.txt").unlink()
    if lists in {"val.txt", "both"}:
        (labelled / "val.txt").write_text("1.png\n5.png\n")
    if lists in {"train.txt", "both"}:
        (labelled / "train.txt").write_text("0.png\n2.png\n3.png\n")
    parts = parts_of(at_hand=(), calibrate=None, data=labelled)
    data = layouts.open_folder(labelled)
    assert list(parts.prove) == list(data.val) == workspace.pictures_of(labelled)
    assert {picture.image for picture in parts.rank} == {picture.image for picture in data.train}


def test_of_the_packaged_images_sixteen_calibrate_and_rank_and_sixteen_prove() -> None:
    """Sorted by sha256: the even ones decide, the odd ones prove."""
    ordered = sorted(workspace.packaged_images(), key=artifact.sha256)
    parts = parts_of(at_hand=workspace.pictures_of(None), calibrate=None, data=None)
    assert list(parts.calibrate) == [picture.image for picture in parts.rank] == ordered[::2]
    assert [picture.image for picture in parts.prove] == ordered[1::2]
    assert len(parts.calibrate) == len(parts.prove) == 16


def parts_by_hash(parts: Parts) -> list[list[str]]:
    return [hashes(parts.calibrate), *(hashes([each.image for each in part]) for part in (parts.rank, parts.prove))]


@pytest.mark.parametrize("rename", [str.upper, lambda name: f"{9 - int(name[0])}.png"], ids=["upper", "backwards"])
def test_names_decide_nothing(photos: Path, tmp_path: Path, rename: Callable[[str], str]) -> None:
    """The same photographs make the same graph, whatever they are called."""
    other = copied(photos, tmp_path / "other", rename)
    parts = parts_by_hash(parts_of(at_hand=(), calibrate=photos, data=None))
    assert parts == parts_by_hash(parts_of(at_hand=(), calibrate=other, data=None))
    reversed_order = parts_of(at_hand=workspace.pictures_of(None)[::-1], calibrate=None, data=None)
    assert reversed_order == parts_of(at_hand=workspace.pictures_of(None), calibrate=None, data=None)


def test_val_txt_proves_with_its_masks(labelled: Path) -> None:
    parts = parts_of(at_hand=(), calibrate=None, data=labelled)
    assert {picture.image.name for picture in parts.prove} == {"0.png", "2.png", "4.png"}
    assert {picture.image.name for picture in parts.rank} == {"1.png", "3.png", "5.png"}
    for picture in (*parts.rank, *parts.prove):
        assert picture.mask is not None
        assert picture.mask.stem == picture.image.stem


def test_where_every_image_is_in_val_txt_half_of_them_decide(labelled: Path) -> None:
    """The examples that come with the package are such a folder."""
    (labelled / "val.txt").write_text("".join(f"{index}.png\n" for index in range(6)))
    parts = parts_of(at_hand=(), calibrate=None, data=labelled)
    assert (len(parts.rank), len(parts.prove)) == (3, 3)


def test_a_folder_for_calibration_that_has_labels_gives_what_trains(labelled: Path, photos: Path) -> None:
    data = copied(photos, labelled.parent / "unlabelled/images", str).parent
    parts = parts_of(at_hand=(), calibrate=labelled, data=data)
    trains = {artifact.sha256(labelled / f"images/{index}.png") for index in (1, 3, 5)}
    assert set(hashes(parts.calibrate)) <= trains


def test_no_more_images_calibrate_and_rank_than_change_anything(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_in_parts, "MOST_CALIBRATING", 2)
    monkeypatch.setattr(images_in_parts, "MOST_RANKING", 3)
    parts = parts_of(at_hand=(), calibrate=photos, data=None)
    assert (len(parts.calibrate), len(parts.rank), len(parts.prove)) == (2, 3, 3)


@pytest.mark.parametrize("names", [(), ("images/a.png",)], ids=["no images", "one image"])
@pytest.mark.parametrize("option", ["calibrate", "data"])
def test_too_few_images_are_refused(tmp_path: Path, names: tuple[str, ...], option: str) -> None:
    photographs(tmp_path, *names)
    folders = {"calibrate": None, "data": None, option: tmp_path}
    with pytest.raises(InvalidRequestError):
        parts_of(at_hand=(), **folders)


def test_calibration_images_that_all_prove_are_refused(photos: Path, tmp_path: Path) -> None:
    """Each must be kept out, and none is left."""
    proving = parts_of(at_hand=(), calibrate=None, data=copied(photos, tmp_path / "d/images", str).parent).prove
    (tmp_path / "calibrate").mkdir()
    shutil.copy(proving[0].image, tmp_path / "calibrate")
    with pytest.raises(InvalidRequestError, match="is also a proof image"):
        parts_of(at_hand=(), calibrate=tmp_path / "calibrate", data=tmp_path / "d")


def test_own_weights_have_no_calibration_images_but_those_they_were_validated_on(workspace: Path) -> None:
    """Random scales would be worse than none, and the packaged images show cells."""
    shutil.rmtree(workspace / "validation")
    with pytest.raises(InvalidRequestError, match="there are no images to calibrate") as refused:
        segdeploy.export("unet", precision="int8")
    assert "--calibrate DIR" in refused.value.remedy
    assert "--data DIR" in refused.value.remedy


# Images that cannot be read


def corrupt(image: Path) -> Path:
    image.write_bytes(image.read_bytes()[:300])
    return image


@pytest.mark.usefixtures("workspace")
def test_a_corrupt_image_among_those_that_calibrate_is_left_out_and_named(labelled: Path, tmp_path: Path) -> None:
    calibrate = photographs(tmp_path / "calibrate", *(f"{name}.png" for name in "abcdefghij"))
    bad = corrupt(calibrate / "j.png")
    calibration = known(quickly(calibrate=calibrate, data=labelled).origin.calibration)
    assert list(calibration.skipped) == [bad.name]
    assert "truncated" in calibration.skipped[bad.name]
    assert {"g.png", "h.png", "i.png"} <= set(calibration.images), "a to f are those of the labelled folder"
    assert bad.name not in calibration.images


@pytest.mark.usefixtures("workspace")
def test_a_corrupt_image_of_the_only_folder_is_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    """With --calibrate alone, what calibrates also decides."""
    calibrate = copied(photos, tmp_path / "calibrate", str)
    chosen = parts_of(at_hand=(), calibrate=calibrate, data=None).calibrate
    bad = corrupt(chosen[0])
    assert list(known(quickly(calibrate=calibrate).origin.calibration).skipped) == [bad.name]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_where_no_calibration_image_can_be_read_there_is_no_graph(
    labelled: Path, tmp_path: Path, precision: str
) -> None:
    """Never a random scale."""
    calibrate = photographs(tmp_path / "calibrate", "a.png", "b.png", "c.png")
    for index, file in enumerate(sorted(calibrate.iterdir())):
        file.write_bytes(corrupt(file).read_bytes()[: 300 - index])
    with pytest.raises(InvalidFileError, match="none of 3 calibration images can be read"):
        segdeploy.export("unet", precision=precision, options=ExportOptions(calibrate=calibrate, data=labelled))
    assert [path.name for path in Path("export").glob("*.onnx")] == ["unet.fp32.onnx"]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("index", [0, 1], ids=["proves", "decides"])
def test_a_mask_with_a_strange_class_is_refused(labelled: Path, index: int) -> None:
    Image.fromarray(np.full((60, 80), 7, np.uint8)).save(labelled / f"masks/{index}.png")
    with pytest.raises(InvalidFileError, match=f"{index}.png has class 7; the network has 2 classes"):
        quickly(data=labelled)
    assert not UNSIGNED.exists()
