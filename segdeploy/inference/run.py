"""Segments a folder of images into a folder of masks or of other outputs: every file is reported, none half written."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from segdeploy import artifact
from segdeploy.engines import Engine
from segdeploy.errors import SegdeployError
from segdeploy.inference import journal
from segdeploy.inference.contact import Sheet
from segdeploy.inference.journal import Entry, Journal
from segdeploy.inference.maker import Clock, Made, Maker
from segdeploy.inference.naming import Place
from segdeploy.inference.report import Failure, Summary
from segdeploy.inference.resuming import Resuming, Standing
from segdeploy.inference.source_list import Source
from segdeploy.inference.work import Task, Work

POLL_S = 0.01
ResumingOf = Callable[[Journal, Sequence[Journal], Work], Resuming]
# Of how pixels are read, resized and drawn: raised where a mask of the same engine would become another, so that a
# newer segdeploy makes it again.
DRAWS = 1


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
    task: Task,
    job_of: "Callable[[Work, Resuming], Job]",
    *,
    keep: "Callable[[Ended], None] | None",
    resuming_of: ResumingOf = Resuming,
) -> Summary:
    """What became of a task, whatever makes its images; raise as `run` does."""
    work = Work.of(task)
    with journal.opened(task.out, task.options.part) as opened, journal.others(task.out, task.options.part) as others:
        _make(work.places.values())
        job = job_of(work, resuming_of(opened, others, work))
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


def counted(task: Task, *, done: Callable[[], None], resuming_of: ResumingOf = Resuming) -> Summary:
    """What `run` would find: how many images are unchanged, failed before, and are left to do. Nothing is written."""
    work = Work.of(task)
    with journal.only_read(task.journal_folder) as opened, journal.others(task.out, task.options.part) as others:
        job = Job(None, work, resuming_of(opened, others, work), done)
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


class Job:
    """One run: the images that are not begun, and what became of the others. Without an engine, it only counts."""

    def __init__(self, engine: Engine | None, work: Work, resuming: Resuming, done: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self.maker = None if engine is None else Maker(engine, work, self.stop)
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
        self.work_on([threading.Thread(target=self._guarded) for _ in range(self.options.at_once)])

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
            self.one(source)
            self.done()

    def one(self, source: Source) -> None:
        """What is missing of an image is made and noted."""
        clock = Clock()
        target = self.work.task.target(source)
        standing = self.missing(source, target, clock)
        if standing is None or self.maker is None or self.resuming.is_full():
            return
        made = self.make(source, target, standing, clock)
        if made is not None:
            self.take_in(source, target, made)

    def make(self, source: Source, target: str, standing: Standing, clock: "Clock") -> Made | None:
        """What is missing of an image; None where the limit is reached."""
        if self.maker is None:
            raise ValueError("a job without an engine counts")
        may = self.resuming.may_segment
        return self.maker.made(source, target, standing, clock, may_segment=may, look=self.sheet.look)

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


def _make(places: Iterable[Place]) -> None:
    """The folders of this run: where one cannot be made, no image can be written."""
    for place in places:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise artifact.cannot_write(place.folder, error) from error
