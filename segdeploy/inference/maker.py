"""Makes the outputs of one image, in this process or in another."""

import dataclasses
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from segdeploy import fitting, huge_images, images
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, SegdeployError
from segdeploy.image_files import InRowsError, TooLargeError
from segdeploy.images import Photograph
from segdeploy.inference import areas, huge
from segdeploy.inference.journal import FileState
from segdeploy.inference.outputs import Segmented
from segdeploy.inference.report import STEPS
from segdeploy.inference.resuming import Standing
from segdeploy.inference.source_list import Source
from segdeploy.inference.work import Work, require_still
from segdeploy.paths import shown

# What a system says of one file's name, or of what already has it: other files can be written all the same.
_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ELOOP}


@dataclasses.dataclass(frozen=True, slots=True)
class _Drawn:
    """One image: at its own size, as the network drew it (H', W'), and its pixels by class."""

    segmented: Segmented
    class_map: NDArray[np.uint8]
    areas: Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of one image, for whoever keeps the journal; processes can send it.

    `reasons`: of what could not be made. `read`: the file that was read, None where nothing is to be noted of it.
    `failed`: why nobody can read it. `segmented`: whether it counts for the limit. `spent`: CPU seconds by step, and
    `seconds` up to the note.
    """

    reasons: Sequence[str]
    read: FileState | None = None
    written: Mapping[str, FileState] = dataclasses.field(default_factory=dict)
    areas: Sequence[int] = ()
    failed: str | None = None
    segmented: bool = False
    seconds: float = 0.0
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)


Look = Callable[[str, Sequence[int], Photograph, NDArray[np.uint8]], None]  # as `Sheet.look`


class Maker:
    """What makes the outputs of an image, in this process or in another; it serves several threads.

    Once `stop` is set, an image too large for memory is not gone on with; others take no longer than they may.
    """

    def __init__(self, engine: Engine, work: Work, stop: threading.Event) -> None:
        self.engine = engine
        self.stop = stop
        self.work = work
        self.options = work.task.options
        self._engine_lock = threading.Semaphore(self.options.at_once if engine.concurrent else engine.in_flight)
        self._most = huge_images.LARGEST_IN_MEMORY if huge_images.is_installed() else None
        self._huge_lock = threading.Lock()  # one at a time, on all cores: memory holds one

    def made(
        self,
        source: Source,
        target: str,
        standing: Standing,
        clock: "Clock",
        *,
        may_segment: Callable[[], bool],
        look: Look,
    ) -> Made | None:
        """Make what is missing; None where the limit is reached. Raise SegdeployError where no image can be written."""
        if standing.taken_by is not None:
            there = f"{shown(source.path)} would replace what was made of {shown(standing.taken_by)}"
            return Made(reasons=[f"{there}: give another --out; --again replaces it."], spent=clock.spent)
        read = FileState.of(source.path)
        try:
            photo = self._read(self.engine, source, read, standing.missing)
            clock.stop("read")
            if not may_segment():
                return None
            drawn = self._drawn(self.engine, source, photo, clock)
        except (SegdeployError, MemoryError) as error:
            if isinstance(error.__cause__, InRowsError):
                return self._made_huge(source, target, standing, read, may_segment=may_segment, look=look)
            return self._failed(error, source, read, clock)
        written = {} if standing.entry is None else dict(standing.entry.written)
        reasons = self._write(standing, source, target, drawn.segmented, written)
        clock.stop("write")
        seconds = clock.total()
        look(str(source.path), drawn.areas, photo, drawn.class_map)
        clock.stop("write")
        return Made(
            reasons=reasons,
            read=read if written else None,
            written=written,
            areas=drawn.areas,
            segmented=True,
            seconds=seconds,
            spent=clock.spent,
        )

    def _failed(self, error: BaseException, source: Source, read: FileState | None, clock: "Clock") -> Made:
        clock.stop("read")
        if isinstance(error.__cause__, TooLargeError) and self._most is None:  # not the file's fault: it is not noted
            reason = f"{_reason(error, source.path)} It is read in rows with libvips: pip install 'segdeploy[huge]'"
            return Made(reasons=[reason], spent=clock.spent)
        reason = _reason(error, source.path)
        is_noted = read is not None and _is_of_the_file(error) and read.is_still(source.path)
        noted = read if is_noted else None
        return Made(reasons=[reason], read=noted, failed=reason, seconds=clock.total(), spent=clock.spent)

    def _made_huge(
        self,
        source: Source,
        target: str,
        standing: Standing,
        read: FileState | None,
        *,
        may_segment: Callable[[], bool],
        look: Look,
    ) -> Made | None:
        """As `made`, of an image too large for memory; None where the run is stopped meanwhile."""
        clock = Clock()
        places = [self.work.writers[kind].place.folder for kind in standing.missing]
        try:
            with self._huge_lock:
                if self.stop.is_set() or not may_segment():
                    return None
                drawn = huge.made(
                    self.work,
                    self.engine,
                    source,
                    classify=self._classify,
                    target=target,
                    standing=standing,
                    read=read,
                    stop=self.stop,
                )
        except huge.StoppedError:
            return None
        except (SegdeployError, MemoryError) as error:
            if any(_is_of_all(error, place) for place in places):
                raise
            return self._failed(error, source, read, clock)
        clock.stop("engine")
        look(str(source.path), drawn.areas, drawn.small.photograph, drawn.small.class_map)
        return Made(
            reasons=[_of_image(reason, source.path) for reason in drawn.reasons],
            read=read if drawn.written else None,
            written=drawn.written,
            areas=drawn.areas,
            segmented=True,
            seconds=clock.total(),
            spent=clock.spent,
        )

    def _read(self, engine: Engine, source: Source, read: FileState | None, kinds: Sequence[str]) -> Photograph:
        """The photograph of the very bytes whose digest was taken. Raise SegdeployError where it changed meanwhile."""
        least = fitting.least_decoded(engine.spec, self.options.decode)
        photo = images.opened_photograph(source.path, least=least, most=self._most)
        if least is not None and any(self.work.writers[kind].shows_photo for kind in kinds):
            _ = photo.pixels  # read once more, for every pixel, while it is known to be the same file
        require_still(source, read)
        return photo

    def _drawn(self, engine: Engine, source: Source, photo: Photograph, clock: "Clock") -> _Drawn:
        spec = engine.spec

        def classify(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            clock.stop("resize")
            class_maps = self._classify(batch)
            clock.stop("engine")
            return class_maps

        class_map = fitting.drawn(photo, spec, classify)
        large = images.to_photo_size(class_map, height=photo.height, width=photo.width)
        pixels = areas.counted(class_map, height=photo.height, width=photo.width, classes=len(spec.classes))
        clock.stop("resize")
        segmented = Segmented(photo, large, spec, self.work.task.output_options, source.path)
        return _Drawn(segmented, class_map, pixels)

    def _classify(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """By no more threads at once than the engine serves."""
        with self._engine_lock:
            return self.engine.classify(batch)

    def _write(
        self, standing: Standing, source: Source, target: str, segmented: Segmented, written: dict[str, FileState]
    ) -> list[str]:
        """Write the missing kinds, note them in `written`, and give the reasons of those that there are not."""
        reasons = []
        for kind in standing.missing:
            writer = self.work.writers[kind]
            try:
                written[kind] = writer.write(PurePath(target), segmented, is_known=kind in standing.ours)
            except (SegdeployError, MemoryError) as error:
                if _is_of_all(error, writer.place.folder):
                    raise
                reasons.append(_reason(error, source.path))
        return reasons


def _is_of_all(error: BaseException, folder: Path) -> bool:
    """Whether nothing else could be written either: not where one name, or a folder below, stands in the way."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno in _OF_ONE_NAME:
        return False
    return cause.errno not in {errno.EACCES, errno.EPERM} or not os.access(folder, os.W_OK | os.X_OK)


def _is_of_the_file(error: BaseException) -> bool:
    """Whether the file cannot be read, whoever tries: not where a package to read it with is missing."""
    refusal = error.__cause__
    return isinstance(error, InvalidFileError) and not isinstance(refusal and refusal.__cause__, ImportError)


class Clock:
    """CPU seconds of this thread, by step."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STEPS, 0.0)
        self._since = time.thread_time()

    def total(self) -> float:
        return sum(self.spent.values()) + time.thread_time() - self._since

    def stop(self, step: str) -> None:
        now = time.thread_time()
        self.spent[step] += now - self._since
        self._since = now


def _reason(error: BaseException, path: Path) -> str:
    """On one line; it names the image."""
    name = shown(path)
    if not isinstance(error, SegdeployError):
        return f"{name} is too large for the memory there is."
    return _of_image(error.what, path)


def _of_image(what: str, path: Path) -> str:
    name, what = shown(path), shown(what)
    return what if name in what else f"{name}: {what}"
