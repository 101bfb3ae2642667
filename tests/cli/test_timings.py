"""The result of `bench` as text."""

import dataclasses
import io

from rich.console import Console

from segdeploy.cli import timings
from segdeploy.timing.result_types import (
    Compared,
    Comparison,
    Conditions,
    Interval,
    Latency,
    LayerTime,
    Machine,
    Memory,
    RatioToFp32,
    Result,
    Row,
    Subject,
)


def interval(low: float, high: float, *, assumes_independent: bool = False) -> Interval:
    return Interval(low=low, high=high, assumes_independent=assumes_independent)


ROW = Row(
    subject="a",
    level="host",
    batch=1,
    model="unet",
    engine="ort:int8",
    precision="int8",
    device="cpu",
    delivered="fp32",
    height=64,
    width=96,
    memory=Memory(host_peak_mb=12.4),
    runs=20,
    images_per_s=500.0,
    latency_ms=Latency(median=2.0, p90=2.5, p99=3.0),
    median_interval=interval(1.9, 2.1),
    noisy=True,
)

MACHINE = Machine(
    processor="A processor",
    instruction_set="avx2",
    cores=2,
    affinity=(0, 1),
    memory_mb=8000,
    system="Linux",
    python="3.11",
    packages={},
)


def shown(result: Result) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(timings.row_table(result))
    return text.getvalue()


def test_a_row_says_what_was_measured_and_a_dash_what_was_not() -> None:
    line = shown(Result(subjects=(), rows=(ROW,))).splitlines()[3]
    cells = ["ort:int8 cpu (delivered: fp32)", "host", "1", "2.00", "1.90 to 2.10 noisy", "2.50", "3.00", "500.0", "12"]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == [*cells, "-", "-"]


def test_the_lines_say_what_the_table_has_no_room_for() -> None:
    layers = tuple(LayerTime(layer=f"layer{index}", op="Conv", ms=1.0, share=0.05) for index in range(12))
    result = Result(
        machine=MACHINE,
        conditions=Conditions(flags=("others took 20 % of the time",)),
        subjects=(Subject(id="a", model="unet", engine="ort:int8", profile=layers),),
        rows=(ROW,),
        ratios=(RatioToFp32(engine="ort:int8", batch=1, ratio=0.5, interval=interval(0.49, 0.51)),),
        comparison=Comparison(
            rows=(
                Compared(subject="a", level="host", batch=1, ratio=1.25, interval=interval(1.2, 1.3)),
                Compared(subject="b", comparable=False, reason="it has no b"),
            )
        ),
    )
    lines = list(timings.lines(result))
    assert lines[:5] == [
        "ort:int8 takes 0.500 (95 %: 0.490 to 0.510) of fp32, batch 1",
        "a, host, batch 1: 1.250 (95 %: 1.200 to 1.300) of the time of what was kept",
        "b is not comparable: it has no b",
        "a, by layer:",
        "    5.0%      1.00 ms  layer0  Conv",
    ]
    assert lines[4 + timings.PROFILED_LINES :] == [
        "unet at 64x96 on A processor (avx2), 2 cores, 20 interleaved runs",
        "No device level: a CPU has no clock of its own, and no copies to leave out.",
        "noisy: 1 of 1 intervals are still wide; --time-limit gives more runs",
        "disturbed: others took 20 % of the time",
    ]


def test_an_interval_says_what_it_assumes_and_that_there_is_none() -> None:
    """Six runs give an interval if they are independent; five give none."""
    assuming = dataclasses.replace(ROW, median_interval=interval(1.9, 2.1, assumes_independent=True))
    lacking = dataclasses.replace(ROW, median_interval=None)
    result = Result(
        subjects=(),
        rows=(assuming, lacking),
        ratios=(
            RatioToFp32(engine="a", batch=1, ratio=0.5, interval=interval(0.49, 0.51, assumes_independent=True)),
            RatioToFp32(engine="b", batch=1, ratio=0.5),
        ),
    )
    table, lines = shown(result), list(timings.lines(result))
    assert "1.90 to 2.10* noisy" in table
    assert "too few" in table
    assert lines[:2] == [
        "a takes 0.500 (95 % if calls are independent: 0.490 to 0.510) of fp32, batch 1",
        "b takes 0.500 (too few independent calls for an interval) of fp32, batch 1",
    ]
    assert lines[-3:] == [
        "* assumes independent calls: fewer than 50 cannot show whether neighbours are alike",
        "too few: 1 of 2 rows have too few independent calls for an interval",
        "noisy: 1 of 2 intervals are still wide; --time-limit gives more runs",
    ]


def test_nothing_is_said_of_intervals_that_assume_nothing_and_are_narrow() -> None:
    lines = list(timings.lines(Result(subjects=(), rows=(dataclasses.replace(ROW, noisy=False),))))
    assert lines == [
        "unet at 64x96, 20 interleaved runs",
        "No device level: a CPU has no clock of its own, and no copies to leave out.",
    ]
