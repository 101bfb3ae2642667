"""How often do the 95 % intervals of `segdeploy bench` hold the median? Writes benchmarks/interval_coverage.*.

    python benchmarks/interval_coverage.py [--trials 10000]

Calls are drawn from a process whose median is known, independent or with a first-order autocorrelation, and the
interval is asked for: how often it is given, how often it then holds the median, and how wide it is beside the
interval of the same order statistics that knows the correlation. No engine runs; the seeds stand still.
"""

import argparse
import dataclasses
import functools
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, typed_json
from segdeploy.timing import intervals, latency, machine
from segdeploy.timing.intervals import CORRELATION_FROM, FEWEST, Z
from segdeploy.timing.result_types import Machine

HERE = Path(__file__).resolve().parent
LEAST_COVERAGE, LEAST_GIVEN, MEDIAN_WIDTH, WIDE_WIDTH = 0.94, 0.95, 1.5, 3.0  # what is promised
BURN_IN = 100  # calls, after which an autocorrelated process has forgotten its start
ALL_AT_ONCE = 2000  # trials; memory
LONG = (1000, 2000)  # trials and calls, from which a median is known that no formula gives
INDEPENDENT_COUNTS = (6, 7, 8, 9, 10, 12, 15, 17, 20, 25, 30, 40, 44, 49, 50, 60, 75, 100, 150, 200)
CORRELATED_COUNTS = (50, 60, 75, 100, 150, 200, 400)
STRONG_COUNTS = (50, 75, 100, 200, 400)
CORRELATION, MOST_CALLS, BUSY = 0.7, 600, 0.3
Array = NDArray[np.float64]
Random = np.random.Generator
Draw = Callable[[Random, int, int], Array]  # trials and calls -> (trials, calls)
Bounds = Callable[[Array], tuple[Array, Array]]


def normal(random: Random, trials: int, count: int) -> Array:
    return random.normal(size=(trials, count))


def lognormal(random: Random, trials: int, count: int) -> Array:
    return random.lognormal(size=(trials, count))


def gamma(random: Random, trials: int, count: int) -> Array:
    return random.gamma(0.5, size=(trials, count))


def bimodal(random: Random, trials: int, count: int) -> Array:
    """Some calls meet another program."""
    return np.where(random.random((trials, count)) < BUSY, 10, 0) + random.normal(size=(trials, count))


def ties(random: Random, trials: int, count: int) -> Array:
    """A coarse clock: a tenth of the standard deviation."""
    return np.round(random.normal(size=(trials, count)), 1)


def few_values(random: Random, trials: int, count: int) -> Array:
    """A clock so coarse that half of the calls take the same time."""
    return np.floor(random.exponential(1.5, size=(trials, count)))


def autocorrelated(draw: Draw, correlation: float) -> Draw:
    """A first-order autoregression whose innovations are drawn so."""

    def drawn(random: Random, trials: int, count: int) -> Array:
        found = draw(random, trials, count + BURN_IN)
        for call in range(1, count + BURN_IN):
            found[:, call] += correlation * found[:, call - 1]
        return found[:, BURN_IN:]

    return drawn


def beside_noise(random: Random, trials: int, count: int) -> Array:
    """A slow process (0.9) of the same variance as independent noise on top of it."""
    return math.sqrt(1 - 0.9**2) * autocorrelated(normal, 0.9)(random, trials, count) + normal(random, trials, count)


