"""Carvana and others of two classes: photographs in one folder, and in another masks with `_mask` behind the stem.

The folders are `imgs/` and `masks/`, `images/` and `masks/`, or `train/` and `train_masks/`. A mask is 0 and 1, or 0
and 255; with a `classes.csv`, its values are the classes.
"""

from pathlib import Path

from segdeploy import palettes
from segdeploy.data import class_table
from segdeploy.data.dataset import Classes, Dataset
from segdeploy.data.layouts._files import Files, belong_together, divided, images_of, lacking, paired, require_images
from segdeploy.data.readings import INDICES, Values

NAME = "carvana"
SUFFIX = "_mask"
FOLDERS = (("imgs", "masks"), ("images", "masks"), ("train", "train_masks"))
READING = Values(((0, 0), (1, 1), (255, 1)), "the layout carvana, of 0 and 1 or 0 and 255,")
CLASSES = Classes(("background", "foreground"), palettes.default_colours(2), named=False)


def recognises(root: Path) -> bool:
    return _folders(root) is not None


def open_folder(root: Path) -> Dataset:
    """Every tenth image validates."""
    if (found := _folders(root)) is None:
        raise lacking(root, NAME, f"imgs/ with masks of their stems and {SUFFIX} in masks/")
    photos, masks = require_images(found[0], root, NAME), Files(found[1], images_of(found[1]))
    table = class_table.of(root)
    pictures = paired(photos.files, masks, suffix=SUFFIX, reading=READING if table is None else INDICES)
    return divided(root, pictures, (), classes=table or CLASSES)


def _folders(root: Path) -> tuple[Path, Path] | None:
    """The photographs and their masks, where some of both are there."""
    pairs = [(root / photos, root / masks) for photos, masks in FOLDERS]
    return next((pair for pair in pairs if belong_together(*pair, suffix=SUFFIX)), None)
