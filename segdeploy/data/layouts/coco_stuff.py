"""COCO-Stuff: `annotations/stuff_*.json`, or maps of pixels in `stuffthingmaps/{train2017,val2017}/*.png`.

The JSON's categories are the classes, in the order of their ids; a pixel without one is void. In the maps 0 to 181 are
the classes and 255 is void; their names are those of `labels.txt` (lines `id: name`, from 1), a file of COCO-Stuff.
"""

import re
from pathlib import Path

from segdeploy import palettes
from segdeploy.data import dataset
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts import _coco
from segdeploy.data.layouts._files import Files, divided, folders_in, images_of, lacking, paired
from segdeploy.data.readings import VOID, Values
from segdeploy.errors import InvalidFileError

NAME = "coco_stuff"
MAPS = "stuffthingmaps"
CLASSES, UNLABELLED = 182, 255
READING = Values((*((index, index) for index in range(CLASSES)), (UNLABELLED, VOID)), "COCO-Stuff")


def recognises(root: Path) -> bool:
    return bool(_coco.documents(root, "stuff")) or (root / MAPS).is_dir()


def open_folder(root: Path) -> Dataset:
    if found := _coco.documents(root, "stuff"):
        return _coco.open_documents(root, found, layout=NAME, background=False)
    parts: dict[str, list[Picture]] = {"train": [], "val": []}
    for folder in folders_in(root / MAPS):
        places = (root / "images" / folder.name, root / folder.name)
        photos = next((found for place in places if (found := images_of(place))), [])
        pictures = paired(photos, Files(folder, images_of(folder)), reading=READING)
        parts["val" if "val" in folder.name else "train"] += pictures
    if not parts["train"] and not parts["val"]:
        raise lacking(root, NAME, f"annotations/stuff_*.json, or images with maps in {MAPS}/")
    return divided(root, parts["train"], parts["val"], classes=_classes(root / "labels.txt"))


def _classes(table: Path) -> Classes:
    names = {index: f"class_{index}" for index in range(CLASSES)}
    for line in filter(None, map(str.strip, dataset.read_text(table).splitlines() if table.is_file() else ())):
        words = re.fullmatch(r"(\d+)\s*:\s*(.+)", line)
        if words is None or int(words[1]) > CLASSES:
            raise InvalidFileError(f"{table} has the line {line!r}, which names no class.", "Write id: name")
        names[int(words[1]) - 1] = words[2]
    names.pop(-1, None)  # id 0 is `unlabeled`
    colours = palettes.default_colours(CLASSES)
    return Classes(tuple(names.values()), colours, named=table.is_file(), source=table.name)