SHAPES: Mapping[str, Draw] = {
    "normal": normal,
    "lognormal": lognormal,
    "gamma": gamma,
    "bimodal": bimodal,
    "ties": ties,
    "few values": few_values,
}
INNOVATIONS = ("normal", "lognormal", "gamma", "bimodal")
STRONG: Mapping[str, Draw] = {
    "0.3": autocorrelated(normal, 0.3),
    "0.8": autocorrelated(normal, 0.8),
    "0.9": autocorrelated(normal, 0.9),
    "0.9 beside noise": beside_noise,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One process and number of calls. Shares of the trials: `given` an interval, and `coverage` of those.

    `median_width` and `wide_width`: the median and the 90th percentile of the interval's width over that of the
    interval that knows the correlation; None where that has no width.
    """

    part: str
    process: str
    calls: int
    given: float
    coverage: float
    median_width: float | None = None
    wide_width: float | None = None

    @property
    def is_kept(self) -> bool:
        widths = ((self.median_width, MEDIAN_WIDTH), (self.wide_width, WIDE_WIDTH))
        narrow = all(width is None or width <= limit for width, limit in widths)
        return self.given >= LEAST_GIVEN and self.coverage >= LEAST_COVERAGE and narrow


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    schema: Literal[1] = 1
    command: str
    made_at: str
    version: str
    machine: Machine
    trials: int
    cells: tuple[Cell, ...]


@functools.cache
def true_median(draw: Draw) -> float:
    return float(np.median(draw(np.random.default_rng(1), *LONG)))


def cell(part: str, process: str, draw: Draw, count: int, *, trials: int, bounds: Bounds = intervals.bounds) -> Cell:
    samples, median = draw(np.random.default_rng([count, *process.encode()]), trials, count), true_median(draw)
    low, high = (np.concatenate(each) for each in zip(*map(bounds, _parts(samples)), strict=True))
    given = ~np.isnan(low)
    low, high = low[given], high[given]
    known = _knowing_width(samples, median)[given]
    widths = np.divide(high - low, known, out=np.ones_like(known), where=known > 0)
    has_width = bool(np.all(known > 0))
    return Cell(
        part=part,
        process=process,
        calls=count,
        given=float(given.mean()),
        coverage=float(np.mean((low <= median) & (median <= high))),
        median_width=float(np.median(widths)) if has_width else None,
        wide_width=float(np.quantile(widths, 0.9)) if has_width else None,
    )


def _parts(samples: Array) -> list[Array]:
    return np.array_split(samples, -(-len(samples) // ALL_AT_ONCE))


def _knowing_width(samples: Array, median: float) -> Array:
    """(T,): the width between the order statistics that hold the median, by the variance that all trials show."""
    count = samples.shape[1]
    above = np.mean((samples > median) + 0.5 * (samples == median), axis=1)
    inflation = max(1.0, 4 * count * float(np.mean((above - 0.5) ** 2)))
    if count < CORRELATION_FROM:
        inflation = 1.0
    rank = max(1, math.floor((count + 1) / 2 - Z / 2 * math.sqrt(count * inflation)))
    ordered = np.sort(samples, axis=1)
    width: Array = ordered[:, count - rank] - ordered[:, rank - 1]
    return width


def stopped(process: str, draw: Draw, spread: float, *, trials: int) -> Cell:
    """By the rule of `bench`: it looks now and then, and ends when the interval is narrow. `calls`: the median."""
    effort, median = latency.Effort(), 1 + spread * true_median(draw)
    samples = 1 + spread * draw(np.random.default_rng([*process.encode()]), trials, MOST_CALLS)
    running, covered, calls = np.arange(trials), np.zeros(trials, bool), np.zeros(trials)
    look = effort.least
    while look <= MOST_CALLS and len(running):
        low, high = intervals.bounds(samples[running, :look])
        narrow = (high - low) / 2 < effort.half_width * np.median(samples[running, :look], axis=1)
        ended = running[narrow]
        covered[ended], calls[ended] = (low <= median)[narrow] & (median <= high)[narrow], look
        running, look = running[~narrow], math.ceil(latency.NEXT_LOOK * look)
    given = calls > 0
    return Cell(
        part="stopped",
        process=process,
        calls=int(np.median(calls[given])),
        given=float(given.mean()),
        coverage=float(covered[given].mean()),
    )


def simulated(trials: int) -> Iterator[Cell]:
    for name, draw in SHAPES.items():
        for count in INDEPENDENT_COUNTS:
            yield cell("independent", name, draw, count, trials=trials)
    for name in INNOVATIONS:
        draw = autocorrelated(SHAPES[name], CORRELATION)
        for count in CORRELATED_COUNTS:
            yield cell("correlated", name, draw, count, trials=trials)
    for spread in (0.05, 0.1, 0.15):
        for name, draw in (("normal", normal), ("lognormal", lognormal), ("correlated", STRONG["0.3"])):
            yield stopped(f"{name}, {spread:.0%}", draw, spread, trials=trials // 5)
    for name, draw in STRONG.items():
        for count in STRONG_COUNTS:
            yield cell("not promised", name, draw, count, trials=trials)


# The page


def page(found: Simulation) -> str:
    kept = [each for each in found.cells if each.part in {"independent", "correlated"}]
    head = [
        "# Coverage of the intervals",
        "",
        f"`{found.command}`, {found.trials} trials a cell, seeds that stand still.",
        "",
        "How often the 95 % interval of the median holds the median, of those trials in which it is given. In brackets",
        "its width over that of the interval of order statistics that knows the correlation: the median, and the 90th",
        "percentile. Where an interval is given in less than 99.95 % of the trials, the share is said.",
        "",
        f"Promised, and kept in {sum(each.is_kept for each in kept)} of {len(kept)} cells of the first two tables:",
        f"at least {LEAST_COVERAGE:.0%} coverage, given in at least {LEAST_GIVEN:.0%} of the trials, at most",
        f"{MEDIAN_WIDTH} times as wide in the median and {WIDE_WIDTH:g} times in the 90th percentile.",
    ]
    fewest = (
        f"Independent calls (fewer than {FEWEST} have no interval; below {CORRELATION_FROM} independence is assumed)"
    )
    parts = [
        ("independent", fewest),
        ("correlated", f"First-order autocorrelation {CORRELATION}, by the distribution of the innovations"),
        ("not promised", "Other correlations, not promised: strong ones need more calls than they have here"),
    ]
    lines = [line for part, title in parts for line in _table(title, found.cells, part)]
    return "\n".join([*head, "", *lines, *_stopped_table(found.cells), ""])


def _table(title: str, cells: Sequence[Cell], part: str) -> list[str]:
    members = [each for each in cells if each.part == part]
    processes = list(dict.fromkeys(each.process for each in members))
    lines = [f"## {title}", "", f"| calls | {' | '.join(processes)} |", f"| --- |{' --- |' * len(processes)}"]
    for count in dict.fromkeys(each.calls for each in members):
        row = {each.process: _cell(each) for each in members if each.calls == count}
        lines.append(f"| {count} | {' | '.join(row[process] for process in processes)} |")
    return [*lines, ""]


def _cell(found: Cell) -> str:
    width = "" if found.median_width is None else f" ({found.median_width:.2f}, {found.wide_width:.2f})"
    given = "" if found.given > 0.9995 else f", given {found.given:.1%}"  # noqa: PLR2004 - rounds to all
    return f"{found.coverage:.1%}{width}{given}"


def _stopped_table(cells: Sequence[Cell]) -> list[str]:
    lines = [
        f"## Ended by the rule of `bench`: when the interval is narrow, or after {MOST_CALLS} calls",
        "",
        "| calls' distribution, its scale over their level | calls, median | narrow | coverage of those |",
        "| --- | --- | --- | --- |",
    ]
    members = (each for each in cells if each.part == "stopped")
    rows = (f"| {each.process} | {each.calls} | {each.given:.1%} | {each.coverage:.1%} |" for each in members)
    return [*lines, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    given = parser.parse_args()
    found = Simulation(
        command=shlex.join(["python", "benchmarks/interval_coverage.py", "--trials", str(given.trials)]),
        made_at=artifact.now(),
        version=machine.provenance().version,
        machine=machine.describe(),
        trials=given.trials,
        cells=tuple(simulated(given.trials)),
    )
    artifact.write_atomically(HERE / "interval_coverage.json", typed_json.to_text(found))
    artifact.write_atomically(HERE / "interval_coverage.md", page(found).encode())


if __name__ == "__main__":
    main()
