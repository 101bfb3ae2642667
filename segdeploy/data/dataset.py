"""A labelled folder: `images/`, `masks/`, optionally `train.txt`, `val.txt` and `classes.csv`.

The lists name image files, one a line; a mask has its image's stem and is a PNG of class indices. `classes.csv` has a
line `name,r,g,b` for each class, in the order of the indices.
"""

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy import images, palettes
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import MAX_CLASSES

EACH_TENTH = 10
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    image: Path
    mask: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image to compare masks on, with its truth where there is one."""

    image: Path
    mask: Path | None


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    root: Path
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


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
    return Dataset(root, _pairs(train, samples, masks), _pairs(val, samples, masks))


def image_files(root: Path) -> list[Path]:
    """The images of a folder's `images/`, in the order of their names."""
    if not root.is_dir():
        raise InvalidRequestError(f"there is no folder {root}.", "Give a folder with images/ and masks/.")
    folder = root / "images"
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in images.EXTENSIONS)
    if not found:
        raise InvalidRequestError(f"{folder} is missing or has no images.", "Give a folder with images/ and masks/.")
    return found


def read_truth(mask: Path, *, classes: int, ignore_index: int) -> NDArray[np.uint8]:
    """(H, W) class indices, each below `classes` or equal to `ignore_index`."""
    truth = images.read_mask(mask)
    strange = np.setdiff1d(np.unique(truth), [*range(classes), ignore_index])
    if strange.size:
        raise InvalidFileError(
            f"{mask} has class {strange[0]}; the network has {classes} classes and ignores {ignore_index}.",
            "Give masks with the network's own class indices, or name the index to ignore.",
        )
    return truth


def classes_of(data: Dataset, *, ignore_index: int) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours from `classes.csv`; else class_0 ... for the highest index in the masks."""
    table = data.root / "classes.csv"
    if table.is_file():
        return _read_classes(table)
    highest = max(_highest(sample.mask, ignore_index) for sample in (*data.train, *data.val))
    if highest == 0:
        raise InvalidRequestError(
            f"the masks of {data.root} hold one class, 0, and {ignore_index}, which is ignored.",
            "Write the second class as 1 (0/255 masks: divide by 255), or name the classes in classes.csv.",
        )
    names = tuple(f"class_{index}" for index in range(highest + 1))
    return names, tuple(palettes.default_colours(len(names)))


def _highest(mask: Path, ignore_index: int) -> int:
    truth = images.read_mask(mask)
    kept = truth[truth != ignore_index]
    return int(kept.max()) if kept.size else 0


def _read_classes(table: Path) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
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
    return tuple(name for name, _ in rows), tuple(colour for _, colour in rows)


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


def read_list(path: Path) -> list[str]:
    """The lines of a list of files; names are bytes, whatever their encoding."""
    lines = os.fsdecode(path.read_bytes()).removeprefix("\ufeff").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _pairs(names: list[str], samples: dict[str, Path], masks: dict[str, Path]) -> tuple[Sample, ...]:
    without = [name for name in names if Path(name).stem not in masks]
    if without:
        raise InvalidRequestError(
            f"{len(without)} images have no mask, the first is {without[0]}.",
            f"Put masks/{Path(without[0]).stem}.png there, or leave the image out of the lists.",
        )
    return tuple(Sample(samples[name], masks[Path(name).stem]) for name in names)
