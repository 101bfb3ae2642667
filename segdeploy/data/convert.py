"""Our own layout out of any other, and index masks out of masks in colours."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, images
from segdeploy.data import _threads, class_table, dataset, layouts
from segdeploy.data.dataset import Classes, DataFolder, Dataset, Picture
from segdeploy.data.readings import UNKNOWN, VOID, Colour, Colours
from segdeploy.errors import InvalidRequestError
from segdeploy.paths import hold_paths
from segdeploy.progress import Progress, silent
from segdeploy.spec import MAX_CLASSES

IN_THE_TABLE = "Name it there, or ignore it: --void {colour}; all that it does not name: --void-others"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What becomes of void, and of colours.

    `ignore_index`: what is written for void. Of a folder of masks in colours: `classes` is the table, by default
    `classes.csv` beside the folder; `void`: RGB colours that are void; with `void_others` so is every colour that the
    table does not name.
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
    """Where the masks lie, or the folder of images and masks; how many masks, and the pixels of each class.

    `ignored`: pixels that are void.
    """

    schema: Literal[1] = 1
    out: Path
    masks: int
    pixels: dict[str, int]
    ignored: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A mask to be read and where it is written, with its image where that goes along."""

    picture: Picture
    mask: Path
    image: Path | None = None

    @property
    def targets(self) -> list[Path]:
        return [self.mask] if self.image is None else [self.mask, self.image]


def convert(
    source: Path | DataFolder, out: Path, *, options: ConvertOptions = CONVERT, progress: Progress = silent
) -> ConvertReport:
    """Write a labelled folder of any layout as one of ours: images/, masks/, classes.csv, and its lists.

    A folder that no layout recognises holds masks in colours: an index PNG of the same stem is written into `out` for
    each. Raise InvalidFileError where a mask cannot be read, or has a colour that nothing names; then nothing is
    written.
    """
    folder = DataFolder.of(source)
    if not layouts.is_labelled(folder):
        table = class_table.read(options.classes or folder.path.parent / class_table.NAME)
        return _written(_jobs_of_colours(folder.path, out, table, options), out, table, options, progress)
    if options.classes is not None or options.void or options.void_others:
        raise InvalidRequestError(
            f"{folder.path} is a labelled folder, whose layout says its classes.",
            "Leave out --classes, --void and --void-others: they are for a folder of masks in colours.",
        )
    data = layouts.open_folder(folder)
    classes = layouts.classes_of(data, ignore_index=options.ignore_index)
    _require_apart(classes, options)
    jobs, lists = _jobs_of_folder(data, out), _lists(data, out)
    report = _written(jobs, out, classes, options, progress, besides=[*lists, out / class_table.NAME])
    for path, text in {**lists, out / class_table.NAME: class_table.text(classes)}.items():
        artifact.write_atomically(path, text.encode("utf-8", "surrogateescape"))
    return report


def _written(
    jobs: Sequence[_Job],
    out: Path,
    classes: Classes,
    options: ConvertOptions,
    progress: Progress,
    *,
    besides: Iterable[Path] = (),
) -> ConvertReport:
    """Do the jobs, all of them or none."""
    _require_free([*(target for job in jobs for target in job.targets), *besides])
    work = functools.partial(_converted, classes=classes, ignore_index=options.ignore_index)
    counts = np.zeros(MAX_CLASSES, np.int64)
    is_whole = False
    try:
        with progress(f"Converting to {out.name}", len(jobs)) as done:
            for _, pixels in _threads.each(work, jobs):
                counts += pixels
                done()
        is_whole = True
    finally:
        for target in [] if is_whole else [target for job in jobs for target in job.targets]:
            target.unlink(missing_ok=True)
    pixels_of = {name: int(counts[index]) for index, name in enumerate(classes.names)}
    return ConvertReport(out=out, masks=len(jobs), pixels=pixels_of, ignored=int(counts[options.ignore_index]))


def _require_free(targets: Sequence[Path]) -> None:
    """Raise InvalidRequestError where a file would be written over another."""
    twice = [target for target, count in Counter(targets).items() if count > 1]
    if taken := [target for target in targets if os.path.lexists(target)] or twice:
        raise InvalidRequestError(f"{taken[0]} is there already, or is of two masks.", "Give an empty folder: --out")


def _converted(job: _Job, *, classes: Classes, ignore_index: int) -> NDArray[np.int64]:
    """(256,) pixels of each value that was written."""
    class_map = job.picture.required_truth(classes=len(classes.names), ignore_index=ignore_index)
    artifact.write_atomically(job.mask, images.mask_png(class_map, classes.colours))
    if job.image is not None:
        artifact.write_atomically(job.image, job.picture.image.read_bytes())
    return np.bincount(class_map.ravel(), minlength=MAX_CLASSES)


# A labelled folder


def _jobs_of_folder(data: Dataset, out: Path) -> list[_Job]:
    names = _names(data)
    return [
        _Job(picture, out / "masks" / f"{Path(name).stem}.png", out / "images" / name)
        for picture, name in zip(dict.fromkeys(data.pictures), names.values(), strict=True)
    ]


def _names(data: Dataset) -> dict[Path, str]:
    """What each image is called; with its folders in front where two have one stem."""
    files = [picture.image for picture in dict.fromkeys(data.pictures)]
    counts = Counter(file.stem for file in files)
    return {
        file: file.name if counts[file.stem] == 1 else "_".join(Path(os.path.relpath(file, data.root)).parts)
        for file in files
    }


def _lists(data: Dataset, out: Path) -> dict[Path, str]:
    """The lists of what trains and what validates, where there is something in them."""
    names = _names(data)
    parts = {"train.txt": data.train, "val.txt": data.val}
    return {
        out / name: "".join(f"{names[picture.image]}\n" for picture in pictures)
        for name, pictures in parts.items()
        if pictures
    }


# Masks in colours


def _jobs_of_colours(colours: Path, out: Path, table: Classes, options: ConvertOptions) -> list[_Job]:
    files = [path for path in dataset.files_in(colours) if dataset.is_image(path)]
    if not files:
        raise InvalidRequestError(f"{colours} is missing or has no masks.", "Give a folder of masks in colours.")
    reading = _reading(table, options)
    return [_Job(Picture(file, file, reading), out / f"{file.stem}.png") for file in files]


def _reading(table: Classes, options: ConvertOptions) -> Colours:
    _require_apart(table, options)
    owners: dict[Colour, str] = {}
    classes = zip(table.names, table.colours, range(len(table.names)), strict=True)
    found = [*classes, *(("void", colour, VOID) for colour in options.void)]
    for name, colour, _ in found:
        if owners.setdefault(colour, name) != name:
            raise InvalidRequestError(
                f"{owners[colour]} and {name} have one colour, {','.join(map(str, colour))}.",
                "Give each its own, in classes.csv.",
            )
    indices = tuple((colour, index) for _, colour, index in found)
    return Colours(indices, class_table.NAME, VOID if options.void_others else UNKNOWN, IN_THE_TABLE)


def _require_apart(classes: Classes, options: ConvertOptions) -> None:
    """Raise InvalidRequestError where the ignored index is a class's."""
    if options.ignore_index < len(classes.names):
        raise InvalidRequestError(
            f"{options.ignore_index} is ignored, and is the index of {classes.names[options.ignore_index]}.",
            f"Ignore an index from {len(classes.names)} on: --ignore-index",
        )
