"""The result of `bench` as text: a table of times, and lines for the ratios, the layers and the conditions."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from segdeploy.cli import rendering

if TYPE_CHECKING:
    from rich.table import Table

    from segdeploy.timing.result_types import Compared, RatioToFp32, Result, Row, Subject

PROFILED_LINES = 10


def row_table(result: "Result") -> "Table":
    """A row for each engine, level and batch size."""
    table = rendering.table(
        "engine", "level", "batch", "median ms", "95 %", "p90", "p99", "images/s", "MB", "mIoU", "agreement"
    )
    for row in result.rows:
        table.add_row(_engine(row), row.level, str(row.batch), *_times(row), _megabytes(row), *_scores(row))
    return table


def _engine(row: "Row") -> str:
    wider = "" if row.delivered == row.precision else f" (delivered: {row.delivered or 'unknown'})"
    return f"{row.engine} {row.device}{wider}"


def _times(row: "Row") -> list[str]:
    latency = row.latency_ms
    return [
        f"{latency.median:.2f}",
        _interval(row),
        rendering.number(latency.p90, ".2f"),
        rendering.number(latency.p99, ".2f"),
        rendering.number(row.images_per_s, ".1f"),
    ]


def _interval(row: "Row") -> str:
    interval = row.median_interval
    if interval is None:
        return "too few"
    marks = ("*" if interval.assumes_independent else "") + (" noisy" if row.noisy else "")
    return f"{interval.low:.2f} to {interval.high:.2f}{marks}"


def _megabytes(row: "Row") -> str:
    each = (row.memory.host_peak_mb, row.memory.device_peak_mb)
    return " + ".join(f"{megabytes:.0f}" for megabytes in each if megabytes is not None) or "-"


def _scores(row: "Row") -> list[str]:
    return [rendering.number(row.miou, ".4f"), rendering.number(row.agreement, ".4%")]


def lines(result: "Result") -> Iterator[str]:
    """What the table has no room for: ratios, the comparison, layers, the machine, what disturbed the measurement."""
    yield from map(_ratio_line, result.ratios)
    if result.comparison is not None:
        yield from map(_compared_line, result.comparison.rows)
    for subject in result.subjects:
        yield from _profile_lines(subject)
    yield _what_was_timed(result)
    if not any(row.level == "device" for row in result.rows):
        yield "No device level: a CPU has no clock of its own, and no copies to leave out."
    yield from _about_intervals(result.rows)
    if result.conditions is not None:
        yield from (f"disturbed: {flag}" for flag in result.conditions.flags)


def _about_intervals(rows: Sequence["Row"]) -> Iterator[str]:
    from segdeploy.timing.intervals import CORRELATION_FROM

    given = [row.median_interval for row in rows if row.median_interval is not None]
    if any(interval.assumes_independent for interval in given):
        yield f"* assumes independent calls: fewer than {CORRELATION_FROM} cannot show whether neighbours are alike"
    if lacking := len(rows) - len(given):
        yield f"too few: {lacking} of {len(rows)} rows have too few independent calls for an interval"
    if noisy := [row for row in rows if row.noisy and row.median_interval is not None]:
        yield f"noisy: {len(noisy)} of {len(rows)} intervals are still wide; --time-limit gives more runs"


def _what_was_timed(result: "Result") -> str:
    counts = {row.runs for row in result.rows if row.runs is not None}
    runs = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    first, machine = result.rows[0], result.machine
    where = "" if machine is None else f" on {machine.named}"
    return f"{first.model} at {first.height}x{first.width}{where}, {runs} interleaved runs"


def _compared_line(row: "Compared") -> str:
    from segdeploy.timing.intervals import in_words

    if row.ratio is None:
        return f"{row.subject} is not comparable: {row.reason}"
    where = f"{row.subject}, {row.level}, batch {row.batch}"
    return f"{where}: {row.ratio:.3f} ({in_words(row.interval)}) of the time of what was kept"


def _profile_lines(subject: "Subject") -> Iterator[str]:
    """The layers that take the most time; the whole list is in the JSON."""
    if not subject.profile:
        return
    yield f"{subject.id}, by layer:"
    for layer in subject.profile[:PROFILED_LINES]:
        yield f"  {rendering.number(layer.share, '6.1%')}  {layer.ms:8.2f} ms  {layer.layer}  {layer.op}"


def _ratio_line(found: "RatioToFp32") -> str:
    from segdeploy.timing.intervals import in_words

    return f"{found.engine} takes {found.ratio:.3f} ({in_words(found.interval)}) of fp32, batch {found.batch}"
