"""JSON and XML of annotation tools: what lies on what, what is no mask, and what wants to harm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layout_folders import WRITERS, save
from test_layout_traps import VOID, first, truth, written
from test_layouts import masks_of

from segdeploy.data import check, layouts
from segdeploy.data.readings import Painted
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError

WHOLE = [0, 0, 4, 0, 4, 4, 0, 4]
LEFT = [0, 0, 2, 0, 2, 4, 0, 4]


def coco(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:  # noqa: ANN401 - JSON values
    """A folder of one image of 4x4, with these annotations."""
    save(root / "images/a.jpg", np.zeros((4, 4, 3), np.uint8))
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "categories": [{"id": 5, "name": "low"}, {"id": 90, "name": "high"}],
        "annotations": [{"image_id": 1, "iscrowd": 0, "area": 1, **each} for each in annotations],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations/instances_default.json").write_text(json.dumps({**document, **changes}))
    return root


def rows(root: Path) -> list[list[int]]:
    data = layouts.open_folder(root)
    assert data.layout == "coco_instances"
    return truth(data.pictures[0], 3)


def test_categories_are_numbered_by_their_ids_behind_the_background(tmp_path: Path) -> None:
    """Ids have gaps: COCO's eighty go up to 90."""
    root = coco(tmp_path, [{"category_id": 90, "segmentation": [LEFT]}])
    assert rows(root) == [[2, 2, 0, 0]] * 4
    assert layouts.classes_of(layouts.open_folder(root), ignore_index=VOID).names == ("background", "low", "high")


def test_the_smaller_covers_the_larger_and_crowds_lie_below(tmp_path: Path) -> None:
    large = {"category_id": 5, "segmentation": [WHOLE], "area": 16}
    small = {"category_id": 90, "segmentation": [LEFT], "area": 8}
    for order in ([large, small], [small, large]):
        assert rows(coco(tmp_path, order)) == [[2, 2, 1, 1]] * 4
    crowd = {"category_id": 90, "segmentation": {"counts": [0, 16], "size": [4, 4]}, "area": 1, "iscrowd": 1}
    assert rows(coco(tmp_path, [{**large, "segmentation": [LEFT]}, crowd])) == [[1, 1, 2, 2]] * 4
    assert rows(coco(tmp_path, [large, {**large, "category_id": 90}])) == [[2] * 4] * 4


def test_runs_go_down_the_columns(tmp_path: Path) -> None:
    for counts in ([0, 8, 8], "088"):
        runs = {"counts": counts, "size": [4, 4]}
        assert rows(coco(tmp_path, [{"category_id": 5, "segmentation": runs}])) == [[1, 1, 0, 0]] * 4


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        ([], "a box is no mask"),
        ([[0, 0, 1, 1]], "polygon of 4 numbers"),
        ([[0, 0, 1, 1, 1e9, 4]], "far outside"),
        ("text", "a segmentation of"),
        ({"counts": [16], "size": [2, 8]}, "runs for an image of 8x2"),
        ({"counts": [10**15], "size": [4, 4]}, "runs of"),
        ({"counts": "~~~", "size": [4, 4]}, "runs with the letter"),
    ],
)
def test_a_segmentation_that_is_none_is_refused_with_the_file(tmp_path: Path, segmentation: Any, reason: str) -> None:  # noqa: ANN401
    root = coco(tmp_path, [{"category_id": 5, "segmentation": segmentation}])
    with pytest.raises(InvalidFileError, match=reason) as refused:
        rows(root)
    assert "instances_default.json" in refused.value.what


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"images": [{"id": 1, "file_name": "../../etc/passwd", "height": 4, "width": 4}]}, "does not lie below"),
        ({"images": [{"id": 1, "file_name": "/etc/passwd", "height": 4, "width": 4}]}, "does not lie below"),
        ({"images": [{"id": 1, "file_name": "b.jpg", "height": 4, "width": 4}]}, "names the image 'b.jpg'"),
        ({"images": [{"id": 2, "file_name": "a.jpg", "height": 4, "width": 4}]}, "does not list"),
        ({"categories": [{"id": 1, "name": "a"}]}, "of the category 5, which it does not list"),
        ({"categories": [{"id": 5, "name": "a"}, {"id": 6, "name": "a"}]}, "two categories of one name"),
        ({"categories": [{"id": each, "name": str(each)} for each in range(256)]}, "257 classes"),
        ({"categories": []}, "of the category 5"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, "cannot be read as annotations"),
        ({"images": 3}, "cannot be read as annotations"),
    ],
)
def test_a_document_that_is_not_whole_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    root = coco(tmp_path, [{"category_id": 5, "segmentation": [WHOLE]}], **changes)
    with pytest.raises(SegdeployError, match=reason):
        layouts.open_folder(root)


