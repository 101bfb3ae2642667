"""Labels that do not fit are said before they are learnt, scored or proven on: each fault, and its neighbours."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, photograph
from PIL import Image

import segdeploy
from segdeploy import artifact, images
from segdeploy.artifact import Artifact
from segdeploy.data import _facts, check, layouts
from segdeploy.data._faults import Fault
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.origin import Origin
from segdeploy.spec import Precision

HEIGHT, WIDTH = 12, 16
ORIENTATION = 0x0112


def picture(root: Path, name: str, mask: np.ndarray[Any, Any] | None = None, **photo: Any) -> None:  # noqa: ANN401 - Pillow's own
    """A photo with its mask, by default one in which both classes occur."""
    height, width = photo.pop("size", (HEIGHT, WIDTH))
    exif = Image.Exif()
    exif[ORIENTATION] = photo.pop("orientation", 1)
    mask_exif = Image.Exif()
    mask_exif[ORIENTATION] = photo.pop("mask_orientation", 1)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    seed = photo.pop("seed", sum(name.encode()))
    Image.fromarray(photograph(height, width, seed)).save(root / "images" / f"{name}.png", exif=exif)
    if mask is None:
        mask = both()
    Image.fromarray(mask).save(root / "masks" / f"{name}.png", exif=mask_exif)


def both(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray[Any, Any]:
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 1
    return mask


def filled(value: int) -> np.ndarray[Any, Any]:
    return np.full((HEIGHT, WIDTH), value, np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder without a fault: twelve pictures of two classes."""
    for name in "abcdefghijkl":
        picture(tmp_path / "data", name)
    return tmp_path / "data"


def classes(root: Path, *names: str) -> None:
    (root / "classes.csv").write_text("".join(f"{name},{index},0,0\n" for index, name in enumerate(names)))


