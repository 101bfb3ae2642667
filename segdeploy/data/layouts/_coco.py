"""COCO's JSON of instances and of stuff: categories, and shapes by image."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from segdeploy import palettes
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts._documents import located, read, require_few
from segdeploy.data.layouts._files import divided, lacking
from segdeploy.data.readings import VOID, Painted
from segdeploy.data.shapes import Polygons, Runs, runs_of_text
from segdeploy.errors import InvalidFileError

ROBOFLOW = "_annotations.coco.json"
BACKGROUND = "background"
Channel = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Category(msgspec.Struct, frozen=True):
    """A class; panoptic ones have a colour."""

    id: int
    name: str
    color: tuple[Channel, Channel, Channel] | None = None


class ImageInfo(msgspec.Struct, frozen=True, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class Annotation(msgspec.Struct, frozen=True, gc=False):
    """A shape of an image. `area`: in pixels; `iscrowd`: it is many things at once."""

    image_id: int
    category_id: int
    segmentation: msgspec.Raw = msgspec.Raw(b"[]")
    area: float = 0.0
    iscrowd: int = 0


class Document(msgspec.Struct, frozen=True):
    images: tuple[ImageInfo, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...] = ()


class CompressedRuns(msgspec.Struct, frozen=True):
    """Run lengths down the columns, as numbers or as COCO's text."""

    counts: str | tuple[int, ...]
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Segmentation:
    """The JSON of a shape, read when it is painted: a data set holds a million."""

    document: bytes

    def paint(self, class_map: NDArray[np.uint8], value: int) -> None:
        try:
            found = msgspec.json.decode(self.document, type=tuple[tuple[float, ...], ...] | CompressedRuns)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError(f"a segmentation of {len(self.document)} letters, {error}") from error
        if not isinstance(found, CompressedRuns):
            if not found:
                raise ValueError("an annotation without a segmentation; a box is no mask")
            Polygons(found).paint(class_map, value)
            return
        if found.size != class_map.shape:
            raise ValueError(f"runs for an image of {found.size[1]}x{found.size[0]}")
        counts = runs_of_text(found.counts) if isinstance(found.counts, str) else found.counts
        Runs(counts, 0, 0, *found.size, by_column=True).paint(class_map, value)


def documents(root: Path, begin: str) -> list[Path]:
    """The files in `annotations/` whose names begin so, but those of tests."""
    return sorted(path for path in (root / "annotations").glob(f"{begin}_*.json") if "test" not in path.stem)


def part_of(document: Path) -> str:
    """`val` where the name of the file or, in Roboflow's form, of its folder says so; else `train`."""
    name = document.parent.name if document.name == ROBOFLOW else document.stem.partition("_")[2]
    return "val" if "val" in name.lower() else "train"


def image_folders(root: Path, document: Path) -> list[Path]:
    """Where the images of a document may lie."""
    if document.name == ROBOFLOW:
        return [document.parent]
    part = document.stem.partition("_")[2]
    return [root / "images" / part, root / part, root / "images", root]


def open_documents(root: Path, found: Sequence[Path], *, layout: str, background: bool) -> Dataset:
    """Every image of the documents. `background`: pixels without a shape are class 0, else they are void."""
    if not found:
        raise lacking(root, layout, "annotations in COCO's JSON")
    parts: dict[str, list[Picture]] = {"train": [], "val": []}
    classes: Classes | None = None
    for path in found:
        document = read(path, Document)
        own, indices = classes_of(document.categories, path, background=background)
        classes = same(classes, own, path)
        parts[part_of(path)] += _pictures(document, root, path, indices=indices, background=background)
    return divided(root, parts["train"], parts["val"], classes=classes)


def classes_of(categories: Sequence[Category], path: Path, *, background: bool) -> tuple[Classes, dict[int, int]]:
    """Names and colours, in the order of the categories' ids, and the class of each id."""
    ordered = sorted(categories, key=lambda category: category.id)
    names = [*([BACKGROUND] if background else []), *(category.name for category in ordered)]
    require_few(len(names), path)
    if len(set(names)) != len(names) or len({category.id for category in ordered}) != len(ordered):
        raise InvalidFileError(f"{path} has two categories of one name or id.", "Give each its own.")
    first = len(names) - len(ordered)
    spare = palettes.default_colours(len(names))
    colours = [category.color or spare[first + index] for index, category in enumerate(ordered)]
    indices = {category.id: first + index for index, category in enumerate(ordered)}
    return Classes(tuple(names), (*spare[:first], *colours), source=path.name), indices


def same(known: Classes | None, found: Classes, path: Path) -> Classes:
    """The classes of all documents. Raise InvalidFileError where one has others."""
    if known is not None and known.names != found.names:
        raise InvalidFileError(
            f"{path} has other categories than {known.source}.", "Give both the same, with their ids."
        )
    return known or found


def by_image(annotations: Sequence[Annotation], images: Sequence[ImageInfo], path: Path) -> dict[int, list[Annotation]]:
    found: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        found[annotation.image_id].append(annotation)
    if strange := found.keys() - {image.id for image in images}:
        raise InvalidFileError(
            f"{path} has a shape for an image {min(strange)}, which it does not list.", "Export it again."
        )
    return found


def _pictures(
    document: Document, root: Path, path: Path, *, indices: dict[int, int], background: bool
) -> list[Picture]:
    shapes, folders = by_image(document.annotations, document.images, path), image_folders(root, path)
    pictures = []
    for image in document.images:
        ordered = sorted(shapes[image.id], key=lambda each: (not each.iscrowd, -each.area))
        painted = tuple((_index(each, indices, path), Segmentation(bytes(each.segmentation))) for each in ordered)
        reading = Painted(image.height, image.width, 0 if background else VOID, painted)
        pictures.append(Picture(located(image.file_name, folders, path), path, reading))
    return pictures


def _index(annotation: Annotation, indices: dict[int, int], path: Path) -> int:
    if (found := indices.get(annotation.category_id)) is None:
        raise InvalidFileError(
            f"{path} has a shape of the category {annotation.category_id}, which it does not list.", "Export it again."
        )
    return found
