"""COCO's instances: `annotations/instances_*.json`, or Roboflow's `{train,valid}/_annotations.coco.json`.

Class 0 is the background; the categories follow in the order of their ids. Where shapes lie on each other, the smaller
covers the larger by its `area`, of equal ones the later; crowds lie below, and are pixels of their category. Polygons
are filled as pycocotools fills them. Images lie in `images/NAME/`, `NAME/` or `images/`; a NAME with `val` validates.
"""

from pathlib import Path

from segdeploy.data.dataset import Dataset
from segdeploy.data.layouts import _coco

NAME = "coco_instances"
PARTS = ("train", "valid", "val")


def recognises(root: Path) -> bool:
    return bool(_documents(root))


def open_folder(root: Path) -> Dataset:
    return _coco.open_documents(root, _documents(root), layout=NAME, background=True)


def _documents(root: Path) -> list[Path]:
    places = (root, *(root / part for part in PARTS))
    roboflow = [path for place in places if (path := place / _coco.ROBOFLOW).is_file()]
    return [*_coco.documents(root, "instances"), *roboflow]
