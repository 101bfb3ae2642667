"""Opened engines timed against each other, and against those of an earlier result, in one interleaved run."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segdeploy import engines, fitting, images
from segdeploy.engines import Engine, RunOptions
from segdeploy.errors import InvalidRequestError, SegdeployError
from segdeploy.progress import Progress
from segdeploy.spec import Precision
from segdeploy.timing import intervals, latency, results
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Compared, Comparison, Ratio, RatioToFp32, Result, Row, Subject

IN_ROWS = tuple(  # what a row says of its subject
    field.name for field in dataclasses.fields(Row) if field.name in {each.name for each in dataclasses.fields(Subject)}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """An opened engine and what is known of it.

    `earlier`: the engine of the file that an earlier result kept of the same subject, opened again. It is None where
    there is no earlier result, and where `obstacle` says why there is nothing to compare with.
    """

    subject: Subject
    engine: Engine
    earlier: Engine | None = None
    obstacle: str | None = None


class Task(NamedTuple):
    """What is timed: a subject at a level, with the file at hand or with the one that an earlier result kept."""

    subject: str
    level: str
    is_earlier: bool


def against(
    contestants: Sequence[Contestant],
    earlier: Result,
    path: Path,
    *,
    stack: contextlib.ExitStack,
    options: RunOptions,
) -> list[Contestant]:
    """The same contestants, each with what an earlier result, the file at `path`, kept of it; closed with the stack."""
    known = {subject.id: subject for subject in earlier.subjects}
    found = []
    for each in contestants:
        try:
            opened = stack.enter_context(_opened_again(each, known.get(each.subject.id), path, options))
            found.append(dataclasses.replace(each, earlier=opened))
        except SegdeployError as error:
            found.append(dataclasses.replace(each, obstacle=error.what))
    return found


def _opened_again(contestant: Contestant, then: Subject | None, path: Path, options: RunOptions) -> Engine:
    now, engine = contestant.subject, contestant.engine
    if then is None:
        raise InvalidRequestError(f"{path} has no {now.id}.", "Save it first: segdeploy bench --save FILE")
    results.require_same_work(then, now)
    file = results.kept(then, path, engine.spec)
    return engines.open_engine(file, runtime=engine.runtime, device=engine.device, options=options)


@dataclasses.dataclass(frozen=True, slots=True)
class TimedBatch:
    """One interleaved run over all contestants and levels: the milliseconds of each task in each run.

    `half_width`: of an interval over its median; where it is wider, the row is noisy.
    """

    batch: int
    samples: Mapping[Task, Sequence[float]]
    half_width: float

    def rows(self, contestants: Sequence[Contestant]) -> Iterator[Row]:
        """The times of the files at hand, by subject and level."""
        subjects = {each.subject.id: each.subject for each in contestants}
        for task, ms in self.samples.items():
            if not task.is_earlier:
                yield row(subjects[task.subject], task.level, ms, batch=self.batch, half_width=self.half_width)

    def ratios_to_fp32(self, contestants: Sequence[Contestant]) -> Iterator[RatioToFp32]:
        """The time of each low-precision engine over that of fp32 in the same runtime, where both were timed."""
        subjects = [each.subject for each in contestants]
        fp32 = {subject.runtime: subject.id for subject in subjects if subject.precision == Precision.FP32}
        for subject in subjects:
            if subject.precision != Precision.FP32 and subject.runtime in fp32:
                ms, reference_ms = (
                    self.samples[Task(name, "host", is_earlier=False)] for name in (subject.id, fp32[subject.runtime])
                )
                found = latency.ratio(ms, reference_ms)
                yield RatioToFp32(engine=subject.engine, batch=self.batch, ratio=found.ratio, interval=found.interval)

    def compared(self, max_regression: float) -> Iterator[Compared]:
        """The times of the files at hand over those of the files that an earlier result kept."""
        for (subject, level), ratio in _to_earlier(self.samples).items():
            yield compared(ratio, subject=subject, level=level, batch=self.batch, max_regression=max_regression)


def row(
    subject: Subject,
    level: str,
    samples_ms: Sequence[float],
    *,
    batch: int,
    half_width: float = latency.HALF_WIDTH,
) -> Row:
    """The times of a subject, with what a row says of it."""
    times = latency.summary(samples_ms, batch=batch, half_width_at_most=half_width)
    return Row(
        subject=subject.id,
        level=level,
        batch=batch,
        **{name: getattr(subject, name) for name in IN_ROWS},
        runs=times.runs,
        images_per_s=times.images_per_s,
        latency_ms=times.latency_ms,
        median_interval=times.median_interval,
        noisy=times.noisy,
    )


def timed(
    contestants: Sequence[Contestant],
    files: Sequence[Path],
    *,
    effort: Effort,
    max_regression: float,
    progress: Progress,
) -> TimedBatch:
    """Time all contestants, and what is kept of them, on one batch of image files, until the intervals are narrow.

    What is compared with an earlier result needs a narrow interval of its ratio, and none of its own.
    """
    tasks = dict(_tasks(contestants, files))

    def enough(samples: latency.Samples) -> bool:
        by_task = dict(zip(tasks, samples, strict=True))
        ratios = _to_earlier(by_task)
        alone = [ms for task, ms in by_task.items() if (task.subject, task.level) not in ratios]
        narrow = all(latency.half_width(ms) < effort.half_width for ms in alone)
        return narrow and all(_half_width(ratio) < max_regression / 2 for ratio in ratios.values())

    with progress(f"Timing batch {len(files)}", latency.WHOLE) as percent:
        samples = latency.interleaved(list(tasks.values()), effort, enough=enough, percent=percent)
    return TimedBatch(len(files), dict(zip(tasks, samples, strict=True)), effort.half_width)


def _tasks(contestants: Sequence[Contestant], files: Sequence[Path]) -> Iterator[tuple[Task, latency.Task]]:
    for each in contestants:
        for engine in (each.engine, each.earlier):
            if engine is not None:
                is_earlier = engine is each.earlier
                for level, act in _levels(engine, files):
                    yield Task(each.subject.id, level, is_earlier), act


def _levels(engine: Engine, files: Sequence[Path]) -> Iterator[tuple[str, latency.Task]]:
    batch = stacked(engine, files)
    if (on_device := latency.device(engine, batch)) is not None:
        yield "device", on_device
    yield "host", latency.host(engine, batch)
    yield "image_to_mask", latency.image_to_mask(engine, files)


def stacked(engine: Engine, files: Sequence[Path]) -> NDArray[np.uint8]:
    """(N, H, W, 3): image files as a network sees them; of those it sees in tiles, one each."""
    return np.stack([fitting.prepared(images.read(file), engine.spec, place) for place, file in enumerate(files)])


def _to_earlier(samples: Mapping[Task, Sequence[float]]) -> dict[tuple[str, str], Ratio]:
    """By subject and level: the time of the file at hand over that of the one an earlier result kept."""
    return {
        (task.subject, task.level): latency.ratio(samples[task._replace(is_earlier=False)], earlier_ms)
        for task, earlier_ms in samples.items()
        if task.is_earlier
    }


def _half_width(ratio: Ratio) -> float:
    return math.inf if ratio.interval is None else (ratio.interval.high - ratio.interval.low) / 2


def compared(ratio: Ratio, *, subject: str, level: str, batch: int, max_regression: float) -> Compared:
    """A ratio to the time of an earlier file; it is a regression where its whole interval lies above the limit.

    Without an interval nothing was compared.
    """
    interval = ratio.interval
    return Compared(
        subject=subject,
        level=level,
        batch=batch,
        ratio=ratio.ratio,
        interval=interval,
        reason=intervals.TOO_FEW if interval is None else None,
        comparable=interval is not None,
        regression=interval is not None and interval.low > 1 + max_regression,
    )


def comparison(
    contestants: Sequence[Contestant], batches: Sequence[TimedBatch], path: Path, *, max_regression: float
) -> Comparison:
    """What was compared with the earlier result at `path`, and why the rest was not."""
    obstacles = [
        Compared(subject=each.subject.id, reason=each.obstacle, comparable=False)
        for each in contestants
        if each.obstacle is not None
    ]
    rows = [row for each in batches for row in each.compared(max_regression)]
    return Comparison(earlier=str(path), max_regression=max_regression, rows=(*obstacles, *rows))
