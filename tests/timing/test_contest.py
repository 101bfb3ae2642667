"""Engines timed against each other: what is compared with what, and when a regression is one."""

import contextlib
from pathlib import Path

import pytest
from conftest import photographs

from segdeploy import artifact, engines
from segdeploy.engines import RunOptions
from segdeploy.progress import silent
from segdeploy.timing import contest, intervals, latency
from segdeploy.timing.contest import Contestant, Task, TimedBatch
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Interval, Ratio, Result, Subject

ONE_THREAD = RunOptions(threads=1)


def subject(engine: str) -> Subject:
    runtime, _, precision = engine.partition(":")
    return Subject(id=f"unet {engine} cpu", model="unet", engine=engine, runtime=runtime, precision=precision)


def contestant(engine: str) -> Contestant:
    """Without an engine: its samples are at hand."""
    return Contestant(subject(engine), engine=None)  # type: ignore[arg-type]


def samples(**of_engines: float) -> TimedBatch:
    """Ten runs of each engine, from memory alone; `ort_int8=2.0` takes two milliseconds in each."""
    tasks = {
        Task(f"unet {name.replace('_', ':')} cpu", "host", is_earlier=False): [ms] * 10
        for name, ms in of_engines.items()
    }
    return TimedBatch(1, tasks, half_width=0.03)


@pytest.mark.parametrize("low,regression", [(1.0, False), (1.05, False), (1.06, True)])
@pytest.mark.parametrize("assumes_independent", [True, False])
def test_a_regression_needs_the_whole_interval(low: float, regression: bool, assumes_independent: bool) -> None:  # noqa: FBT001
    """A ratio of 1.2 that could be 1.0 as well is noise."""
    ratio = Ratio(ratio=1.2, interval=Interval(low=low, high=1.4, assumes_independent=assumes_independent))
    found = contest.compared(ratio, subject="a", level="host", batch=1, max_regression=0.05)
    assert (found.regression, found.comparable, found.reason) == (regression, True, None)


def test_without_an_interval_nothing_was_compared() -> None:
    """Twice the time in each of five runs is no proof, and no acquittal either."""
    ratio = latency.ratio([2.0] * 5, [1.0] * 5)
    found = contest.compared(ratio, subject="a", level="host", batch=1, max_regression=0.05)
    assert (found.ratio, found.interval) == (2.0, None)
    assert (found.regression, found.comparable, found.reason) == (False, False, intervals.TOO_FEW)


def test_ratios_are_within_a_runtime() -> None:
    """`ov:int8` against `ort:fp32` would compare runtimes, not types."""
    found = [contestant(name) for name in ("ort:fp32", "ort:int8", "ov:int8")]
    timed = samples(ort_fp32=10.0, ort_int8=5.0, ov_int8=4.0)
    (ratio,) = timed.ratios_to_fp32(found)
    assert (ratio.engine, ratio.batch, ratio.ratio) == ("ort:int8", 1, 0.5)
    assert ratio.interval == Interval(low=0.5, high=0.5, assumes_independent=True)


def test_what_cannot_be_compared_stands_before_what_was_with_its_reason() -> None:
    found = [contestant("ort:fp32"), Contestant(subject("ov:fp32"), engine=None, obstacle="it is gone")]  # type: ignore[arg-type]
    task = Task("unet ort:fp32 cpu", "host", is_earlier=False)
    timed = TimedBatch(2, {task: [2.0] * 9, task._replace(is_earlier=True): [1.0] * 9}, half_width=0.03)
    rows = contest.comparison(found, [timed], Path("old.json"), max_regression=0.05).rows
    assert [(row.subject, row.comparable, row.regression) for row in rows] == [
        ("unet ov:fp32 cpu", False, False),
        ("unet ort:fp32 cpu", True, True),
    ]
    assert (rows[0].reason, rows[1].batch, rows[1].ratio) == ("it is gone", 2, 2.0)


@pytest.mark.usefixtures("workspace")
def test_every_engine_is_timed_at_every_level_on_files_of_any_number(tmp_path: Path) -> None:
    file = artifact.read(Path("export/unet.fp32.onnx"))
    images = sorted(photographs(tmp_path / "images", "a.png", "b.png").iterdir())
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(engines.open_engine(file, runtime=name, device="cpu", options=ONE_THREAD))
            for name in ("ort", "ov")
        ]
        found = [Contestant(subject(f"{engine.runtime}:fp32"), engine) for engine in opened]
        timed = contest.timed(found, images, effort=Effort(runs=3), max_regression=0.05, progress=silent)
        rows = list(timed.rows(found))
    assert [(row.engine, row.level, row.batch, row.runs) for row in rows] == [
        (engine, level, 2, 3) for engine in ("ort:fp32", "ov:fp32") for level in ("host", "image_to_mask")
    ]


@pytest.mark.usefixtures("workspace")
def test_what_an_earlier_result_does_not_have_is_an_obstacle() -> None:
    file = artifact.read(Path("export/unet.fp32.onnx"))
    earlier = Result(subjects=(), rows=())
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engines.open_engine(file, runtime="ort", device="cpu", options=ONE_THREAD))
        mine = [Contestant(subject("ort:fp32"), engine)]
        (found,) = contest.against(mine, earlier, Path("old.json"), stack=stack, options=ONE_THREAD)
    assert (found.earlier, found.obstacle) == (None, "old.json has no unet ort:fp32 cpu.")