def test_a_link_out_of_the_folder_is_no_image_of_it(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", [], images=[{"id": 1, "file_name": "out/a.jpg", "height": 4, "width": 4}])
    save(tmp_path / "elsewhere/a.jpg", np.zeros((4, 4, 3), np.uint8))
    (root / "images/out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidFileError, match="does not lie below"):
        layouts.open_folder(root)


@pytest.mark.parametrize("height, width", [(10**9, 10**9), (0, 4), (-4, -4)])
def test_a_size_that_no_image_has_takes_no_memory(tmp_path: Path, height: int, width: int) -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": height, "width": width}
    root = coco(tmp_path, [{"category_id": 5, "segmentation": [WHOLE]}], images=[image])
    with pytest.raises(InvalidFileError, match="describes an image of"):
        rows(root)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, '{"images": NaN}', "\0"])
@pytest.mark.parametrize(
    "name, path", [("coco_instances", "annotations/instances_train2017.json"), ("labelme", "00.json")]
)
def test_broken_json_is_refused(tmp_path: Path, name: str, path: str, text: str) -> None:
    root = written(name, tmp_path / "data")
    (root / path).write_text(text)
    with pytest.raises(InvalidFileError, match="cannot be read as annotations"):
        layouts.layout(name).open_folder(root)


