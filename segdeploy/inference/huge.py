"""Segments an image that is too large for memory: its rows come in, and those of the class map go out."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from segdeploy import cores, fitting, huge_images, images
from segdeploy.engines import Engine
from segdeploy.fitting import Classify, InMemory
from segdeploy.huge_images import HugeImage
from segdeploy.images import Photograph
from segdeploy.inference.journal import FileState
from segdeploy.inference.outputs import Huge, RowWriter, Segmented
from segdeploy.inference.resuming import Standing
from segdeploy.inference.source_list import Source
from segdeploy.inference.work import Work, require_still
from segdeploy.spec import Spec

LONGEST_SIDE = 2048  # pixels of the smaller pictures, for pages and overlays
_PIXELS = 2**22  # of a class map, enlarged at once

UInt8 = NDArray[np.uint8]


class StoppedError(Exception):
    """The run was stopped in the midst of an image, which is left to do."""


class Small:
    """A photograph and its class map with fewer rows and columns, picked while both go by."""

    def __init__(self, height: int, width: int) -> None:
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        sides = [max(1, round(side * scale)) for side in (height, width)]
        self._rows, self._columns = (images.nearest(*each) for each in zip((height, width), sides, strict=True))
        self.photo = np.zeros((*sides, 3), np.uint8)
        self.class_map = np.zeros(sides, np.uint8)

    def see(self, first: int, pixels: UInt8) -> None:
        """The photograph's rows from `first` on: (h, width, 3)."""
        self._pick(self.photo, first, pixels)

    def draw(self, first: int, class_map: UInt8) -> None:
        """The class map's rows from `first` on: (h, width)."""
        self._pick(self.class_map, first, class_map)

    def _pick(self, small: UInt8, first: int, rows: UInt8) -> None:
        begin, end = np.searchsorted(self._rows, (first, first + len(rows)))
        small[begin:end] = rows[self._rows[begin:end] - first][:, self._columns]


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """What became of an image: a smaller picture of it with its class map, and the rest as `maker.Made` has it."""

    small: Segmented
    areas: Sequence[int]
    written: Mapping[str, FileState]
    reasons: Sequence[str]


def made(
    work: Work,
    engine: Engine,
    source: Source,
    *,
    classify: Classify,
    target: str,
    standing: Standing,
    read: FileState | None,
    stop: threading.Event,
) -> Drawn:
    """Write the missing outputs of an image: in rows, or of a smaller picture; and why there are not the others.

    Raise InvalidFileError as HugeImage does, InvalidRequestError where the file changed meanwhile, StoppedError once
    `stop` is set. Then no file is there.
    """
    threads = cores.usable() if engine.concurrent else 1
    missing = {kind: work.writers[kind] for kind in standing.missing}
    name = PurePath(target)
    with contextlib.ExitStack() as stack, HugeImage(source.path) as image:
        huge = Huge(image.height, image.width, engine.spec, work.task.output_options, source.path)
        opened = {
            kind: stack.enter_context(writer.in_rows(name, huge, is_known=kind in standing.ours))
            for kind, writer in missing.items()
            if writer.takes_rows
        }
        small, areas = _drawn(
            image, huge, classify, [rows.writer for rows in opened.values()], stop=stop, threads=threads
        )
        require_still(source, read)
    written = {} if standing.entry is None else dict(standing.entry.written)
    written |= {kind: rows.state for kind, rows in opened.items() if rows.state is not None}
    reasons = []
    for kind, writer in missing.items():
        if writer.shrinks:
            written[kind] = writer.write(name, small, is_known=kind in standing.ours)
        elif not writer.takes_rows:
            reasons.append(f"an image of {huge.width}x{huge.height} is too large for --write {kind}.")
    return Drawn(small, areas, written, reasons)


def _drawn(
    image: HugeImage,
    huge: Huge,
    classify: Classify,
    writers: Sequence[RowWriter],
    *,
    stop: threading.Event,
    threads: int,
) -> tuple[Segmented, list[int]]:
    """Give the writers every row; a smaller picture with its class map, and the pixels of each class."""
    counts = np.zeros(len(huge.spec.classes), np.int64)
    small, first = Small(image.height, image.width), 0

    def watch(top: int, rows: UInt8) -> None:
        if stop.is_set():
            raise StoppedError
        small.see(top, rows)

    image.watched_by = watch
    with ThreadPoolExecutor(threads) as pool:
        for rows in _class_rows(image, huge.spec, classify, pool):
            if stop.is_set():
                raise StoppedError
            counts += np.bincount(rows.ravel(), minlength=len(counts))
            small.draw(first, rows)
            first += len(rows)
            for writer in writers:
                writer.write(rows)
    photo = Photograph.of(small.photo)
    return Segmented(photo, small.class_map, huge.spec, huge.options, huge.path), counts.tolist()


def _class_rows(image: HugeImage, spec: Spec, classify: Classify, pool: ThreadPoolExecutor) -> Iterator[UInt8]:
    """The class map (h, width) of the image, from the top down."""
    about = fitting.plan(spec, image.height, image.width)
    if fitting.is_tiled(spec, image.height, image.width):
        yield from fitting.strips(about, spec, image, classify, pool.map)
        return
    fitted = InMemory(huge_images.resized(image, height=about.height, width=about.width))
    class_map = np.concatenate(list(fitting.strips(about, spec, fitted, classify)))
    rows, columns = images.nearest(about.height, image.height), images.nearest(about.width, image.width)
    count = max(1, _PIXELS // image.width)
    for top in range(0, image.height, count):
        yield class_map.take(rows[top : top + count], axis=0).take(columns, axis=1)
