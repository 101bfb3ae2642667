"""`images/`, `masks/`, optionally `train.txt`, `val.txt` and `classes.csv`.

A mask has its image's stem and is a PNG of class indices. The lists name images, one a line: by file name, stem or
path, alone or with their mask in a second column. `classes.csv`: `segdeploy.data.class_table`.
"""

from collections.abc import Sequence
from pathlib import Path

from segdeploy.data import class_table, dataset
from segdeploy.data.dataset import Dataset, Picture
from segdeploy.data.layouts import _lists as lists
from segdeploy.data.layouts import carvana, folders
from segdeploy.data.layouts._files import EACH_TENTH, Files, images_of, without_mask
from segdeploy.errors import InvalidRequestError


def recognises(root: Path) -> bool:
    """Masks of the same stems as their images, and no folders of parts among them."""
    is_divided = any((root / "masks" / part).is_dir() for part in folders.PARTS)
    return (root / "masks").is_dir() and not is_divided and not carvana.recognises(root)


def open_folder(root: Path) -> Dataset:
    """What one list leaves over is the other; without lists, every tenth image validates and the others train."""
    photos, masks = Files(root / "images", dataset.image_files(root)), _masks(root)
    train, val = (lists.entries(root / name, photos, masks) for name in ("train.txt", "val.txt"))
    every: list[lists.Entry] = [(photo, None) for photo in photos.files]
    if val is None:
        val = every[::EACH_TENTH] if train is None else lists.others(every, train)
    if not val:
        raise InvalidRequestError(
            f"{root / 'train.txt'} names every image: none is left to validate.", "Name some in val.txt instead."
        )
    if train is None:
        train = lists.others(every, val)
    return Dataset(
        root,
        train=_pairs(train, masks),
        val=_pairs(val, masks),
        has_val_list=any((root / name).is_file() for name in ("train.txt", "val.txt")),
        unlisted=len(lists.others(lists.others(every, train), val)),
        strays=tuple(masks.strays(photos)),
        classes=class_table.of(root),
    )


def _masks(root: Path) -> Files:
    masks = Files(root / "masks", images_of(root / "masks"))
    if not masks.files:
        raise InvalidRequestError(
            f"{root} has no labels: masks/ is missing or empty.", "Put an index PNG for every image into masks/."
        )
    return masks


def _pairs(entries: Sequence[lists.Entry], masks: Files) -> tuple[Picture, ...]:
    pairs = [Picture(photo, mask or masks.of(photo)) for photo, mask in entries]
    if without := [pair.image for pair in pairs if pair.mask is None]:
        raise without_mask(without, f"masks/{without[0].stem}.png")
    return tuple(pairs)
