"""How many pixels of each image every class covers: counted from the small class map, kept in one table a run."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, images
from segdeploy.inference.journal import Entry
from segdeploy.spec import Spec


def counted(class_map: NDArray[np.uint8], *, height: int, width: int, classes: int) -> list[int]:
    """Pixels of each class once a class map (H, W) is enlarged to (height, width), counted without enlarging it."""
    sizes = zip(class_map.shape, (height, width), strict=True)
    rows, columns = (np.bincount(images.nearest(*each), minlength=each[0]) for each in sizes)
    found = np.bincount(class_map.ravel(), weights=np.outer(rows, columns).ravel(), minlength=classes)
    return [int(count) for count in found]


def write(path: Path, entries: Iterable[tuple[str, Entry]], spec: Spec) -> None:
    """A CSV with a row for each image that was segmented: its path, its pixels, and those of each class."""
    bytes_kept = "surrogateescape"  # in names that are not UTF-8
    with (
        artifact.replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=bytes_kept) as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "pixels", *spec.classes])
        table.writerows([name, sum(entry.areas), *entry.areas] for name, entry in entries)
