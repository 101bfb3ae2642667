"""SBD, the masks for more of VOC's images: `img/*.jpg`, `cls/`, `train.txt` and `val.txt`.

It is published with MATLAB files in `cls/`, which SciPy reads; here `cls/` holds the same as PNG, as it is passed on.
The classes are VOC's.
"""

from pathlib import Path

from segdeploy.data import dataset
from segdeploy.data.dataset import Dataset
from segdeploy.data.layouts import _lists as lists
from segdeploy.data.layouts import voc
from segdeploy.data.layouts._files import Files, divided, images_of, lacking, paired, require_images
from segdeploy.errors import InvalidRequestError

NAME = "sbd"


def recognises(root: Path) -> bool:
    return (root / "cls").is_dir() and (root / "img").is_dir()


def open_folder(root: Path) -> Dataset:
    masks = Files(root / "cls", images_of(root / "cls"))
    if not masks.files:
        raise _without_masks(root)
    photos = require_images(root / "img", root, NAME)
    sets = [lists.entries(root / f"{part}.txt", photos, masks) for part in ("train", "val")]
    train, val = ([photo for photo, _ in each or []] for each in sets)
    if not train and not val:
        train = list(photos.files)
    parts = [paired(each, masks, reading=voc.READING) for each in (train, val)]
    return divided(root, *parts, classes=voc.CLASSES, unlisted=len(photos.files) - len({*train, *val}))


def _without_masks(root: Path) -> InvalidRequestError:
    if not any(path.suffix == ".mat" for path in dataset.files_in(root / "cls")):
        return lacking(root, NAME, "masks in cls/")
    return InvalidRequestError(
        f"the masks in {root / 'cls'} are MATLAB files, which segdeploy does not read.",
        'Write each as PNG beside it, with SciPy: loadmat(FILE)["GTcls"]["Segmentation"][0, 0]',
    )