def faults(root: Path, **asked: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - of `check`
    return [(fault.severity, fault.name) for fault in check.check(root, **asked).faults]


def the_fault(root: Path, **asked: Any) -> Fault:  # noqa: ANN401 - of `check`
    (fault,) = check.check(root, **asked).faults
    return fault


# --- what is in it


def test_the_report_counts_images_pairs_classes_and_sizes(root: Path) -> None:
    picture(root, "m", np.full((20, 10), 255, np.uint8), size=(20, 10))
    (root / "val.txt").write_text("m\na\n")
    (root / "train.txt").write_text("b\n")
    report = check.check(root)
    assert (report.images, report.train, report.val, report.listed) == (13, 1, 2, True)
    assert [(each.name, each.pixels, each.share) for each in report.classes] == [
        ("class_0", 192, 0.5),
        ("class_1", 192, 0.5),
    ]
    assert report.ignored == 200 / (200 + 2 * HEIGHT * WIDTH)
    assert [(each.height, each.width, each.images) for each in report.sizes] == [(HEIGHT, WIDTH, 2), (20, 10, 1)]


def test_a_sound_folder_has_no_fault_and_says_how_it_is_divided(root: Path) -> None:
    report = check.check(root)
    assert report.faults == ()
    assert list(report.header()) == [
        f"{root}, layout plain: 12 images, 12 with masks: 10 train, 2 val (every tenth validates)",
        "  sizes: 12x16 (12)",
        "  classes: class_0 50.0%, class_1 50.0%; ignored 0.0%",
    ]


def test_the_header_of_many_sizes_and_classes_is_three_lines(root: Path) -> None:
    for side in range(20, 25):
        picture(root, f"s{side}", both(side, side), size=(side, side))
    classes(root, *(f"class {index}" for index in range(40)))
    first, sizes, names = check.check(root).header()
    assert sizes == "  sizes: 12x16 (12), 20x20 (1), 21x21 (1), 3 others"
    assert "class 31 0.0%, 8 others; ignored" in names
    assert "17 images" in first


# --- shapes


def test_a_mask_of_another_shape_is_an_error(root: Path) -> None:
    picture(root, "c", both(HEIGHT, WIDTH - 2))
    fault = the_fault(root)
    assert (fault.severity, fault.name, fault.files) == ("error", "shape", (root / "masks/c.png",))
    assert "1 mask has another shape than the photo" in fault.what
    assert "c.png is 12x14, c.png is 12x16" in fault.what


@pytest.mark.parametrize("size", [(HEIGHT // 2, WIDTH // 2), (2 * HEIGHT, 2 * WIDTH), (9, 12), (HEIGHT, WIDTH - 1)])
def test_a_mask_of_another_size_and_the_same_shape_is_a_warning(root: Path, size: tuple[int, int]) -> None:
    """Rounding costs a pixel."""
    picture(root, "c", both(*size))
    assert faults(root) == [("warning", "size")]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_turned_photo_with_an_unturned_mask_is_an_error(root: Path, orientation: int) -> None:
    """Both were stretched to the network's size, and it trained without a word."""
    picture(root, "c", orientation=orientation)
    fault = the_fault(root)
    assert (fault.severity, fault.name) == ("error", "shape")
    assert f"c.png is 12x16, c.png that EXIF turns (orientation {orientation}) is 16x12" in fault.what
    assert fault.remedy == "Turn the mask as its photo is turned."


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_that_is_turned_as_its_photo_fits(root: Path, orientation: int) -> None:
    picture(root, "c", orientation=orientation, mask_orientation=orientation)
    assert faults(root) == []


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_was_drawn_on_the_upright_photo_fits(root: Path, orientation: int) -> None:
    picture(root, "c", both(WIDTH, HEIGHT), orientation=orientation)
    assert faults(root) == []


def test_a_mask_alone_that_exif_turns_is_an_error(root: Path) -> None:
    picture(root, "c", mask_orientation=6)
    assert faults(root) == [("error", "shape")]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_where_the_size_does_not_tell_a_turned_photo_is_a_warning(root: Path, orientation: int) -> None:
    picture(root, "c", orientation=orientation)
    assert faults(root) == [("warning", "turned")]


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_square_photo_tells_nothing_either(root: Path, orientation: int) -> None:
    picture(root, "c", both(8, 8), size=(8, 8), orientation=orientation)
    assert faults(root) == [("warning", "turned")]


def test_one_mask_that_is_upright_speaks_for_the_others(root: Path) -> None:
    """Whoever drew it saw the photos upright."""
    picture(root, "c", orientation=3)
    picture(root, "d", both(WIDTH, HEIGHT), orientation=6)
    assert faults(root) == []


# --- files that are no masks


def test_a_mask_that_is_stored_as_jpeg_is_an_error(root: Path) -> None:
    """It made a class that nobody drew; by its content, not by its name."""
    Image.fromarray(both()).save(root / "masks/c.png", "JPEG")
    fault = the_fault(root)
    assert (fault.severity, fault.name, fault.files) == ("error", "unreadable-mask", (root / "masks/c.png",))
    assert "c.png cannot be read: a mask holds class numbers, and JPEG changes them" in fault.what


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_mask_that_is_none_is_an_error(root: Path, content: bytes) -> None:
    for name in "cd":
        (root / f"masks/{name}.png").write_bytes(content)
    fault = the_fault(root)
    assert (fault.severity, fault.name, len(fault.files)) == ("error", "unreadable-mask", 2)
    assert fault.what.startswith("2 masks cannot be used, the first: ")


def test_a_mask_in_colours_is_an_error(root: Path) -> None:
    Image.fromarray(both()).convert("RGB").save(root / "masks/c.png")
    assert "mode RGB" in the_fault(root).what


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_an_image_that_is_none_is_an_error(root: Path, content: bytes) -> None:
    (root / "images/c.png").write_bytes(content)
    assert faults(root) == [("error", "unreadable-image")]


def test_a_text_among_the_masks_is_a_warning(root: Path) -> None:
    (root / "masks/c.txt").touch()
    assert faults(root) == [("warning", "no-mask")]


# --- values


@pytest.mark.parametrize("ignore_index", [0, 255])
def test_masks_of_black_and_white_are_an_error(root: Path, ignore_index: int) -> None:
    """With two named classes they gave val mIoU 1.0000."""
    classes(root, "ground", "thing")
    for mask in (root / "masks").iterdir():
        Image.fromarray(255 * both()).save(mask)
    found = {fault.name: fault for fault in check.check(root, ignore_index=ignore_index).faults}
    assert found["black-and-white"].severity == "error"
    assert "segdeploy data convert" in found["black-and-white"].remedy


def test_black_and_white_is_fine_where_neither_is_ignored(root: Path) -> None:
    names = [f"class {index}" for index in range(256)]
    for mask in (root / "masks").iterdir():
        Image.fromarray(255 * both()).save(mask)
    classes(root, *names)
    assert ("error", "black-and-white") not in faults(root, ignore_index=7)


def test_black_and_white_without_names_is_refused_before(root: Path) -> None:
    for mask in (root / "masks").iterdir():
        Image.fromarray(255 * both()).save(mask)
    with pytest.raises(InvalidRequestError, match="hold one class, 0, and 255, which is ignored"):
        check.check(root)


def test_a_named_class_without_a_pixel_is_a_warning(root: Path) -> None:
    classes(root, "ground", "thing", "rider")
    fault = the_fault(root)
    assert (fault.severity, fault.name) == ("warning", "absent-class")
    assert fault.what == "no pixel is of rider: classes.csv names it."


def test_a_gap_between_the_classes_of_masks_is_a_warning(root: Path) -> None:
    """0/127 masks would make a network of 128 classes."""
    picture(root, "c", filled(3))
    fault = the_fault(root)
    assert (fault.severity, fault.name) == ("warning", "absent-class")
    assert "no pixel is of class_2" in fault.what


def test_a_class_that_only_validation_shows_is_a_warning(root: Path) -> None:
    picture(root, "a", filled(2))
    fault = the_fault(root)
    assert (fault.severity, fault.name) == ("warning", "unseen-class")
    assert "class_2" in fault.what


def test_a_class_that_only_training_shows_is_fine(root: Path) -> None:
    picture(root, "b", filled(2))
    assert faults(root) == []


@pytest.mark.parametrize("rows, expected", [(6, []), (7, [("warning", "mostly-ignored")])])
def test_more_than_half_ignored_is_a_warning(root: Path, rows: int, expected: list[tuple[str, str]]) -> None:
    """Half is not."""
    mask = filled(0)
    mask[:rows] = 255
    mask[-1] = 1
    for name in "abcdefghijkl":
        picture(root, name, mask)
    assert faults(root) == expected


@pytest.mark.parametrize("part, names", [("train", "bcdefghijl"), ("validate", "ak")])
def test_a_part_that_is_void_throughout_is_an_error(root: Path, part: str, names: str) -> None:
    for name in names:
        picture(root, name, filled(255))
    found = check.check(root).faults[0]
    assert (found.severity, found.name) == ("error", "all-void")
    assert f"every pixel of the masks that {part} is 255" in found.what


def test_one_mask_that_is_void_throughout_is_fine(root: Path) -> None:
    picture(root, "a", filled(255))
    assert faults(root) == []


def test_the_index_to_ignore_is_the_one_that_was_given(root: Path) -> None:
    classes(root, "ground", "thing")
    picture(root, "c", filled(11))
    assert faults(root, ignore_index=11) == []
    fault = the_fault(root)
    assert (fault.severity, fault.name, fault.files) == ("error", "strange-class", (root / "masks/c.png",))
    assert "c.png has class 11; the folder names 2 classes and ignores 255." in fault.what


# --- whose classes


def test_the_networks_classes_are_those_that_masks_may_hold(root: Path) -> None:
    picture(root, "c", filled(2))
    assert faults(root, network=("ground", "thing", "rider", "sky")) == []
    assert "the network has 2 classes" in the_fault(root, network=("ground", "thing")).what


def test_a_folder_that_names_other_classes_than_the_network_is_a_warning(root: Path) -> None:
    """Two lists of the same length in another order score one class as another."""
    classes(root, "thing", "ground")
    assert faults(root, network=("ground", "thing")) == [("warning", "other-classes")]
    classes(root, "ground", "thing")
    assert faults(root, network=("ground", "thing")) == []


def test_a_folder_to_score_may_show_one_class(root: Path) -> None:
    for name in "abcdefghijkl":
        picture(root, name, filled(0))
    assert faults(root, network=("ground", "thing")) == []


@pytest.mark.parametrize("command", ["random", "train"])
def test_a_network_of_random_weights_has_classes_in_name_only(root: Path, command: str) -> None:
    classes(root, "thing", "ground")
    file = Artifact(
        path=root,
        kind="checkpoint",
        precision=Precision.FP32,
        spec=SPEC,
        sha256="",
        made_at="",
        origin=Origin(command=command, version="0"),
    )
    if command == "random":
        check.require_for(file, root, force=False)
    else:
        with pytest.raises(InvalidFileError, match="the network's classes are ground, thing"):
            check.require_for(file, root, force=False)


# --- lists


def test_two_images_of_one_mask_are_a_warning(root: Path) -> None:
    Image.fromarray(photograph(HEIGHT, WIDTH)).save(root / "images/c.jpg")
    fault = the_fault(root)
    assert (fault.severity, fault.name, fault.files) == ("warning", "shared-mask", (root / "masks/c.png",))
    assert "c.jpg and c.png" in fault.what


def test_an_image_in_both_lists_is_a_warning(root: Path) -> None:
    (root / "train.txt").write_text("a\nb\nc\n")
    (root / "val.txt").write_text("c\nd\n")
    fault = the_fault(root)
    assert (fault.severity, fault.name, fault.files) == ("warning", "in-both-lists", (root / "images/c.png",))


def test_an_image_whose_copy_trains_is_a_warning(root: Path) -> None:
    """By bytes, whatever their names; copies inside one part are none."""
    shutil.copy(root / "images/b.png", root / "images/a.png")
    shutil.copy(root / "images/b.png", root / "images/d.png")
    fault = the_fault(root)
    assert (fault.severity, fault.name, fault.files) == ("warning", "copy-in-both-lists", (root / "images/a.png",))
    assert "a.png of b.png" in fault.what


def test_images_of_one_length_are_no_copies(root: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)).save(root / f"images/{name}.bmp")
        for folder in ("images", "masks"):
            (root / folder / f"{name}.png").rename(root / folder / f"{name}2.png")
        Image.fromarray(both()).save(root / f"masks/{name}.png")
    assert faults(root) == []


def test_each_image_is_hashed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of one camera may all have one length; each beside each other would take hours."""
    hashed: list[str] = []
    whole = artifact.sha256

    def watched(path: Path) -> str:
        hashed.append(path.name)
        return whole(path)

    monkeypatch.setattr(artifact, "sha256", watched)
    for index, name in enumerate("abcdefghijkl"):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), index, np.uint8)).save(root / f"images/{name}.png", "BMP")
    assert faults(root) == []
    assert sorted(hashed) == [f"{name}.png" for name in "abcdefghijkl"]


def test_an_image_twice_in_a_list_is_a_warning(root: Path) -> None:
    (root / "val.txt").write_text("a\nb\na\n")
    fault = the_fault(root)
    assert (fault.severity, fault.name) == ("warning", "listed-twice")
    assert "1 image is twice in val.txt, the first: a.png" in fault.what


# --- what it stops


def break_shape(root: Path) -> None:
    picture(root, "c", both(WIDTH, HEIGHT))


def leave_out_a_class(root: Path) -> None:
    classes(root, "ground", "thing", "rider")


@pytest.mark.parametrize("force", [False, True])
def test_an_error_stops_and_cannot_be_forced(root: Path, *, force: bool) -> None:
    break_shape(root)
    leave_out_a_class(root)
    with pytest.raises(InvalidFileError, match="another shape") as refused:
        check.require(root, ignore_index=255, force=force)
    assert "--force" not in refused.value.remedy
    assert ("There is 1 more fault." in refused.value.what) is not force
    assert (f"segdeploy data check {root}" in refused.value.remedy) is not force


def test_a_warning_stops_unless_it_is_forced_and_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "segdeploy")
    leave_out_a_class(root)
    with pytest.raises(InvalidFileError, match="no pixel is of rider") as refused:
        check.require(root, ignore_index=255, force=False)
    assert refused.value.remedy.endswith("Where it is meant so: --force")
    assert caplog.messages[0].startswith(f"{root}, layout plain: 12 images")
    caplog.clear()
    check.require(root, ignore_index=255, force=True)
    assert caplog.messages[-1] == "Warning: no pixel is of rider: classes.csv names it."


def test_errors_come_before_warnings(root: Path) -> None:
    leave_out_a_class(root)
    (root / "masks/c.txt").touch()
    (root / "images/d.png").write_bytes(b"")
    assert [severity for severity, _ in faults(root)] == ["error", "warning", "warning"]


def train(root: Path, *, force: bool = False) -> object:
    return segdeploy.train("unet", data=root, variant={"multiplier": 0.0625}, size=(32, 32), force=force)


def evaluate(root: Path, *, force: bool = False) -> object:
    return segdeploy.evaluate("unet", data=root, engine="ort:fp32", force=force)


def parity(root: Path, *, force: bool = False) -> object:
    return segdeploy.parity("unet", data=root, engine="ort:fp32", force=force)


def export(root: Path, *, force: bool = False) -> object:
    return segdeploy.export("unet", options=segdeploy.ExportOptions(data=root, force=force))


def export_int8(root: Path, *, force: bool = False) -> object:
    return segdeploy.export("unet", precision="int8", options=segdeploy.ExportOptions(data=root, force=force))


def sensitivity(root: Path, *, force: bool = False) -> object:
    return segdeploy.sensitivity("unet", options=segdeploy.ExportOptions(data=root, force=force))


def bench(root: Path, *, force: bool = False) -> object:
    asked = segdeploy.BenchOptions(engines=("ort:fp32",), data=root, force=force, effort=segdeploy.Effort(runs=1))
    return segdeploy.bench("unet", options=asked)


@pytest.mark.parametrize("verb", [train, evaluate, parity, export, export_int8, sensitivity, bench])
@pytest.mark.usefixtures("workspace")
def test_every_verb_that_takes_labels_checks_them(root: Path, verb: Callable[[Path], object]) -> None:
    break_shape(root)
    before = Path("checkpoints/unet.safetensors").read_bytes()
    with pytest.raises(InvalidFileError, match="1 mask has another shape than the photo"):
        verb(root)
    assert Path("checkpoints/unet.safetensors").read_bytes() == before


@pytest.mark.parametrize("verb", [evaluate, parity, bench])
@pytest.mark.usefixtures("workspace")
def test_a_verb_can_be_told_that_a_warning_is_meant(root: Path, verb: Callable[..., object]) -> None:
    picture(root, "c", both(HEIGHT // 2, WIDTH // 2))
    with pytest.raises(InvalidFileError, match="another size"):
        verb(root)
    verb(root, force=True)


@pytest.mark.usefixtures("workspace")
def test_photographs_without_masks_are_not_checked(tmp_path: Path, photos: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos/images")
    assert parity(tmp_path / "photos")


# --- what is remembered


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The masks that were read, by name; files count as old at once."""
    read: list[str] = []
    whole = images.read_mask

    def watched(path: Path) -> images.UInt8:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(images, "read_mask", watched)
    monkeypatch.setattr(_facts, "YOUNG_NS", 0)
    return read


def test_a_folder_is_read_once(root: Path, decoded: list[str]) -> None:
    first = check.check(root)
    assert len(decoded) == 12
    assert check.check(root) == first
    assert len(decoded) == 12


def test_what_has_changed_is_read_again(root: Path, decoded: list[str]) -> None:
    """Whatever its date says, and though its size is the same."""
    mask = root / "masks/c.bmp"
    (root / "masks/c.png").unlink()
    Image.fromarray(both()).save(mask)
    before = mask.stat()
    assert len(check.check(root).classes) == 2
    decoded.clear()
    Image.fromarray(2 * both()).save(mask)
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert mask.stat().st_size == before.st_size
    assert len(check.check(root).classes) == 3
    assert decoded == ["c.bmp"]


def test_what_changed_a_moment_ago_is_read_again(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change once more before the clock ticks."""
    monkeypatch.setattr(_facts, "YOUNG_NS", 3_600_000_000_000)
    check.check(root)
    check.check(root)
    assert len(decoded) >= 24


def test_a_memory_that_is_none_of_ours_is_left(root: Path, decoded: list[str]) -> None:
    first = check.check(root)
    decoded.clear()
    for kept in (artifact.cache_folder() / "labels").iterdir():
        kept.write_text('{"schema": 1}')
    assert check.check(root) == first
    assert len(decoded) == 12


@pytest.mark.usefixtures("decoded")
def test_a_user_without_a_home_can_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert check.check(root).faults == ()


def test_classes_are_numbered_by_what_the_check_has_read(root: Path, decoded: list[str]) -> None:
    check.check(root)
    decoded.clear()
    layouts.classes_of(layouts.open_folder(root), ignore_index=255)
    assert decoded == []


def test_progress_counts_every_file(root: Path) -> None:
    totals, steps = [], []

    @contextlib.contextmanager
    def counted(_title: str, total: int) -> Iterator[Callable[[], None]]:
        totals.append(total)
        yield lambda: steps.append(1)

    check.check(root, progress=counted)
    assert totals == [len(steps)] == [24]


# --- real folders


def test_the_nuclei_have_no_fault(segdeploy_data: Path) -> None:
    report = check.check(segdeploy_data / "nuclei")
    assert (report.images, report.train, report.val, report.faults) == (580, 509, 71, ())


def test_road_scenes_want_their_void_named(segdeploy_data: Path, tmp_path: Path) -> None:
    for name, kept in (("images", "val"), ("masks", "valannot")):
        (tmp_path / name).symlink_to(segdeploy_data / "camvid" / kept)
    named = check.check(tmp_path, ignore_index=11)
    assert (named.images, named.faults) == (101, ())
    assert len(named.classes) == 11
    assert 0 < named.ignored < 0.1
