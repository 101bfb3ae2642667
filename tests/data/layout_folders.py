"""How a labelled folder is written in each layout, for the contract tests to read."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from conftest import photograph
from numpy.typing import NDArray
from PIL import Image

Masks: TypeAlias = Mapping[str, NDArray[np.uint8]]  # by the names of their pictures, without an ending
Writer: TypeAlias = Callable[[Path, Masks], None]


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def numbered(masks: Masks) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Each name with its photograph and its mask."""
    for seed, (name, mask) in enumerate(masks.items()):
        height, width = mask.shape
        yield name, photograph(height, width, seed), mask


def part(name: str) -> int:
    """0 where a picture trains, 1 where it validates: every fifth."""
    return int(int(name) % 5 == 0)


def mapped(mask: NDArray[np.uint8], *values: int) -> NDArray[np.uint8]:
    """With a value in place of each class."""
    return np.array(values, np.uint8)[mask]


def write_pairs_of_folders(root: Path, masks: Masks, photos: str, labels: str, *, suffix: str = "") -> None:
    for name, photo, mask in numbered(masks):
        save(root / photos / f"{name}.png", photo)
        save(root / labels / f"{name}{suffix}.png", mask)


def write_plain(root: Path, masks: Masks) -> None:
    write_pairs_of_folders(root, masks, "images", "masks")


def write_folders(root: Path, masks: Masks) -> None:
    write_pairs_of_folders(root, masks, "photos", "labels")


def write_carvana(root: Path, masks: Masks) -> None:
    bright = {name: mapped(mask, 0, 255) for name, mask in masks.items()}
    write_pairs_of_folders(root, bright, "imgs", "masks", suffix="_mask")


def write_camvid(root: Path, masks: Masks) -> None:
    """With lists as they are published: absolute paths of a machine that is not this one."""
    lines: tuple[list[str], list[str]] = ([], [])
    for name, photo, mask in numbered(masks):
        folder = ("train", "val")[part(name)]
        save(root / folder / f"{name}.png", photo)
        save(root / f"{folder}annot" / f"{name}.png", mask)
        begin = "/SegNet/CamVid"
        lines[part(name)].append(f"{begin}/{folder}/{name}.png {begin}/{folder}annot/{name}.png\n")
    for folder, each in zip(("train", "val"), lines, strict=True):
        (root / f"{folder}.txt").write_text("".join(each))


def write_camvid_original(root: Path, masks: Masks) -> None:
    colours = np.array([(128, 128, 128), (128, 0, 0)], np.uint8)  # Sky, Building
    for name, photo, mask in numbered(masks):
        save(root / "701_StillsRaw_full" / f"{name}.png", photo)
        save(root / "LabeledApproved_full" / f"{name}_L.png", colours[mask])


def write_cityscapes(root: Path, masks: Masks) -> None:
    for name, photo, mask in numbered(masks):
        begin, where = f"aachen_{int(name):06}_000019", Path(("train", "val")[part(name)]) / "aachen"
        save(root / "leftImg8bit" / where / f"{begin}_leftImg8bit.png", photo)
        save(root / "gtFine" / where / f"{begin}_gtFine_labelIds.png", mapped(mask, 7, 8))
        save(root / "gtFine" / where / f"{begin}_gtFine_instanceIds.png", mapped(mask, 26, 27))


def write_ade20k(root: Path, masks: Masks) -> None:
    for name, photo, mask in numbered(masks):
        folder = ("training", "validation")[part(name)]
        save(root / "images" / folder / f"ADE_{name}.jpg", photo)
        save(root / "annotations" / folder / f"ADE_{name}.png", mask + 1)


def write_voc(root: Path, masks: Masks) -> None:
    sets = root / "ImageSets/Segmentation"
    sets.mkdir(parents=True)
    for name, photo, mask in numbered(masks):
        save(root / "JPEGImages" / f"{name}.jpg", photo)
        image = Image.fromarray(mask)
        image.putpalette([0, 0, 0, 128, 0, 0])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        image.save(root / "SegmentationClass" / f"{name}.png")
    write_lists(sets, masks)


def write_lists(folder: Path, masks: Masks) -> None:
    for index, each in enumerate(("train.txt", "val.txt")):
        (folder / each).write_text("".join(f"{name}\n" for name in masks if part(name) == index))


def write_sbd(root: Path, masks: Masks) -> None:
    for name, photo, mask in numbered(masks):
        save(root / "img" / f"{name}.jpg", photo)
        save(root / "cls" / f"{name}.png", mask)
    write_lists(root, masks)


def write_nnunet(root: Path, masks: Masks) -> None:
    for name, photo, mask in numbered(masks):
        save(root / "imagesTr" / f"case_{name}_0000.png", photo)
        save(root / "labelsTr" / f"case_{name}.png", mask)
    labels = {"background": 0, "thing": 1}
    document = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": labels, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(document))


def rows_of(mask: NDArray[np.uint8]) -> int:
    """How many rows from the top are class 1."""
    return int(np.count_nonzero(mask[:, 0]))


def write_coco_instances(root: Path, masks: Masks) -> None:
    """As polygons, and every second one as runs."""

    def shape(mask: NDArray[np.uint8], index: int) -> Any:  # noqa: ANN401 - a JSON value
        height, width = mask.shape
        if index % 2:
            rows = rows_of(mask)
            return {"counts": [0, *[rows, height - rows] * width], "size": [height, width]}
        return [[0, 0, width, 0, width, rows_of(mask), 0, rows_of(mask)]]

    write_coco(
        root, masks, "instances", [{"id": 7, "name": "thing"}], shapes=lambda mask, index: [(7, shape(mask, index))]
    )


