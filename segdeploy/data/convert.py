"""Index masks from masks in colours."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, images
from segdeploy.data import _threads, class_table, dataset
from segdeploy.data.layouts import Classes
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.paths import hold_paths
from segdeploy.progress import Progress, silent
from segdeploy.spec import MAX_CLASSES

Colour = tuple[int, int, int]
UNKNOWN = -1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How colours become classes.

    `classes`: the table, by default `classes.csv` beside the folder. `void`: RGB colours that become `ignore_index`;
    with `void_others` so does every colour that the table does not name.
    """

    classes: Path | None = None
    ignore_index: int = 255
    void: Sequence[Colour] = ()
    void_others: bool = False

    def __post_init__(self) -> None:
        hold_paths(self, "classes")


CONVERT = ConvertOptions()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """Where the index masks lie, how many, and the pixels of each class; `ignored`: pixels that were set void."""

    schema: Literal[1] = 1
    out: Path
    masks: int
    pixels: dict[str, int]
    ignored: int


def convert(
    colours: Path, out: Path, *, options: ConvertOptions = CONVERT, progress: Progress = silent
) -> ConvertReport:
    """Write an index PNG into `out` for every mask of a folder, of the same stem, coloured as it was.

    Raise InvalidFileError where a mask has a colour that nothing names; then no mask is written.
    """
    table = class_table.read(options.classes or colours.parent / class_table.NAME)
    targets = _targets(colours, out)
    work = functools.partial(_converted, indices=_indices(table, options), table=table, targets=targets)
    counts = np.zeros(MAX_CLASSES, np.int64)
    is_whole = False
    try:
        with progress(f"Converting {colours.name}", len(targets)) as done:
            for _, pixels in _threads.each(work, list(targets)):
                counts += pixels
                done()
        is_whole = True
    finally:
        for target in [] if is_whole else targets.values():
            target.unlink(missing_ok=True)
    pixels_of = {name: int(counts[index]) for index, name in enumerate(table.names)}
    return ConvertReport(out=out, masks=len(targets), pixels=pixels_of, ignored=int(counts[options.ignore_index]))


def _targets(colours: Path, out: Path) -> dict[Path, Path]:
    """Where each mask is written; never over a file that is there."""
    files = [path for path in dataset.files_in(colours) if dataset.is_image(path)]
    if not files:
        raise InvalidRequestError(f"{colours} is missing or has no masks.", "Give a folder of masks in colours.")
    found: dict[Path, Path] = {}
    for file in files:
        target = out / f"{file.stem}.png"
        if target in found.values() or os.path.lexists(target):
            raise InvalidRequestError(f"{target} is there already, or is of two masks.", "Give an empty folder: --out")
        found[file] = target
    return found


def _indices(table: Classes, options: ConvertOptions) -> NDArray[np.int16]:
    """The class index of every colour, by red, green and blue in 24 bits; UNKNOWN for those without one."""
    found = np.full(2**24, options.ignore_index if options.void_others else UNKNOWN, np.int16)
    if options.ignore_index < len(table.names):
        raise InvalidRequestError(
            f"{options.ignore_index} is ignored, and is the index of {table.names[options.ignore_index]}.",
            f"Ignore an index from {len(table.names)} on: --ignore-index",
        )
    owners: dict[Colour, str] = {}
    void = [("void", colour, options.ignore_index) for colour in options.void]
    classes = zip(table.names, table.colours, range(len(table.names)), strict=True)
    for name, colour, index in [*classes, *void]:
        if owners.setdefault(colour, name) != name:
            raise InvalidRequestError(
                f"{owners[colour]} and {name} have one colour, {_text(colour)}.", "Give each its own, in classes.csv."
            )
        found[_packed(np.array(colour))] = index
    return found


def _converted(
    file: Path, *, indices: NDArray[np.int16], table: Classes, targets: Mapping[Path, Path]
) -> NDArray[np.int64]:
    """(256,) pixels of each value that was written."""
    if images.looked_at(file, lambda image, _: images.is_lossy(image)):
        raise InvalidFileError(
            f"{file} is a JPEG, which changes colours.", "Give the masks as PNG, as they were drawn."
        )
    packed = _packed(images.read(file))
    found = indices[packed]
    if (unknown := packed[found == UNKNOWN]).size:
        first = int(unknown[0])
        colour = _text((first >> 16, first >> 8 & 255, first & 255))
        raise InvalidFileError(
            f"{file} has the colour {colour}, which classes.csv does not name ({unknown.size / packed.size:.1%} of the "
            "pixels have such).",
            f"Name it there, or ignore it: --void {colour}; all that it does not name: --void-others",
        )
    class_map = found.astype(np.uint8)
    artifact.write_atomically(targets[file], images.mask_png(class_map, table.colours))
    return np.bincount(class_map.ravel(), minlength=MAX_CLASSES)


def _packed(rgb: NDArray[Any]) -> NDArray[np.uint32]:
    """(..., 3) -> (...)."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    packed: NDArray[np.uint32] = red << 16 | green << 8 | blue
    return packed


def _text(colour: Colour) -> str:
    return ",".join(map(str, colour))
