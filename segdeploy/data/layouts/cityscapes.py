"""Cityscapes: `leftImg8bit/{train,val}/CITY/*_leftImg8bit.png`, `gtFine/{train,val}/CITY/*_gtFine_labelIds.png`.

The ids of the labels become the 19 train ids; every other id is void (cityscapesScripts helpers/labels.py). What is
in `test/` takes no part: its labels are not published.
"""

from pathlib import Path

from segdeploy import palettes
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts._files import Files, divided, folders_in, images_of, lacking, paired
from segdeploy.data.readings import VOID, Values

NAME = "cityscapes"
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # by train id
LAST = 33
LICENCE_PLATE = 255  # -1 in eight bits
IGNORED = tuple((value, VOID) for value in (*range(LAST + 1), LICENCE_PLATE) if value not in IDS)
READING = Values((*((value, index) for index, value in enumerate(IDS)), *IGNORED), "Cityscapes")
CLASSES = Classes(palettes.CITYSCAPES.classes, palettes.CITYSCAPES.colours, source="Cityscapes")
PUBLISHED_VALUES = dict(zip(CLASSES.names, IDS, strict=True))
IMAGE, LABEL = "_leftImg8bit", "_gtFine_labelIds"


def recognises(root: Path) -> bool:
    return (root / "gtFine").is_dir() and (root / "leftImg8bit").is_dir()


def open_folder(root: Path) -> Dataset:
    if not recognises(root):
        raise lacking(root, NAME, "leftImg8bit/ with gtFine/")
    train, val = (_part(root, part) for part in ("train", "val"))
    if not train and not val:
        raise lacking(root, NAME, "images in leftImg8bit/train/CITY/ or leftImg8bit/val/CITY/")
    test = sum(len(images_of(city)) for city in folders_in(root / "leftImg8bit" / "test"))
    return divided(root, train, val, classes=CLASSES, unlisted=test)


def _part(root: Path, part: str) -> list[Picture]:
    found: list[Picture] = []
    for city in folders_in(root / "leftImg8bit" / part):
        labels = root / "gtFine" / part / city.name
        photos = [photo for photo in images_of(city) if photo.stem.endswith(IMAGE)]
        masks = Files(labels, [mask for mask in images_of(labels) if mask.stem.endswith(LABEL)])
        found += paired(
            photos, masks, suffix=LABEL, stem_of=lambda photo: photo.stem.removesuffix(IMAGE), reading=READING
        )
    return found
