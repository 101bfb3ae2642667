"""Segments a folder of images into a folder of masks or of other outputs: every file is reported, none half written."""

import contextlib
import dataclasses
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, cores, fitting, images
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.images import Photograph
from segdeploy.inference import areas, journal
from segdeploy.inference.contact import Sheet
from segdeploy.inference.journal import Entry, FileState
from segdeploy.inference.naming import Place
from segdeploy.inference.options import SCALED
from segdeploy.inference.outputs import Segmented
from segdeploy.inference.report import STEPS, Failure, Summary
from segdeploy.inference.resuming import Resuming, Standing
from segdeploy.inference.source_list import Source
from segdeploy.inference.work import Task, Work
from segdeploy.paths import shown

POLL_S = 0.01
SCALED_AT_LEAST = 4  # times the pixels a side that the network takes
# Of how pixels are read, resized and drawn: raised where a mask of the same engine would become another, so that a
# newer segdeploy makes it again.
DRAWS = 1
# What a system says of one file's name, or of what already has it: other files can be written all the same.
_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ELOOP}


def run(
    engine: Engine, task: Task, *, done: Callable[[], None], keep: "Callable[[Ended], None] | None" = None
) -> Summary:
    """Segment every source, one worker for each usable core; `done` is called after each, failed or not.

    `keep` is given what became of them, while no other run can write there.

    What an earlier run made of the same file with the same engine and options is left (`resuming`). What cannot be
    read, or written under its name, is noted and the rest goes on; a folder that cannot be written to ends the run with
    its error. Ctrl-C ends it after the images at work; what is written stays. Raise InvalidRequestError where another
    process is writing there.
    """
    return carried_out(task, lambda work, resuming: Job(engine, work, resuming, done), keep=keep)


def carried_out(
    task: Task, job_of: "Callable[[Work, Resuming], Job]", *, keep: "Callable[[Ended], None] | None"
) -> Summary:
    """What became of a task, whatever makes its images; raise as `run` does."""
    work = Work.of(task)
    with journal.opened(task.out, task.options.part) as opened, journal.others(task.out, task.options.part) as others:
        _make(work.places.values())
        job = job_of(work, Resuming(opened, others, work))
        started = time.monotonic()
        job.run()
        job.summary.seconds = time.monotonic() - started
        job.summary.give_engine_the_rest(job.process_s)
        if job.fatal is not None:
            with contextlib.suppress(SegdeployError):  # what can be kept of a run that ended early
                _keep(keep, job)
            raise job.fatal
        _keep(keep, job)
    return job.summary


def _keep(keep: "Callable[[Ended], None] | None", job: "Job") -> None:
    if keep is not None:
        keep(Ended(job.summary, job.work, job.sheet))


def counted(task: Task, *, done: Callable[[], None]) -> Summary:
    """What `run` would find: how many images are unchanged, failed before, and are left to do. Nothing is written."""
    work = Work.of(task)
    with journal.only_read(task.journal_folder) as opened, journal.others(task.out, task.options.part) as others:
        job = Job(None, work, Resuming(opened, others, work), done)
        job.run()
    if job.fatal is not None:
        raise job.fatal
    return job.summary


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """What is known when a run has ended."""

    summary: Summary
    work: Work
    sheet: Sheet

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """The path and the entry of each image of the run that this engine segmented, now or before."""
        with journal.only_read(self.work.task.journal_folder) as written:
            for source in self.work.sources:
                entry = written.get(self.work.task.target(source))
                if entry is not None and entry.failed is None and entry.made_with == self.work.task.made_with:
                    yield str(source.path), entry


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


