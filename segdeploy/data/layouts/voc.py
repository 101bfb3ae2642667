"""PASCAL VOC: `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/{train,val}.txt`.

Masks are palette images whose indices are the 21 classes; 255, around things, is void. With `labelmap.txt` (lines
`name:r,g,b::`, as CVAT and Datumaro write it), masks are in its colours and its names are the classes.
"""

import re
from pathlib import Path

from segdeploy import palettes
from segdeploy.data import dataset
from segdeploy.data.dataset import Classes, Dataset
from segdeploy.data.layouts import _lists as lists
from segdeploy.data.layouts._files import Files, divided, images_of, lacking, paired, require_images
from segdeploy.data.readings import VOID, Colour, Colours, MaskReading, Values
from segdeploy.errors import InvalidFileError
from segdeploy.spec import MAX_CLASSES

NAME = "voc"
BORDER = 255
TABLE = "labelmap.txt"
CLASSES = Classes(palettes.VOC.classes, palettes.VOC.colours, source="PASCAL VOC")
PUBLISHED_VALUES = {name: index for index, name in enumerate(CLASSES.names)}
READING = Values((*((index, index) for index in range(len(CLASSES.names))), (BORDER, VOID)), "PASCAL VOC")


def recognises(root: Path) -> bool:
    return (root / "SegmentationClass").is_dir()


def open_folder(root: Path) -> Dataset:
    """Where there are no lists, every image that has a mask takes part, and every tenth of them validates."""
    masks = Files(root / "SegmentationClass", images_of(root / "SegmentationClass"))
    if not masks.files:
        raise lacking(root, NAME, "masks in SegmentationClass/")
    photos = require_images(root / "JPEGImages", root, NAME)
    sets = [lists.entries(root / "ImageSets/Segmentation" / f"{part}.txt", photos, masks) for part in ("train", "val")]
    train, val = ([photo for photo, _ in each or []] for each in sets)
    if not train and not val:
        train = [photo for photo in photos.files if masks.of(photo) is not None]
    classes, reading = _labels(root / TABLE)
    parts = [paired(each, masks, reading=reading) for each in (train, val)]
    return divided(root, *parts, classes=classes, unlisted=len(photos.files) - len({*train, *val}))


def _labels(table: Path) -> tuple[Classes, MaskReading]:
    if not table.is_file():
        return CLASSES, READING
    colours = _written(table)
    classes = Classes(tuple(colours), tuple(colours.values()), source=TABLE)
    return classes, Colours(tuple((colour, index) for index, colour in enumerate(classes.colours)), TABLE)


def _written(table: Path) -> dict[str, Colour]:
    """Names and colours of `labelmap.txt`. Raise InvalidFileError where a line has neither, or a colour twice."""
    found: dict[str, Colour] = {}
    for line in dataset.read_text(table).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words = re.fullmatch(r"([^:]+):(\d{1,3}),(\d{1,3}),(\d{1,3})(:.*)?", line.strip())
        colour = None if words is None else (int(words[2]), int(words[3]), int(words[4]))
        if words is None or colour is None or max(colour) >= MAX_CLASSES or colour in found.values():
            raise InvalidFileError(
                f"{table} has the line {line!r}, which gives no class a colour of its own.", "Write name:r,g,b::"
            )
        found[words[1]] = colour
    if not 1 <= len(found) <= MAX_CLASSES:
        raise InvalidFileError(
            f"{table} names {len(found)} classes; a class map holds 1 to {MAX_CLASSES}.", "Merge some."
        )
    return found
