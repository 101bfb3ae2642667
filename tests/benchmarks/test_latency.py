"""Timing that survives a review: order, warm-up and percentiles are checked, never the speed."""

import numpy as np

from segdeploy.benchmarks import latency, machine


def test_tasks_are_warmed_up_and_then_take_turns() -> None:
    """A B A B: a busy moment of the machine meets both."""
    calls: list[str] = []
    ticks: list[int] = []
    tasks = [lambda: calls.append("a"), lambda: calls.append("b")]
    samples = latency.interleaved(tasks, runs=4, done=lambda: ticks.append(1))
    warmup = latency.WARMUP
    assert calls == ["a"] * warmup + ["b"] * warmup + ["a", "b"] * 4
    assert [len(kept) for kept in samples] == [4, 4]
    assert len(ticks) == 8


def test_the_summary_is_numpys_percentiles_and_speed_follows_the_median() -> None:
    samples = [float(value) for value in np.random.default_rng(0).lognormal(size=101)]
    found = latency.summary(samples, batch=8)
    ordered = sorted(samples)
    assert found["latency_ms"]["median"] == ordered[50]
    assert found["latency_ms"]["p90"] == ordered[90]
    assert found["latency_ms"]["min"] == ordered[0]
    assert found["latency_ms"]["mean"] == np.mean(samples)
    assert list(found["latency_ms"]) == ["min", "mean", "median", "p90", "p95", "p99"]
    assert found["images_per_s"] == 8000 / ordered[50]


def test_the_machine_is_described() -> None:
    facts = machine.describe()
    assert facts["cores"] >= 1
    assert facts["memory_mb"] > 100
    assert facts["packages"]["numpy"] == np.__version__
