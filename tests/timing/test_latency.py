"""Timing that survives a review: order, warm-up and the end are checked, never the speed."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from conftest import known
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeploy.timing import intervals, latency
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Interval, Ratio

FASTER, EQUAL, SLOWER = 0.5, 1.0, 2.0


def noted(calls: list[str], name: str, ms: float = 1.0) -> Callable[[], float]:
    def task() -> float:
        calls.append(name)
        return ms

    return task


def test_all_tasks_have_their_turn_in_every_run_and_the_order_changes() -> None:
    """A busy moment of the machine meets all, and none is always behind the same other."""
    calls: list[str] = []
    ticks: list[int] = []
    tasks = [noted(calls, name) for name in "abc"]
    samples = latency.interleaved(tasks, Effort(runs=40), percent=lambda: ticks.append(1))
    timed = calls[-120:]
    rounds = ["".join(timed[start : start + 3]) for start in range(0, 120, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 3
    assert [len(kept) for kept in samples] == [40, 40, 40]
    assert len(ticks) == latency.WHOLE


def test_the_warm_up_ends_when_a_task_gets_no_faster() -> None:
    """A runtime that compiles in its first calls is not timed while it does."""
    times = iter([100.0, 50.0, 20.0, 10.0, 10.1, 9.9, 10.2, 5.0])
    latency.warm_up(lambda: next(times))
    assert next(times) == 5.0


def test_the_warm_up_ends_though_a_task_gets_faster_for_ever() -> None:
    times = iter([float(2**-each) for each in range(latency.MOST_WARMUP + 2)])
    latency.warm_up(lambda: next(times))
    assert len(list(times)) == 1


def test_runs_go_on_until_every_interval_is_narrow() -> None:
    random = np.random.default_rng(0)
    tasks = [lambda: 10.0, lambda: float(10 + random.normal())]
    samples = latency.interleaved(tasks, Effort(least=10, limit_s=600))
    assert len(samples[0]) > 10
    assert latency.half_width(samples[1]) < Effort().half_width


def test_looks_at_the_intervals_become_rare() -> None:
    """Whoever looks after every run stops at the first interval that is narrow by chance."""
    looks: set[int] = set()

    def enough(kept: latency.Samples) -> bool:
        looks.add(len(kept[0]))
        return len(kept[0]) >= 100

    latency.interleaved([lambda: 1.0], Effort(limit_s=600), enough=enough)
    assert sorted(looks) == [50, 60, 72, 87, 105]


def test_a_time_limit_ends_what_does_not_settle_and_says_so() -> None:
    random = np.random.default_rng(0)
    samples = latency.interleaved([lambda: float(random.lognormal(sigma=2))], Effort(limit_s=0.01))
    assert len(samples[0]) >= intervals.FEWEST
    assert latency.summary(samples[0], batch=1).noisy


def test_a_comparison_decides_when_it_has_seen_enough() -> None:
    samples = latency.interleaved([lambda: 1.0], Effort(limit_s=600), enough=lambda kept: len(kept[0]) >= 50)
    assert len(samples[0]) == 50


def test_the_ratio_is_taken_run_by_run() -> None:
    """What slows a run slows both: the ratio of a machine that is ten times slower half of the time is exact."""
    slow = np.where(np.arange(60) % 7 < 3, 10.0, 1.0)
    found = latency.ratio(list(1.1 * slow), list(slow))
    assert found.ratio == pytest.approx(1.1)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((1.1, 1.1))


def samples(seed: int, runs: int = 40) -> list[float]:
    """Milliseconds as they come: a floor, and now and then somebody else at work."""
    return [float(value) for value in 10 + np.random.default_rng(seed).lognormal(sigma=1, size=runs)]


def test_the_ratio_of_a_task_to_itself_is_one() -> None:
    found = latency.ratio(samples(0), samples(0))
    assert found == Ratio(ratio=1.0, interval=Interval(low=1.0, high=1.0, assumes_independent=True))


def test_the_ratio_of_two_like_tasks_has_one_in_its_interval() -> None:
    interval = known(latency.ratio(samples(0), samples(1)).interval)
    assert interval.low < EQUAL < interval.high


@pytest.mark.parametrize("factor", [SLOWER, FASTER])
def test_the_ratio_of_twice_the_time_excludes_one(factor: float) -> None:
    found = latency.ratio([factor * value for value in samples(0)], samples(1))
    interval = known(found.interval)
    assert interval.low < found.ratio < interval.high
    assert interval.high < EQUAL if factor == FASTER else interval.low > EQUAL


@given(
    pairs=st.lists(st.tuples(st.floats(0.01, 1e3), st.floats(0.01, 1e3)), min_size=1, max_size=30),
    factor=st.floats(0.01, 100),
)
@settings(max_examples=40)
def test_the_ratio_knows_no_unit(pairs: list[tuple[float, float]], factor: float) -> None:
    """Microseconds or minutes; and its interval never runs backwards."""
    ms, reference_ms = (list(values) for values in zip(*pairs, strict=True))
    found = latency.ratio(ms, reference_ms)
    scaled = latency.ratio([factor * value for value in ms], [factor * value for value in reference_ms])
    assert scaled.ratio == pytest.approx(found.ratio)
    if len(pairs) < intervals.FEWEST:
        assert found.interval is scaled.interval is None
    else:
        before, after = known(found.interval), known(scaled.interval)
        assert (after.low, after.high) == pytest.approx((before.low, before.high))
        assert 0 < before.low <= found.ratio <= before.high


def test_the_summary_is_numpys_percentiles_and_speed_follows_the_median() -> None:
    samples = [float(value) for value in np.random.default_rng(0).lognormal(size=101)]
    found = latency.summary(samples, batch=8)
    ordered = sorted(samples)
    assert found.latency_ms.median == ordered[50]
    assert found.latency_ms.p90 == ordered[90]
    assert found.latency_ms.min == ordered[0]
    assert found.latency_ms.mean == np.mean(samples)
    fields = [field.name for field in dataclasses.fields(found.latency_ms)]
    assert fields == ["min", "mean", "median", "p90", "p95", "p99"]
    assert found.images_per_s == 8000 / ordered[50]
    interval = known(found.median_interval)
    assert interval.low <= ordered[50] <= interval.high
    assert found.runs == 101


def test_a_median_without_an_interval_is_noisy() -> None:
    """Five equal times may be chance."""
    found = latency.summary([10.0] * 5, batch=1)
    assert (found.median_interval, found.noisy) == (None, True)
    assert not latency.summary([10.0] * 6, batch=1).noisy
    assert latency.half_width([10.0] * 5) == math.inf
