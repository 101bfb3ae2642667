"""`images/`, `masks/`, optionally `train.txt`, `val.txt` and `classes.csv`.

The lists name image files, one a line; a mask has its image's stem and is a PNG of class indices. `classes.csv` has a
line `name,r,g,b` for each class, in the order of the indices.
"""

import csv
from pathlib import Path

from segdeploy import images, palettes
from segdeploy.data.dataset import Dataset, Picture, image_files, read_list
from segdeploy.data.layouts._base import Classes
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import MAX_CLASSES

EACH_TENTH = 10


def recognises(root: Path) -> bool:
    return (root / "masks").is_dir()


def open_folder(root: Path) -> Dataset:
    """Without `val.txt`, every tenth image validates; without `train.txt`, what does not validate trains."""
    samples = {image.name: image for image in image_files(root)}
    masks = {mask.stem: mask for mask in sorted((root / "masks").glob("*")) if mask.is_file()}
    if not masks:
        raise InvalidRequestError(
            f"{root} has no labels: masks/ is missing or empty.", "Put an index PNG for every image into masks/."
        )
    every = sorted(samples)
    val = _listed(root / "val.txt", samples) or every[::EACH_TENTH]
    held_out = set(val)
    train = _listed(root / "train.txt", samples) or [name for name in every if name not in held_out]
    return Dataset(
        root,
        train=_pairs(train, samples, masks),
        val=_pairs(val, samples, masks),
        has_val_list=(root / "val.txt").is_file(),
    )


def classes_of(data: Dataset, *, ignore_index: int) -> Classes:
    """Names and colours from `classes.csv`; else class_0 ... for the highest index in the masks."""
    table = data.root / "classes.csv"
    if table.is_file():
        return _read_classes(table)
    highest = max(_highest(picture.label, ignore_index) for picture in (*data.train, *data.val))
    if highest == 0:
        raise InvalidRequestError(
            f"the masks of {data.root} hold one class, 0, and {ignore_index}, which is ignored.",
            "Write the second class as 1 (0/255 masks: divide by 255), or name the classes in classes.csv.",
        )
    names = tuple(f"class_{index}" for index in range(highest + 1))
    return Classes(names, tuple(palettes.default_colours(len(names))))


def _highest(mask: Path, ignore_index: int) -> int:
    truth = images.read_mask(mask)
    kept = truth[truth != ignore_index]
    return int(kept.max()) if kept.size else 0


def _read_classes(table: Path) -> Classes:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [(name.strip(), (int(r), int(g), int(b))) for name, r, g, b in filter(None, csv.reader(file))]
    except (ValueError, csv.Error) as error:
        raise InvalidFileError(
            f"{table} is not a table of classes: {error}.", "Give a line name,r,g,b for each class, and no header."
        ) from error
    if not 1 <= len(rows) <= MAX_CLASSES:
        raise InvalidRequestError(
            f"{table} names {len(rows)} classes; a class map holds 1 to {MAX_CLASSES}.", "Merge classes."
        )
    return Classes(tuple(name for name, _ in rows), tuple(colour for _, colour in rows))


def _listed(path: Path, samples: dict[str, Path]) -> list[str]:
    if not path.is_file():
        return []
    names = read_list(path)
    missing = [name for name in names if name not in samples]
    if missing:
        raise InvalidRequestError(
            f"{path} names {len(missing)} images that are not in images/, the first is {missing[0]}.",
            "Correct the list, or bring the images.",
        )
    return names


def _pairs(names: list[str], samples: dict[str, Path], masks: dict[str, Path]) -> tuple[Picture, ...]:
    without = [name for name in names if Path(name).stem not in masks]
    if without:
        raise InvalidRequestError(
            f"{len(without)} images have no mask, the first is {without[0]}.",
            f"Put masks/{Path(without[0]).stem}.png there, or leave the image out of the lists.",
        )
    return tuple(Picture(samples[name], masks[Path(name).stem]) for name in names)
