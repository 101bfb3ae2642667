"""Any two folders of images and masks of the same stems: `photos/` and `labels/`, alone or by parts.

The parts are `train/` and `val/`, around the two folders or inside each of them. The folder of masks is known by its
name, else by its first file, which is an index image beside a photograph. With `classes.csv` it has names.
"""

from pathlib import Path

from segdeploy import images
from segdeploy.data import class_table
from segdeploy.data.dataset import Dataset, Picture
from segdeploy.data.layouts._files import (
    Files,
    belong_together,
    divided,
    first_image,
    folders_in,
    images_of,
    lacking,
    paired,
)
from segdeploy.errors import SegdeployError

NAME = "folders"
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
PARTS = (*TRAIN, *VAL, *TEST)
MASKS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "gt", "groundtruth", "ground_truth"),
    *("seg", "segmentation", "segmentations", "segmentation_masks", "target", "targets", "truth"),
}
INDEX_MODES = {"1", "L", "P", "I", "I;16"}
Pair = tuple[Path, Path]  # of folders: photographs and masks


def recognises(root: Path) -> bool:
    pairs = _pairs(root)
    return bool(pairs) and all(belong_together(*pair) for pair in pairs.values())


def open_folder(root: Path) -> Dataset:
    pairs = _pairs(root)
    if not pairs:
        raise lacking(root, NAME, "two folders, one of images and one of their masks")
    parts = {part: _pictures(pair) for part, pair in pairs.items() if part not in TEST}
    train = [each for part in ("", *TRAIN) for each in parts.get(part, ())]
    val = [each for part in VAL for each in parts.get(part, ())]
    test = sum(len(images_of(pair[0])) for part, pair in pairs.items() if part in TEST)
    return divided(root, train, val, classes=class_table.of(root), unlisted=test)


def _pictures(pair: Pair) -> tuple[Picture, ...]:
    return paired(images_of(pair[0]), Files(pair[1], images_of(pair[1])))


def _pairs(root: Path) -> dict[str, Pair]:
    """By the part that each is for, empty where there are no parts."""
    around = {part: pair for part in PARTS if (pair := _pair(root / part)) is not None}
    if around or (pair := _pair(root)) is None:
        return around
    inside = {part: (pair[0] / part, pair[1] / part) for part in PARTS if (pair[1] / part).is_dir()}
    return inside or {"": pair}


def _pair(folder: Path) -> Pair | None:
    found = [path for path in folders_in(folder) if path.name not in PARTS]
    if len(found) != 2:  # noqa: PLR2004 - a pair
        return None
    named = [path for path in found if path.name.lower() in MASKS] or [path for path in found if _holds_masks(path)]
    if len(named) != 1:
        return None
    return next(path for path in found if path != named[0]), named[0]


def _holds_masks(folder: Path) -> bool:
    first = next((found for place in (folder, *folders_in(folder)) if (found := first_image(place))), None)
    try:
        return first is not None and images.looked_at(
            first, lambda image, _: image.mode in INDEX_MODES and not images.is_lossy(image)
        )
    except SegdeployError:
        return False
