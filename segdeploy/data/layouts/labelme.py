"""labelme: beside each image a JSON of its stem with polygons, rectangles and circles; optionally `labels.txt`.

Images and JSONs lie in the folder itself, or in `train/` and `val/`. Shapes are drawn in their order, as labelme's own
export draws them, over `_background_`, class 0; the other labels follow in the order of `labels.txt`, else of their
names. `__ignore__` is void.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from segdeploy import palettes
from segdeploy.data import dataset
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts import folders
from segdeploy.data.layouts._documents import read, require_few
from segdeploy.data.layouts._files import Files, divided, entries, images_of, lacking, without_mask
from segdeploy.data.readings import VOID, Painted
from segdeploy.data.shapes import Drawn
from segdeploy.errors import InvalidFileError

NAME = "labelme"
LABELS, BACKGROUND, IGNORED = "labels.txt", "_background_", "__ignore__"
HEAD = 4096  # bytes in which labelme's files say what they are
DRAWN = {"polygon", "rectangle", "circle"}
Side = Annotated[int, msgspec.Meta(ge=1)]


class Labelled(msgspec.Struct, frozen=True):
    label: str
    points: tuple[tuple[float, float], ...]
    shape_type: str = "polygon"


class Document(msgspec.Struct, frozen=True, rename="camel"):
    """What labelme writes of an image; `imageData`, the image itself, is not read."""

    image_height: Side
    image_width: Side
    shapes: tuple[Labelled, ...]


def recognises(root: Path) -> bool:
    return any(_is_labelme(folder) for folder in _folders(root))


def open_folder(root: Path) -> Dataset:
    found = {folder: _documents(folder) for folder in _folders(root)}
    read_files = [pair for pairs in found.values() for pair in pairs]
    if not read_files:
        raise lacking(root, NAME, "images with JSON files beside them")
    classes, indices = _classes(root / LABELS, [document for _, _, document in read_files])
    parts: dict[bool, list[Picture]] = {True: [], False: []}
    for folder, pairs in found.items():
        is_val = folder != root and folder.name in folders.VAL
        parts[is_val] += [Picture(photo, path, _reading(document, indices, path)) for photo, path, document in pairs]
    return divided(root, parts[False], parts[True], classes=classes)


def _folders(root: Path) -> list[Path]:
    return [root, *(root / part for part in (*folders.TRAIN, *folders.VAL))]


def _is_labelme(folder: Path) -> bool:
    """Whether a JSON of the folder begins as labelme's do, and has its image beside it."""
    first = next((path for path in entries(folder) if path.suffix == ".json" and path.is_file()), None)
    if first is None:
        return False
    try:
        with first.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return b'"shapes"' in head or b'"imagePath"' in head


def _documents(folder: Path) -> list[tuple[Path, Path, Document]]:
    """Each image with its JSON. Raise InvalidRequestError where an image has none."""
    photos = images_of(folder)
    jsons = Files(folder, [path for path in dataset.files_in(folder) if path.suffix == ".json"])
    found = [(photo, jsons.of(photo)) for photo in photos]
    if without := [photo for photo, path in found if path is None]:
        raise without_mask(without, f"{without[0].stem}.json")
    return [(photo, path, read(path, Document)) for photo, path in found if path is not None]


def _classes(table: Path, documents: Sequence[Document]) -> tuple[Classes, dict[str, int]]:
    """The classes, and the class of each label, VOID for the ignored one."""
    used = {shape.label for document in documents for shape in document.shapes}
    listed = dataset.read_list(table) if table.is_file() else sorted(used)
    names = [BACKGROUND, *(name for name in dict.fromkeys(listed) if name not in {BACKGROUND, IGNORED})]
    if strange := used - {*names, IGNORED}:
        raise InvalidFileError(f"{table} does not name {min(strange)!r}, which a shape is.", "Name it there.")
    require_few(len(names), table)
    indices = {**{name: index for index, name in enumerate(names)}, IGNORED: VOID}
    source = LABELS if table.is_file() else "the folder"
    return Classes(tuple(names), palettes.default_colours(len(names)), source=source), indices


def _reading(document: Document, indices: dict[str, int], path: Path) -> Painted:
    for shape in document.shapes:
        if shape.shape_type not in DRAWN:
            raise InvalidFileError(
                f"{path} has a shape of the kind {shape.shape_type!r}, which covers no area that is drawn here.",
                f"Draw it as one of {', '.join(sorted(DRAWN))}, or take it away.",
            )
    shapes = tuple((indices[shape.label], Drawn(shape.shape_type, shape.points)) for shape in document.shapes)
    return Painted(document.image_height, document.image_width, 0, shapes)
