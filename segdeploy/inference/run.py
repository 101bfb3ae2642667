"""Segments a folder of images into a folder of masks or of other outputs: every file is reported, none half written."""

import dataclasses
import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, cores, images
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.images import Photograph
from segdeploy.inference import areas, journal, naming
from segdeploy.inference.contact import Sheet
from segdeploy.inference.journal import FileState, Journal
from segdeploy.inference.naming import Place, divided
from segdeploy.inference.options import FOLDER, SCALED, FolderOptions, Shard
from segdeploy.inference.outputs import Output, Segmented, folder, load, require
from segdeploy.inference.report import CpuTime, EngineUsed, Failure, OutputFolder, Report
from segdeploy.inference.resuming import Resuming, Standing
from segdeploy.inference.source_list import Source, SourceList
from segdeploy.inference.sources import require_spared
from segdeploy.paths import shown

STEPS = ("read", "resize", "engine", "write")
POLL_S = 0.01
SCALED_AT_LEAST = 4  # times the pixels a side that the network takes
# Of how pixels are read, resized and drawn: raised where a mask of the same engine would become another, so that a
# newer segdeploy makes it again.
DRAWS = 1
# What a system says of one file's name, or of what already has it: other files can be written all the same.
_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}


@dataclasses.dataclass(slots=True)
class Summary:
    """What became of every image, filled in while they are segmented."""

    out: Path
    outputs: tuple[OutputFolder, ...]
    shard: Shard
    images: int = 0
    done: int = 0
    unchanged: int = 0
    failed: list[Failure] = dataclasses.field(default_factory=list)
    failed_before: list[Failure] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    cpu_s: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    other_s: float = 0.0  # CPU seconds of files that failed, or that were unchanged

    def give_engine_the_rest(self, process_s: float) -> None:
        """What the process spent and no other step did: runtimes compute in threads of their own."""
        others = sum(spent for step, spent in self.cpu_s.items() if step != "engine")
        self.cpu_s["engine"] = max(self.cpu_s["engine"], process_s - others - self.other_s)

    @property
    def left(self) -> int:
        """Images that are still to do."""
        return self.images - self.done - self.unchanged - len(self.failed) - len(self.failed_before)

    def report(self, used: EngineUsed, *, skipped: int) -> Report:
        """The whole report: `skipped` is the number of other files, which `sources.find` gives."""
        each = {step: 1000 * spent / self.done if self.done else None for step, spent in self.cpu_s.items()}
        return Report(
            done=self.done,
            unchanged=self.unchanged,
            left=self.left,
            skipped=skipped,
            failed=tuple(sorted(self.failed)),
            failed_before=tuple(sorted(self.failed_before)),
            seconds=self.seconds,
            images_per_s=self.done / self.seconds if self.seconds else 0.0,
            cpu_ms_per_image=CpuTime(**each),
            cores=cores.usable(),
            interrupted=self.interrupted,
            shard=f"{self.shard.index}/{self.shard.count}" if self.shard.count > 1 else None,
            kept=journal.folder(self.out, self.shard),
            out=self.out,
            outputs=self.outputs,
            **{field.name: getattr(used, field.name) for field in dataclasses.fields(used)},
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run is to make: of which images, where, with which digest of engine and options.

    `outputs` names what is written of each image: masks go into `out`, the rest into folders beside it. `names`:
    `stem` calls them `a/x.png` for `a/x.jpg`, `full` `a/x.jpg.png`; of two images that would share a name, the first is
    done.
    """

    sources: SourceList
    out: Path
    made_with: str
    outputs: Sequence[str] = ("mask",)
    names: str = naming.STEM
    options: FolderOptions = FOLDER

    @property
    def journal_folder(self) -> Path:
        """Where the journal and the reports of this run lie."""
        return journal.folder(self.out, self.options.part)


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
    work = _Work.of(task)
    with journal.opened(task.journal_folder) as opened:
        _make(work.places.values())
        job = _Job(engine, work, opened, done)
        started, spent_before = time.monotonic(), time.process_time()
        job.run()
        job.summary.seconds = time.monotonic() - started
        job.summary.give_engine_the_rest(time.process_time() - spent_before)
        if job.fatal is not None:
            raise job.fatal
        if keep is not None:
            keep(Ended(job.summary, opened, work.targets, job.sheet))
    return job.summary


def counted(task: Task, *, done: Callable[[], None]) -> Summary:
    """What `run` would find: how many images are unchanged, failed before, and are left to do. Nothing is written."""
    work = _Work.of(task)
    with journal.only_read(task.journal_folder) as opened:
        job = _Job(None, work, opened, done)
        job.run()
    if job.fatal is not None:
        raise job.fatal
    return job.summary


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """What is known when a run has ended: `targets` are what the files of its images are called, without endings."""

    summary: Summary
    journal: Journal
    targets: Iterable[str]
    sheet: Sheet


@dataclasses.dataclass(frozen=True, slots=True)
class _Writer:
    """One kind of output of this run: where its files go, and what encodes them."""

    kind: OutputFolder
    output: Output

    @property
    def place(self) -> Place:
        return Place(self.kind.folder, self.output.SUFFIX)

    def write(self, target: PurePath, segmented: Segmented) -> FileState | None:
        """The state of the file that was written; None where something took it away at once."""
        data, path = self.output.encode(segmented), self.place.file(target)
        artifact.write_atomically(path, data)
        return FileState.of(path, hashlib.sha256(data).hexdigest())


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """A task, divided: this shard's images, those that come too late for their names, and what writes each kind."""

    task: Task
    writers: Mapping[str, _Writer]
    sources: SourceList
    too_late: list[Failure]

    @classmethod
    def of(cls, task: Task) -> "_Work":
        """Raise InvalidRequestError where a mask would replace a photograph."""
        kinds = require(task.outputs)
        writers = {kind: _Writer(OutputFolder(kind, folder(task.out, kind)), load(kind)) for kind in kinds}
        places = [writer.place for writer in writers.values()]
        kept, too_late = divided(task.sources, places, naming.require(task.names))
        require_spared(kept, (place.file(naming.target(source, task.names)) for source in kept for place in places))
        part = task.options.part
        own = (source for source in kept if part.has(str(naming.target(source, task.names))))
        mine = kept if part.count == 1 else SourceList(own)
        return cls(task, writers, mine, [failure for failure in too_late if part.has(failure.path)])

    @property
    def targets(self) -> Iterable[str]:
        return (str(naming.target(source, self.task.names)) for source in self.sources)

    @property
    def places(self) -> dict[str, Place]:
        return {kind: writer.place for kind, writer in self.writers.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Drawn:
    """One image: at its own size, as the network saw it (H, W, 3) and drew it (H', W'), and its pixels by class."""

    segmented: Segmented
    image: NDArray[np.uint8]
    class_map: NDArray[np.uint8]
    areas: Sequence[int]


class _Job:
    """One run: the images that are not begun, and what became of the others. Without an engine, it only counts."""

    def __init__(self, engine: Engine | None, work: _Work, opened: Journal, done: Callable[[], None]) -> None:
        task = work.task
        self.engine = engine
        self.task = task
        self.writers = work.writers
        self.resuming = Resuming(opened, task.made_with, work.places, task.options)
        self.done = done
        outputs = tuple(writer.kind for writer in self.writers.values())
        count = len(work.sources) + len(work.too_late)
        self.summary = Summary(task.out, outputs, task.options.part, images=count, failed=work.too_late)
        for _ in range(len(task.sources) - len(work.sources)):
            done()
        self.sheet = Sheet(() if engine is None else engine.spec.colours)
        self.begun = iter(work.sources)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self._lock = threading.Lock()
        self._ended: list[None] = []
        at_once = cores.usable() if engine is None or engine.concurrent else engine.in_flight
        self._engine_lock = threading.Semaphore(at_once)

    def run(self) -> None:
        """Take sources on a worker for each core, until none is left, something fails for all, or Ctrl-C comes."""
        workers = [threading.Thread(target=self.work) for _ in range(cores.usable())]
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

    def work(self) -> None:
        """Take sources until none is left."""
        try:
            self._take()
        finally:
            self._ended.append(None)

    def _take(self) -> None:
        while not self.stop.is_set():
            with self._lock:
                source = next(self.begun, None)
            if source is None:
                return
            try:
                self._one(source, naming.target(source, self.task.names))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self.fatal = error
                self.stop.set()
                return
            self.done()

    def _one(self, source: Source, target: PurePath) -> None:
        clock = _Clock()
        standing = self.resuming.standing(source, target)
        clock.stop("read")
        if standing.missing:
            if self.engine is not None and self.resuming.may_begin():
                self._make_missing(self.engine, source, target, standing, clock)
            return
        with self._lock:
            self.summary.other_s += clock.total()
            if standing.failed is None:
                self.summary.unchanged += 1
            else:
                self.summary.failed_before.append(Failure(str(source.path), standing.failed))

    def _make_missing(
        self, engine: Engine, source: Source, target: PurePath, standing: Standing, clock: "_Clock"
    ) -> None:
        written = {} if standing.entry is None else dict(standing.entry.written)
        read = FileState.of(source.path)
        try:
            photo = self._read(engine, source, read)
            clock.stop("read")
            drawn = self._drawn(engine, photo, clock)
        except (SegdeployError, MemoryError) as error:
            reasons = [_reason(error, source.path)]
            if read is not None and _is_of_the_file(error) and read.is_still(source.path):
                self.resuming.note(source, target, read, written={}, failed=reasons[0], seconds=clock.total())
        else:
            reasons = self._write(standing.missing, source, target, drawn.segmented, written)
            clock.stop("write")
            if read is not None and written:
                self.resuming.note(source, target, read, written=written, areas=drawn.areas, seconds=clock.total())
            self.sheet.look(str(source.path), drawn.areas, photo.width / photo.height, drawn.image, drawn.class_map)
        clock.stop("write")
        self._count(source, reasons, clock)

    def _count(self, source: Source, reasons: Sequence[str], clock: "_Clock") -> None:
        with self._lock:
            if reasons:
                self.summary.failed.append(Failure(str(source.path), " ".join(reasons)))
                self.summary.other_s += clock.total()
                if self.task.options.fail_fast:
                    self.stop.set()
                return
            self.summary.done += 1
            for step, spent in clock.spent.items():
                self.summary.cpu_s[step] += spent

    def _read(self, engine: Engine, source: Source, read: FileState | None) -> Photograph:
        """The photograph of the very bytes whose digest was taken. Raise SegdeployError where it changed meanwhile."""
        least = None
        if self.task.options.decode == SCALED:
            height, width = images.network_size(engine.spec)
            least = (SCALED_AT_LEAST * height, SCALED_AT_LEAST * width)
        photo = images.opened_photograph(source.path, least=least)
        if read is not None and not read.is_still(source.path):
            raise InvalidRequestError(
                f"{shown(source.path)} changed while it was read.", "Run again when nobody writes to it."
            )
        return photo

    def _drawn(self, engine: Engine, photo: Photograph, clock: "_Clock") -> "_Drawn":
        spec = engine.spec
        image = images.prepared(photo, spec)
        clock.stop("resize")
        with self._engine_lock:
            class_map = engine.classify(image[None])[0]
        clock.stop("engine")
        large = images.to_photo_size(class_map, height=photo.height, width=photo.width)
        pixels = areas.counted(class_map, height=photo.height, width=photo.width, classes=len(spec.classes))
        clock.stop("resize")
        return _Drawn(Segmented(photo, large, spec), image, class_map, pixels)

    def _write(
        self,
        kinds: Sequence[str],
        source: Source,
        target: PurePath,
        segmented: Segmented,
        written: dict[str, FileState],
    ) -> list[str]:
        """Write the files of these kinds, note them in `written`, and give the reasons of those that there are not."""
        reasons = []
        for kind in kinds:
            try:
                state = self.writers[kind].write(target, segmented)
            except (SegdeployError, MemoryError) as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _OF_ONE_NAME:
                    raise  # no other could be written either
                reasons.append(_reason(error, source.path))
            else:
                if state is not None:
                    written[kind] = state
        return reasons


def _make(places: Iterable[Place]) -> None:
    """The folders of this run: where one cannot be made, no image can be written."""
    for place in places:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise artifact.cannot_write(place.folder, error) from error


def _is_of_the_file(error: BaseException) -> bool:
    """Whether the file cannot be read, whoever tries: not where a package to read it with is missing."""
    refusal = error.__cause__
    return isinstance(error, InvalidFileError) and not isinstance(refusal and refusal.__cause__, ImportError)


class _Clock:
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
