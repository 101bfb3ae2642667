"""ADE20K's 150 classes: `images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png`.

Masks hold 1 to 150 for the classes, which become 0 to 149, and 0 for everything else, which is void. Names are those of
`objectInfo150.txt`, a table that comes with the data set; without it classes are numbers.
"""

from collections import Counter
from pathlib import Path

from segdeploy import palettes
from segdeploy.data import dataset
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts._files import Files, divided, images_of, lacking, paired, require_images
from segdeploy.data.readings import VOID, Values
from segdeploy.errors import InvalidFileError

NAME = "ade20k"
CLASSES = 150
TABLE = "objectInfo150.txt"
NAME_COLUMN = "Name"
PUBLISHED_VALUES = {name: index + 1 for index, name in enumerate(palettes.ADE20K.classes)}
READING = Values(((0, VOID), *((index + 1, index) for index in range(CLASSES))), "ADE20K")


def recognises(root: Path) -> bool:
    return any((root / "annotations" / part).is_dir() for part in ("training", "validation"))


def open_folder(root: Path) -> Dataset:
    if not recognises(root):
        raise lacking(root, NAME, "annotations/training/ or annotations/validation/")
    train, val = (_part(root, part) for part in ("training", "validation"))
    return divided(root, train, val, classes=_classes(root / TABLE))


def _part(root: Path, part: str) -> tuple[Picture, ...]:
    labels = root / "annotations" / part
    if not labels.is_dir():
        return ()
    photos = require_images(root / "images" / part, root, NAME)
    return paired(photos.files, Files(labels, images_of(labels)), reading=READING)


def _classes(table: Path) -> Classes:
    colours = palettes.default_colours(CLASSES)
    if not table.is_file():
        return Classes(tuple(f"class_{index}" for index in range(CLASSES)), colours, named=False)
    header, *rows = (line.split("\t") for line in dataset.read_text(table).splitlines() if line.strip())
    if [word.strip() for word in header][-1:] != [NAME_COLUMN] or len(rows) != CLASSES:
        raise InvalidFileError(
            f"{table} is not the table of ADE20K's {CLASSES} classes.", "Bring the one that comes with the data set."
        )
    return Classes(_distinct([row[-1].strip() for row in rows]), colours, source=TABLE)


def _distinct(synonyms: list[str]) -> tuple[str, ...]:
    """The first of each class's synonyms; all of them where another class begins alike."""
    first = [text.split(",")[0] for text in synonyms]
    counts = Counter(first)
    return tuple(name if counts[name] == 1 else text for name, text in zip(first, synonyms, strict=True))