def test_roboflow_names_its_parts_by_folders(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        coco(tmp_path, [{"category_id": 5, "segmentation": [WHOLE]}])
        (tmp_path / part).mkdir()
        (tmp_path / "annotations/instances_default.json").rename(tmp_path / part / "_annotations.coco.json")
        (tmp_path / "images/a.jpg").rename(tmp_path / part / "a.jpg")
    for left in ("annotations", "images"):
        (tmp_path / left).rmdir()
    data = layouts.open_folder(tmp_path)
    assert data.layout == "coco_instances"
    assert [len(data.train), len(data.val)] == [1, 1]
    assert data.val[0].image.parent.name == "valid"


def test_two_documents_with_other_categories_are_refused(tmp_path: Path) -> None:
    root = written("coco_instances", tmp_path / "data")
    path = root / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"thing"', '"other"'))
    with pytest.raises(InvalidFileError, match="has other categories than instances_train2017"):
        layouts.open_folder(root)


def test_coco_with_instances_and_panoptic_asks_which(tmp_path: Path) -> None:
    """COCO's own download holds both."""
    root = written("coco_panoptic", written("coco_instances", tmp_path / "data"))
    with pytest.raises(InvalidRequestError, match="coco_instances and coco_panoptic"):
        layouts.open_folder(root)


def test_panoptic_ids_have_three_bytes_and_0_is_void(tmp_path: Path) -> None:
    root = written("coco_panoptic", tmp_path / "data")
    picture = first(root)
    save(picture.label, np.array([[(1, 0, 1), (44, 1, 0), (0, 0, 0)]], np.uint8))
    assert truth(picture, 2) == [[0, 1, VOID]]
    save(picture.label, np.array([[(0, 1, 44)]], np.uint8))  # 300 with its bytes the other way round
    with pytest.raises(InvalidFileError, match="has the colour 0,1,44"):
        truth(picture, 2)
    assert layouts.classes_of(layouts.open_folder(root), ignore_index=VOID).colours[0] == (220, 20, 60)


def test_stuff_maps_are_classes_with_255_void(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        save(tmp_path / "images" / part / f"{part}.jpg", np.zeros((1, 3, 3), np.uint8))
        save(tmp_path / "stuffthingmaps" / part / f"{part}.png", np.array([[0, 181, 255]], np.uint8))
    (tmp_path / "labels.txt").write_text("0: unlabeled\n1: person\n182: wood\n")
    data = layouts.open_folder(tmp_path)
    assert [truth(picture, 182) for picture in data.pictures] == [[[0, 181, VOID]]] * 2
    names = layouts.classes_of(data, ignore_index=VOID).names
    assert (names[0], names[181], len(names)) == ("person", "wood", 182)


# labelme


def labelme(root: Path, *shapes: dict[str, Any], **changes: Any) -> Path:  # noqa: ANN401 - JSON values
    save(root / "a.jpg", np.zeros((4, 4, 3), np.uint8))
    document = {"shapes": shapes, "imagePath": "..\\elsewhere\\a.jpg", "imageHeight": 4, "imageWidth": 4, **changes}
    (root / "a.json").write_text(json.dumps(document))
    return root


SQUARE = {"label": "b", "points": [[0, 0], [1, 0], [1, 3], [0, 3]], "shape_type": "polygon"}


def test_labelme_paints_in_order_and_ignores_what_is_called_so(tmp_path: Path) -> None:
    """The path of the image in the JSON is that of the machine where it was drawn: the file beside it counts."""
    strip = {"label": "a", "points": [[0, 0], [3, 0]], "shape_type": "rectangle"}
    void = {"label": "__ignore__", "points": [[3, 3], [3, 3]], "shape_type": "rectangle"}
    root = labelme(tmp_path, SQUARE, strip, void)
    picture = first(root)
    assert truth(picture, 3) == [[1, 1, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0], [2, 2, 0, VOID]]
    (root / "labels.txt").write_text("__ignore__\n_background_\nb\na\n")
    assert truth(first(root), 3)[0] == [2, 2, 2, 2]
    (root / "labels.txt").write_text("_background_\nb\n")
    with pytest.raises(InvalidFileError, match="does not name 'a'"):
        layouts.open_folder(root)


@pytest.mark.parametrize(
    "shape, reason",
    [
        ({**SQUARE, "shape_type": "linestrip"}, "of the kind 'linestrip'"),
        ({**SQUARE, "points": [[0, 0]]}, "a polygon of 1 points"),
        ({**SQUARE, "points": [[0, 0], [1, 1], [1e15, 4]]}, "far outside"),
        ({**SQUARE, "points": [0, 0]}, "cannot be read as annotations"),
    ],
)
def test_labelme_shapes_that_cover_nothing_are_refused(tmp_path: Path, shape: dict[str, Any], reason: str) -> None:
    root = labelme(tmp_path, shape)
    with pytest.raises(InvalidFileError, match=reason):
        truth(layouts.layout("labelme").open_folder(root).pictures[0], 2)


def test_labelme_parts_are_its_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        labelme(tmp_path / part, SQUARE)
    data = layouts.open_folder(tmp_path)
    assert data.layout == "labelme"
    assert [picture.image.parent.name for picture in (*data.train, *data.val)] == ["train", "val"]


# CVAT

IMAGE = '<image id="0" name="a.png" width="4" height="4"{subset}>{shapes}</image>'
LABELS = "<meta><task><labels>{labels}</labels></task></meta>"
ATTRIBUTES = "<attributes><attribute><name>no label</name></attribute></attributes>"
LABEL = f"<label><name>{{name}}</name><color>#010203</color>{ATTRIBUTES}</label>"


def cvat(root: Path, shapes: str, *, names: str = "ab", subset: str = "", before: str = "") -> Path:
    save(root / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    labels = LABELS.format(labels="".join(LABEL.format(name=name) for name in names))
    image = IMAGE.format(shapes=shapes, subset=subset)
    (root / "annotations.xml").write_text(f"<?xml version='1.0'?>{before}<annotations>{labels}{image}</annotations>")
    return root


def test_cvat_paints_by_z_order_then_in_order(tmp_path: Path) -> None:
    box = '<box label="{}" xtl="0" ytl="0" xbr="{}" ybr="4" z_order="{}"/>'
    top = cvat(tmp_path / "top", box.format("a", 2, 1) + box.format("b", 4, 0))
    assert truth(first(top), 3) == [[1, 1, 2, 2]] * 4
    later = cvat(tmp_path / "later", box.format("a", 2, 0) + box.format("b", 4, 0))
    assert truth(first(later), 3) == [[2] * 4] * 4
    classes = layouts.classes_of(layouts.open_folder(later), ignore_index=VOID)
    assert (classes.names, classes.colours[1]) == (("background", "a", "b"), (1, 2, 3))


def test_cvat_masks_are_counted_along_the_rows_of_their_box(tmp_path: Path) -> None:
    root = cvat(tmp_path, '<mask label="a" rle="1, 2, 1" left="1" top="2" width="2" height="2" z_order="0"/>')
    assert truth(first(root), 3) == [[0] * 4, [0] * 4, [0, 0, 1, 0], [0, 1, 0, 0]]


def test_cvat_subsets_divide(tmp_path: Path) -> None:
    root = cvat(tmp_path, "", subset=' subset="Validation"')
    (root / "images/Validation").mkdir()
    (root / "images/a.png").rename(root / "images/Validation/a.png")
    assert [picture.image.name for picture in layouts.open_folder(root).val] == ["a.png"]


LAUGHS = "".join(f'<!ENTITY l{each} "{f"&l{each - 1};" * 10}">' for each in range(1, 10))
POLYGON = '<polygon label="a" points="{}"/>'


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda root: cvat(root, "&l9;", before=f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>'), "document type"),
        (
            lambda root: cvat(root, "&x;", before='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
            "document type",
        ),
        (lambda root: cvat(root, "<polygon"), "cannot be read as annotations"),
        (lambda root: cvat(root, "&x;"), "undefined entity"),
        (lambda root: cvat(root, "<polyline label='a' points='0,0;1,1'/>"), "of the kind 'polyline'"),
        (lambda root: cvat(root, POLYGON.format("0,0;x,1;2,2")), "cannot be read as annotations"),
        (lambda root: cvat(root, '<polygon points="0,0;1,1;2,2"/>'), "the attribute 'label' is missing"),
        (lambda root: cvat(root, "<box label='a' xtl='0' ytl='0' xbr='1' ybr='1' rotation='30'/>"), "a turned box"),
        (lambda root: cvat(root, POLYGON.format("0,0;1,1;2,2"), names="b"), "a shape of 'a'"),
        (lambda root: cvat(root, POLYGON.format("0,0;1,1")), "polygon of 4 numbers"),
        (lambda root: cvat(root, "</image><track/><image>"), "tracks of a video"),
        (lambda root: replaced(cvat(root, "", names=""), "a.png", "../a.png"), "does not lie below"),
        (
            lambda root: replaced(cvat(root, ""), 'name="a.png"', 'name="gone.png"'),
            "names the image 'gone.png'",
        ),
        (lambda root: cvat(root, "", names="".join(map(chr, range(256, 512)))), "257 classes"),
    ],
)
def test_cvat_documents_that_are_broken_or_hostile_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    make(tmp_path)
    with pytest.raises(SegdeployError, match=reason) as refused:
        truth(first(tmp_path), 3)
    assert refused.value.remedy


def replaced(root: Path, before: str, after: str) -> Path:
    path = root / "annotations.xml"
    path.write_text(path.read_text().replace(before, after))
    return root


def test_a_document_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdeploy.data.layouts._documents.LARGEST", 100)
    for name in ("coco_instances", "cvat", "labelme"):
        (tmp_path / name).mkdir()
        WRITERS[name](tmp_path / name, masks_of(12))
        with pytest.raises(InvalidFileError, match="at most 100 are read"):
            layouts.open_folder(tmp_path / name)


def test_what_was_found_of_shapes_is_remembered_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By image, though one file holds them all; and by the ignored index, which void becomes."""
    painted: list[Painted] = []
    paint = Painted.class_map

    def watched(self: Painted, mask: Path, *, ignore_index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        painted.append(self)
        return paint(self, mask, ignore_index=ignore_index)

    monkeypatch.setattr(Painted, "class_map", watched)
    monkeypatch.setattr("segdeploy.data._facts.YOUNG_NS", 0)
    root = written("coco_stuff", tmp_path / "data")
    first_report = check.check(root)
    assert len(painted) == 12
    assert check.check(root) == first_report
    assert len(painted) == 12
    path = root / "annotations/stuff_val2017.json"
    path.write_text(path.read_text() + "\n")
    painted.clear()
    assert check.check(root) == first_report
    assert len(painted) == 3
    assert check.check(root, ignore_index=254).ignored == 0
    assert len(painted) == 15


def test_shapes_of_another_size_than_the_image_are_a_fault(tmp_path: Path) -> None:
    """As where a tool was given a smaller copy."""
    image = {"id": 1, "file_name": "a.jpg", "height": 8, "width": 4}
    root = coco(tmp_path, [{"category_id": 5, "segmentation": [LEFT]}], images=[image])
    faults = {fault.name: fault.what for fault in check.check(root).faults}
    assert "is 8x4, a.jpg is 4x4" in faults["shape"]
