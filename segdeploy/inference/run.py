"""Segments a folder of images into a folder of masks or of other outputs: every file is reported, none half written."""

import dataclasses
import errno
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from segdeploy import artifact, cores, images
from segdeploy.engines import Engine
from segdeploy.errors import SegdeployError
from segdeploy.inference import naming
from segdeploy.inference.naming import Place, divided
from segdeploy.inference.outputs import Output, Segmented, folder, load, require
from segdeploy.inference.report import CpuTime, EngineUsed, Failure, OutputFolder, Report
from segdeploy.inference.sources import Source, require_spared
from segdeploy.paths import shown

STEPS = ("read", "resize", "engine", "write")
POLL_S = 0.01
# What a system says of one file's name, or of what already has it: other files can be written all the same.
_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}


@dataclasses.dataclass(slots=True)
class Summary:
    """What became of every image, filled in while they are segmented."""

    out: Path
    outputs: tuple[OutputFolder, ...]
    done: int = 0
    failed: list[Failure] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    cpu_s: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    failed_s: float = 0.0  # CPU seconds of files that failed

    def give_engine_the_rest(self, process_s: float) -> None:
        """What the process spent and no other step did: runtimes compute in threads of their own."""
        others = sum(spent for step, spent in self.cpu_s.items() if step != "engine")
        self.cpu_s["engine"] = max(self.cpu_s["engine"], process_s - others - self.failed_s)

    def report(self, used: EngineUsed, *, skipped: int) -> Report:
        """The whole report: `skipped` is the number of other files, which `sources.find` gives."""
        each = {step: 1000 * spent / self.done if self.done else None for step, spent in self.cpu_s.items()}
        return Report(
            done=self.done,
            skipped=skipped,
            failed=tuple(sorted(self.failed)),
            seconds=self.seconds,
            images_per_s=self.done / self.seconds if self.seconds else 0.0,
            cpu_ms_per_image=CpuTime(**each),
            cores=cores.usable(),
            interrupted=self.interrupted,
            out=self.out,
            outputs=self.outputs,
            **{field.name: getattr(used, field.name) for field in dataclasses.fields(used)},
        )


def run(
    engine: Engine,
    sources: Sequence[Source],
    out: Path,
    *,
    outputs: Sequence[str] = ("mask",),
    names: str = naming.STEM,
    done: Callable[[], None],
) -> Summary:
    """Segment every source, one worker for each usable core; `done` is called after each, failed or not.

    `outputs` names what is written of each image: masks go into `out`, the rest into folders beside it. `names`:
    `stem` calls them `a/x.png` for `a/x.jpg`, `full` `a/x.jpg.png`; of two images that would share a name, the first is
    done. What cannot be read, or written under its name, is noted and the rest goes on; a folder that cannot be written
    to ends the run with its error. Ctrl-C ends it after the images at work; what is written stays.
    """
    job = _Job(engine, sources, out, kinds=require(outputs), names=naming.require(names), done=done)
    started, spent_before = time.monotonic(), time.process_time()
    workers = [threading.Thread(target=job.work) for _ in range(cores.usable())]
    try:
        for worker in workers:
            worker.start()
        job.wait_for(workers)
    except KeyboardInterrupt:
        job.summary.interrupted = True
        job.stop.set()
        job.wait_for(workers)
    job.summary.seconds = time.monotonic() - started
    job.summary.give_engine_the_rest(time.process_time() - spent_before)
    if job.fatal is not None:
        raise job.fatal
    return job.summary


@dataclasses.dataclass(frozen=True, slots=True)
class _Writer:
    """One kind of output of this run: where its files go, and what encodes them."""

    kind: OutputFolder
    output: Output

    @property
    def place(self) -> Place:
        return Place(self.kind.folder, self.output.SUFFIX)

    def write(self, target: PurePath, segmented: Segmented) -> None:
        artifact.write_atomically(self.place.file(target), self.output.encode(segmented))


class _Job:
    def __init__(
        self,
        engine: Engine,
        sources: Sequence[Source],
        out: Path,
        *,
        kinds: Sequence[str],
        names: str,
        done: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.writers = [_Writer(OutputFolder(kind, folder(out, kind)), load(kind)) for kind in kinds]
        self.done = done
        self.summary = Summary(out, tuple(writer.kind for writer in self.writers))
        places = [writer.place for writer in self.writers]
        kept, self.summary.failed = divided(sources, places, names)
        require_spared(sources, (place.file(target) for _, target in kept for place in places))
        _make(places)
        for _ in self.summary.failed:
            done()
        self.targets = iter(kept)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self._lock = threading.Lock()
        self._ended: list[None] = []
        self._engine_lock = threading.Semaphore(cores.usable() if engine.concurrent else engine.in_flight)

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
                source, target = next(self.targets, (None, None))
            if source is None or target is None:
                return
            try:
                self._one(source, target)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self.fatal = error
                self.stop.set()
                return
            self.done()

    def _one(self, source: Source, target: PurePath) -> None:
        clock = _Clock()
        try:
            segmented = self._segmented(source, clock)
        except (SegdeployError, MemoryError) as error:
            reasons = [_reason(error, source.path)]
        else:
            reasons = [reason for writer in self.writers if (reason := _not_written(writer, source, target, segmented))]
        clock.stop("write")
        with self._lock:
            if reasons:
                self.summary.failed.append(Failure(str(source.path), " ".join(reasons)))
                self.summary.failed_s += clock.total()
                return
            self.summary.done += 1
            for step, spent in clock.spent.items():
                self.summary.cpu_s[step] += spent

    def _segmented(self, source: Source, clock: "_Clock") -> Segmented:
        photo = images.read(source.path)
        clock.stop("read")
        image = images.prepared(photo, self.engine.spec)
        clock.stop("resize")
        with self._engine_lock:
            class_map = self.engine.classify(image[None])[0]
        clock.stop("engine")
        height, width, _ = photo.shape
        segmented = Segmented(photo, images.to_photo_size(class_map, height=height, width=width), self.engine.spec)
        clock.stop("resize")
        return segmented


def _make(places: Sequence[Place]) -> None:
    """The folders of this run: where one cannot be made, no image can be written."""
    for place in places:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise artifact.cannot_write(place.folder, error) from error


def _not_written(writer: _Writer, source: Source, target: PurePath, segmented: Segmented) -> str:
    """Why there is no file of that kind; empty where there is one. Raise where no other could be written either."""
    try:
        writer.write(target, segmented)
    except (SegdeployError, MemoryError) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _OF_ONE_NAME:
            raise
        return _reason(error, source.path)
    return ""


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