def write_coco_stuff(root: Path, masks: Masks) -> None:
    def shapes(mask: NDArray[np.uint8], _: int) -> list[tuple[int, Any]]:
        runs = [0, *[rows_of(mask), len(mask) - rows_of(mask)] * mask.shape[1]]
        size = list(mask.shape)
        return [(93, {"counts": runs, "size": size}), (92, {"counts": [0, *runs], "size": size})]

    categories = [{"id": 93, "name": "sky"}, {"id": 92, "name": "grass"}]
    write_coco(root, masks, "stuff", categories, shapes=shapes)


def write_coco(
    root: Path,
    masks: Masks,
    kind: str,
    categories: list[dict[str, Any]],
    *,
    shapes: Callable[[NDArray[np.uint8], int], list[tuple[int, Any]]],
) -> None:
    documents = [{"images": [], "annotations": [], "categories": categories} for _ in range(2)]
    for index, (name, photo, mask) in enumerate(numbered(masks)):
        save(root / "images" / ("train2017", "val2017")[part(name)] / f"{name}.jpg", photo)
        document: dict[str, list[Any]] = documents[part(name)]
        document["images"].append(
            {"id": index, "file_name": f"{name}.jpg", "height": mask.shape[0], "width": mask.shape[1]}
        )
        document["annotations"] += [
            {"id": index, "image_id": index, "category_id": category, "segmentation": shape, "area": 1, "iscrowd": 0}
            for category, shape in shapes(mask, index)
        ]
    (root / "annotations").mkdir()
    for name, document in zip(("train2017", "val2017"), documents, strict=True):
        (root / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(document))


def write_coco_panoptic(root: Path, masks: Masks) -> None:
    """With segments whose ids need more than one byte."""
    categories = [{"id": 1, "name": "person", "color": [220, 20, 60], "isthing": 1}, {"id": 200, "name": "rug-merged"}]
    documents: list[dict[str, list[Any]]] = [
        {"images": [], "annotations": [], "categories": categories} for _ in range(2)
    ]
    ids = np.array([(1, 0, 1), (44, 1, 0)], np.uint8)  # 65537 and 300
    for index, (name, photo, mask) in enumerate(numbered(masks)):
        folder, document = ("train2017", "val2017")[part(name)], documents[part(name)]
        save(root / folder / f"{name}.jpg", photo)
        save(root / "annotations" / f"panoptic_{folder}" / f"{name}.png", ids[mask])
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        document["images"].append({"id": index, "file_name": f"{name}.jpg", **size})
        segments = [{"id": 65537, "category_id": 1, "iscrowd": 0}, {"id": 300, "category_id": 200, "iscrowd": 0}]
        document["annotations"].append({"image_id": index, "file_name": f"{name}.png", "segments_info": segments})
    for name, document in zip(("train2017", "val2017"), documents, strict=True):
        (root / "annotations" / f"panoptic_{name}.json").write_text(json.dumps(document))


def write_labelme(root: Path, masks: Masks) -> None:
    """Polygons go through the middles of the pixels at their edge: labelme draws the outline too."""
    for name, photo, mask in numbered(masks):
        height, width = mask.shape
        save(root / f"{name}.jpg", photo)
        bottom = rows_of(mask) - 1
        points = [[0, 0], [width - 1, 0], [width - 1, bottom], [0, bottom]]
        shape: dict[str, Any] = {
            "label": "thing",
            "points": points,
            "shape_type": "polygon",
            "group_id": None,
            "flags": {},
        }
        document: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [shape],
            "imagePath": f"{name}.jpg",
            "imageData": None,
        }
        size = {"imageHeight": height, "imageWidth": width}
        (root / f"{name}.json").write_text(json.dumps({**document, **size}))


def write_cvat(root: Path, masks: Masks) -> None:
    """As polygons, boxes and masks in turn."""
    images = []
    for index, (name, photo, mask) in enumerate(numbered(masks)):
        (height, width), rows = mask.shape, rows_of(mask)
        save(root / "images" / f"{name}.png", photo)
        shape = (
            f'<polygon label="thing" source="manual" points="0,0;{width},0;{width},{rows};0,{rows}" z_order="0"/>',
            f'<box label="thing" xtl="0" ytl="0" xbr="{width}" ybr="{rows}" z_order="0"></box>',
            f'<mask label="thing" rle="0, {rows * width}" left="0" top="0" width="{width}" height="{rows}"/>',
        )[index % 3]
        images.append(f'<image id="{index}" name="{name}.png" width="{width}" height="{height}">{shape}</image>')
    label = "<label><name>thing</name><color>#ff0010</color><attributes></attributes></label>"
    meta = f"<meta><task><labels>{label}</labels></task></meta>"
    document = f"<?xml version='1.0' encoding='utf-8'?><annotations>{meta}{''.join(images)}</annotations>"
    (root / "annotations.xml").write_text(document, encoding="utf-8")


WRITERS: dict[str, Writer] = {
    "ade20k": write_ade20k,
    "camvid": write_camvid,
    "camvid_original": write_camvid_original,
    "carvana": write_carvana,
    "cityscapes": write_cityscapes,
    "coco_instances": write_coco_instances,
    "coco_panoptic": write_coco_panoptic,
    "coco_stuff": write_coco_stuff,
    "cvat": write_cvat,
    "folders": write_folders,
    "labelme": write_labelme,
    "nnunet": write_nnunet,
    "plain": write_plain,
    "sbd": write_sbd,
    "voc": write_voc,
}
ONE_FILE = {"coco_instances", "coco_stuff", "cvat"}  # holds all masks: what has no shape there is background or void