class Job:
    """One run: the images that are not begun, and what became of the others. Without an engine, it only counts."""

    def __init__(self, engine: Engine | None, work: Work, resuming: Resuming, done: Callable[[], None]) -> None:
        self.maker = None if engine is None else Maker(engine, work)
        self.work = work
        self.options = work.task.options
        self.resuming = resuming
        self.done = done
        outputs = tuple(writer.kind for writer in work.writers.values())
        count = len(work.sources) + len(work.too_late)
        self.summary = Summary(work.task.out, outputs, self.options.part, images=count, failed=[*work.too_late])
        for _ in range(len(work.task.sources) - len(work.sources)):
            done()
        self.sheet = Sheet(() if engine is None else engine.spec.colours)
        self.begun = iter(work.sources)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self._lock = threading.Lock()
        self._ended: list[None] = []
        self._spent_before = time.process_time()

    @property
    def process_s(self) -> float:
        """CPU seconds that the run took."""
        return time.process_time() - self._spent_before

    def run(self) -> None:
        """Take sources on a worker for each core, until none is left, something fails for all, or Ctrl-C comes."""
        self.work_on([threading.Thread(target=self._guarded) for _ in range(cores.usable())])

    def work_on(self, workers: Sequence[threading.Thread]) -> None:
        """Start the workers and wait for them; after Ctrl-C, for the images at work."""
        try:
            for worker in workers:
                worker.start()
            self.wait_for(workers)
        except KeyboardInterrupt:
            self.summary.interrupted = True
            self.stop.set()
            self.wait_for(workers)

    def wait_for(self, workers: Sequence[threading.Thread]) -> None:
        """Wait until every worker that was started has ended.

        Not by `Thread.join`: in Python 3.11, Ctrl-C inside it can mark a thread as ended that still runs.
        """
        while len(self._ended) < sum(worker.ident is not None for worker in workers):
            time.sleep(POLL_S)

    def _guarded(self) -> None:
        try:
            self.take()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.fatal = error
            self.stop.set()
        finally:
            self._ended.append(None)

    def take(self) -> None:
        """What a worker does: take sources until none is left."""
        while not self.stop.is_set():
            with self._lock:
                source = next(self.begun, None)
            if source is None:
                return
            self._one(source)
            self.done()

    def _one(self, source: Source) -> None:
        clock = Clock()
        target = self.work.task.target(source)
        standing = self.missing(source, target, clock)
        if standing is None or self.maker is None or self.resuming.is_full():
            return
        made = self.maker.made(
            source, target, standing, clock, may_segment=self.resuming.may_segment, look=self.sheet.look
        )
        if made is not None:
            self.take_in(source, target, made)

    def missing(self, source: Source, target: str, clock: "Clock") -> Standing | None:
        """Where an image stands; None where nothing is missing, which is counted."""
        standing = self.resuming.standing(source, target)
        clock.stop("read")
        if standing.missing:
            return standing
        with self._lock:
            self.summary.other_s += clock.total()
            if standing.failed is None:
                self.summary.unchanged += 1
            else:
                self.summary.failed_before.append(Failure(str(source.path), standing.failed))
        return None

    def take_in(self, source: Source, target: str, made: Made) -> None:
        """Note and count what became of an image. Raise SegdeployError where that cannot be written."""
        if made.read is not None:
            self.resuming.note(
                source,
                target,
                made.read,
                written=made.written,
                areas=made.areas,
                failed=made.failed,
                seconds=made.seconds,
            )
        with self._lock:
            if made.reasons:
                self.summary.failed.append(Failure(str(source.path), " ".join(made.reasons)))
                self.summary.other_s += sum(made.spent.values())
                if self.options.fail_fast:
                    self.stop.set()
                return
            self.summary.done += 1
            for step, spent in made.spent.items():
                self.summary.cpu_s[step] += spent


Look = Callable[[str, Sequence[int], Photograph, NDArray[np.uint8]], None]  # as `Sheet.look`


class Maker:
    """What makes the outputs of an image, in this process or in another; it serves several threads."""

    def __init__(self, engine: Engine, work: Work) -> None:
        self.engine = engine
        self.work = work
        self.options = work.task.options
        self._engine_lock = threading.Semaphore(cores.usable() if engine.concurrent else engine.in_flight)

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
            drawn = self._drawn(self.engine, photo, clock)
        except (SegdeployError, MemoryError) as error:
            clock.stop("read")
            reason = _reason(error, source.path)
            is_noted = read is not None and _is_of_the_file(error) and read.is_still(source.path)
            noted = read if is_noted else None
            return Made(reasons=[reason], read=noted, failed=reason, seconds=clock.total(), spent=clock.spent)
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

    def _read(self, engine: Engine, source: Source, read: FileState | None, kinds: Sequence[str]) -> Photograph:
        """The photograph of the very bytes whose digest was taken. Raise SegdeployError where it changed meanwhile."""
        least = None
        if self.options.decode == SCALED:
            height, width = fitting.network_size(engine.spec)
            least = (SCALED_AT_LEAST * height, SCALED_AT_LEAST * width)
        photo = images.opened_photograph(source.path, least=least)
        if least is not None and any(self.work.writers[kind].shows_photo for kind in kinds):
            _ = photo.pixels  # read once more, for every pixel, while it is known to be the same file
        if read is not None and not read.is_still(source.path):
            raise InvalidRequestError(
                f"{shown(source.path)} changed while it was read.", "Run again when nobody writes to it."
            )
        return photo

    def _drawn(self, engine: Engine, photo: Photograph, clock: "Clock") -> _Drawn:
        spec = engine.spec

        def classify(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            clock.stop("resize")
            with self._engine_lock:
                class_maps = engine.classify(batch)
            clock.stop("engine")
            return class_maps

        class_map = fitting.drawn(photo, spec, classify)
        large = images.to_photo_size(class_map, height=photo.height, width=photo.width)
        pixels = areas.counted(class_map, height=photo.height, width=photo.width, classes=len(spec.classes))
        clock.stop("resize")
        return _Drawn(Segmented(photo, large, spec, self.work.task.output_options), class_map, pixels)

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


def _make(places: Iterable[Place]) -> None:
    """The folders of this run: where one cannot be made, no image can be written."""
    for place in places:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise artifact.cannot_write(place.folder, error) from error


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
    what = shown(error.what)
    return what if name in what else f"{name}: {what}"
