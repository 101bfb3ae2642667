"""Timing: tasks are warmed up and run interleaved, in random order, until the intervals of their medians are narrow."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy import cores, fitting, images
from segdeploy.engines import Engine
from segdeploy.spec import Spec
from segdeploy.timing import intervals
from segdeploy.timing.result_types import Interval, Latency, Ratio, Summary

SETTLED, FASTER, MOST_WARMUP = 3, 0.95, 20  # calls in a row of which none is a twentieth faster than all before them
WHOLE = 100  # percent
NEXT_LOOK = 1.2  # times as many runs: whoever looks after each run stops at a narrow interval that is wrong
HALF_WIDTH = 0.03  # of an interval that is narrow, as a share of its median
LEAST_MS = 1e-9
Task = Callable[[], float]
Samples = list[list[float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: `runs` of everything where that is given; else until every interval is narrow.

    `least` runs come first; then `half_width`, of an interval over its median, or `limit_s` ends it. An interval that
    is wider at the end is called noisy.
    """

    runs: int | None = None
    least: int = intervals.CORRELATION_FROM
    half_width: float = HALF_WIDTH
    limit_s: float = 60.0


class Classifier(Protocol):
    """The part of an engine that `image_to_mask` needs."""

    @property
    def spec(self) -> Spec: ...
    def classify(self, batch: NDArray[np.uint8], /) -> NDArray[np.uint8]: ...


def host(engine: Engine, batch: NDArray[np.uint8]) -> Task:
    """Class maps from images in memory, copies included."""
    return timed(lambda: engine.classify(batch))


def device(engine: Engine, batch: NDArray[np.uint8]) -> Task | None:
    """The network alone, by the device's own clock; None where there is none."""
    if engine.device_ms(batch, runs=1) is None:
        return None
    return lambda: (engine.device_ms(batch, runs=1) or [0.0])[0]


def image_to_mask(engine: Classifier, files: Sequence[Path]) -> Task:
    """From image files to encoded masks: read, fit, engine, resize back, encode.

    One batch after the other; its files are read and its masks written by as many threads as there are cores.
    """
    spec = engine.spec

    def read(file: Path) -> tuple[tuple[int, ...], fitting.Seen | NDArray[np.uint8]]:
        photo = images.read(file)
        return photo.shape, photo if fitting.is_tiled(spec, *photo.shape[:2]) else fitting.seen(photo, spec)

    def write(shape: tuple[int, ...], class_map: NDArray[np.uint8]) -> bytes:
        at_photo_size = images.to_photo_size(class_map, height=shape[0], width=shape[1])
        return images.mask_png(at_photo_size, spec.colours)

    def run(each: Callable[..., Iterable[Any]]) -> None:
        shapes, photos = zip(*each(read, files), strict=True)
        batch = [photo.image for photo in photos if isinstance(photo, fitting.Seen)]
        drawn = iter(engine.classify(np.stack(batch)) if batch else ())
        class_maps = [
            next(drawn)[photo.inside]
            if isinstance(photo, fitting.Seen)
            else fitting.drawn(photo, spec, engine.classify)
            for photo in photos
        ]
        list(each(write, shapes, class_maps))

    def task() -> None:
        if len(files) == 1:
            run(map)
            return
        with ThreadPoolExecutor(cores.usable()) as pool:
            run(pool.map)

    return timed(task)


def timed(act: Callable[[], object]) -> Task:
    """The milliseconds of an act, by this machine's clock."""

    def task() -> float:
        started = time.perf_counter_ns()
        act()
        return (time.perf_counter_ns() - started) / 1e6

    return task


def warm_up(task: Task) -> None:
    """Call a task until it does not become faster any more."""
    best, settled = task(), 0
    for _ in range(MOST_WARMUP):
        taken = task()
        settled = 0 if taken < FASTER * best else settled + 1
        best = min(best, taken)
        if settled == SETTLED:
            return


def interleaved(
    tasks: Sequence[Task],
    effort: Effort,
    *,
    enough: Callable[[Samples], bool] | None = None,
    percent: Callable[[], None] = lambda: None,
) -> Samples:
    """Milliseconds of each task in each run, all of them in every run and in a random order.

    A busy moment of the machine meets all of them, and none is always behind the same other. `enough` looks at the
    samples now and then; without it, every median's interval must be narrow. `percent` is called a hundred times.
    """
    for task in tasks:
        warm_up(task)
    order = np.random.default_rng(0)
    samples: Samples = [[] for _ in tasks]
    started, told = time.monotonic(), 0
    while (done := _done(samples, effort, enough or _narrow(effort), started)) < 1 or told < WHOLE:
        for _ in range(int(WHOLE * done) - told):
            percent()
            told += 1
        for index in order.permutation(len(tasks)) if done < 1 else ():
            samples[index].append(tasks[index]())
    return samples


def _done(samples: Samples, effort: Effort, enough: Callable[[Samples], bool], started: float) -> float:
    """The share of the work that is done, by runs or by time; 1 when it is over."""
    runs = len(samples[0])
    if effort.runs is not None:
        return runs / effort.runs
    spent = min((time.monotonic() - started) / effort.limit_s, runs / intervals.FEWEST)
    if _is_look(runs, effort.least) and enough(samples):
        return 1.0
    return min(spent, 1.0)


def _is_look(runs: int, least: int) -> bool:
    look = least
    while look < runs:
        look = math.ceil(NEXT_LOOK * look)
    return look == runs


def _narrow(effort: Effort) -> Callable[[Samples], bool]:
    return lambda samples: all(half_width(kept) < effort.half_width for kept in samples)


def half_width(samples_ms: Sequence[float]) -> float:
    """Of the interval of the median, as a share of the median; infinite where the calls are too few for one."""
    interval = intervals.of_median(samples_ms)
    return math.inf if interval is None else _half_width(interval, float(np.median(samples_ms)))


def _half_width(interval: Interval, median_ms: float) -> float:
    return (interval.high - interval.low) / 2 / max(median_ms, LEAST_MS)


def ratio(ms: Sequence[float], reference_ms: Sequence[float]) -> Ratio:
    """The time of one task over that of another, divided run by run: what slows a run slows both."""
    each = np.asarray(ms) / np.asarray(reference_ms)
    return Ratio(ratio=float(np.median(each)), interval=intervals.of_median(list(each)))


def summary(samples_ms: Sequence[float], *, batch: int, half_width_at_most: float = HALF_WIDTH) -> Summary:
    """Latency of one call over the batch, and images a second by its median."""
    interval = intervals.of_median(samples_ms)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples_ms, [50, 90, 95, 99]))
    return Summary(
        runs=len(samples_ms),
        images_per_s=1000 * batch / max(p50, LEAST_MS),
        latency_ms=Latency(
            min=float(np.min(samples_ms)), mean=float(np.mean(samples_ms)), median=p50, p90=p90, p95=p95, p99=p99
        ),
        median_interval=interval,
        noisy=interval is None or _half_width(interval, p50) > half_width_at_most,
    )
