"""nnU-Net v2 in two dimensions: `dataset.json`, `imagesTr/CASE_0000.png` and `labelsTr/CASE.png`.

`_0000` is the image's first channel, which is the whole image where it has colours. Labels are those of `dataset.json`;
the one called `ignore` is void. Every tenth image validates; `imagesTs/` takes no part.
"""

from pathlib import Path

import msgspec

from segdeploy import palettes
from segdeploy.data.dataset import Classes, Dataset
from segdeploy.data.layouts._documents import read, require_few
from segdeploy.data.layouts._files import Files, divided, images_of, lacking, paired, require_images
from segdeploy.data.readings import VOID, Values
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import MAX_CLASSES

NAME = "nnunet"
DOCUMENT = "dataset.json"
IGNORED = "ignore"
FIRST = "_0000"


class Document(msgspec.Struct, frozen=True):
    """What it says of its files. A label of several values is a region, which lies over others."""

    labels: dict[str, int | list[int]]
    file_ending: str


def recognises(root: Path) -> bool:
    return (root / DOCUMENT).is_file() and (root / "labelsTr").is_dir()


def open_folder(root: Path) -> Dataset:
    if not recognises(root):
        raise lacking(root, NAME, f"{DOCUMENT} with labelsTr/")
    document = read(root / DOCUMENT, Document)
    if document.file_ending.endswith((".nii.gz", ".nii", ".nrrd", ".mha")):
        raise InvalidRequestError(
            f"{root / DOCUMENT} is of volumes ({document.file_ending}); segdeploy reads images.",
            "Cut them into slices.",
        )
    photos = require_images(root / "imagesTr", root, NAME)
    _require_one_channel(photos)
    classes, reading = _labels(document, root / DOCUMENT)
    masks = Files(root / "labelsTr", images_of(root / "labelsTr"))
    pictures = paired(photos.files, masks, stem_of=lambda photo: photo.stem.removesuffix(FIRST), reading=reading)
    return divided(root, pictures, (), classes=classes, unlisted=len(images_of(root / "imagesTs")))


def _require_one_channel(photos: Files) -> None:
    others = [photo for photo in photos.files if not photo.stem.endswith(FIRST)]
    if others:
        raise InvalidRequestError(
            f"{others[0]} is no first channel ({FIRST}): segdeploy takes images that are one file each.",
            "Write each case as one image of three channels, CASE_0000.png.",
        )


def _labels(document: Document, path: Path) -> tuple[Classes, Values]:
    values = {name: value for name, value in document.labels.items() if isinstance(value, int)}
    if len(values) < len(document.labels):
        raise InvalidRequestError(
            f"{path} has regions, which lie over each other.", "Give each value a label of its own."
        )
    ordered = sorted((value, name) for name, value in values.items() if name != IGNORED)
    if len(set(values.values())) < len(values) or not all(0 <= value < MAX_CLASSES for value in values.values()):
        raise InvalidFileError(f"{path} has labels with values that are no class each.", "Number them from 0.")
    require_few(len(ordered), path)
    table = [(value, index) for index, (value, _) in enumerate(ordered)]
    table += [(values[IGNORED], VOID)] if IGNORED in values else []
    names = tuple(name for _, name in ordered)
    classes = Classes(names, palettes.default_colours(len(names)), source=DOCUMENT)
    return classes, Values(tuple(table), DOCUMENT)
