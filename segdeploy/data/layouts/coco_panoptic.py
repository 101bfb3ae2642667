"""COCO's panoptic segmentation: `annotations/panoptic_*.json`, and PNGs in the folder of the same name beside it.

A pixel's id is red + 256 green + 65536 blue; the JSON says the category of each id, and 0 is void. The categories are
the classes, in the order of their ids, things and stuff alike. Images lie as for `coco_instances`.
"""

from pathlib import Path

import msgspec

from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts import _coco
from segdeploy.data.layouts._documents import located, read
from segdeploy.data.layouts._files import divided, lacking, without_mask
from segdeploy.data.readings import VOID, Colour, Colours
from segdeploy.errors import InvalidFileError

NAME = "coco_panoptic"
LARGEST_ID = (1 << 24) - 1


class Segment(msgspec.Struct, frozen=True, gc=False):
    id: int
    category_id: int


class Panoptic(msgspec.Struct, frozen=True, gc=False):
    """The segments of an image, and the name of its PNG."""

    image_id: int
    file_name: str
    segments_info: tuple[Segment, ...]


class Document(msgspec.Struct, frozen=True):
    images: tuple[_coco.ImageInfo, ...]
    categories: tuple[_coco.Category, ...]
    annotations: tuple[Panoptic, ...]


def recognises(root: Path) -> bool:
    return bool(_coco.documents(root, "panoptic"))


def open_folder(root: Path) -> Dataset:
    if not (found := _coco.documents(root, "panoptic")):
        raise lacking(root, NAME, "annotations/panoptic_*.json")
    parts: dict[str, list[Picture]] = {"train": [], "val": []}
    classes: Classes | None = None
    for path in found:
        document = read(path, Document)
        own, indices = _coco.classes_of(document.categories, path, background=False)
        classes = _coco.same(classes, own, path)
        parts[_coco.part_of(path)] += _pictures(document, root, path, indices)
    return divided(root, parts["train"], parts["val"], classes=classes)


def _pictures(document: Document, root: Path, path: Path, indices: dict[int, int]) -> list[Picture]:
    masks, folders = {each.image_id: each for each in document.annotations}, _coco.image_folders(root, path)
    maps = [path.with_suffix(""), root / path.stem]
    pictures = []
    for image in document.images:
        photo = located(image.file_name, folders, path)
        if (mask := masks.get(image.id)) is None:
            raise without_mask([photo], f"the segments of {photo.name} into {path.name}")
        pictures.append(Picture(photo, _map_of(photo, mask, maps, path), _reading(mask, indices, path)))
    return pictures


def _map_of(photo: Path, mask: Panoptic, maps: list[Path], path: Path) -> Path:
    found = [folder / Path(mask.file_name).name for folder in maps]
    if not any(file.is_file() for file in found):
        raise without_mask([photo], f"{path.stem}/{Path(mask.file_name).name}")
    return next(file for file in found if file.is_file())


def _reading(mask: Panoptic, indices: dict[int, int], path: Path) -> Colours:
    table: dict[Colour, int] = {(0, 0, 0): VOID}
    for segment in mask.segments_info:
        if not 0 < segment.id <= LARGEST_ID or segment.category_id not in indices:
            raise InvalidFileError(
                f"{path} has the segment {segment.id} of the category {segment.category_id}, which is none.",
                "Export it again.",
            )
        table[_colour_of(segment.id)] = indices[segment.category_id]
    return Colours(tuple(table.items()), path.name)


def _colour_of(identity: int) -> Colour:
    return identity & 255, identity >> 8 & 255, identity >> 16
