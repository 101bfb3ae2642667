"""Time engines, with intervals and their accuracy."""

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli import bars, exit_codes, options, rendering, timings
from segdeploy.errors import InvalidFileError

if TYPE_CHECKING:
    from segdeploy.benchmarking import BenchOptions

ORDER = 60

_subjects = options.together(
    click.option(
        "--engine",
        "engines",
        multiple=True,
        default=["fp32"],
        show_default=True,
        metavar="[RUNTIME:]PRECISION",
        help="Repeat it to time several, interleaved.",
    ),
    click.option("--all", "every", is_flag=True, help="Every runtime and precision that this machine can use."),
    options.running,
    options.data(help="Labelled folder: adds the mIoU of the very file that is timed."),
    options.force,
)
_effort = options.together(
    click.option("--batch", "batches", multiple=True, default=[1], show_default=True, type=click.IntRange(1)),
    click.option(
        "--runs", type=click.IntRange(1), help="Calls of each engine. Default: until the intervals are narrow."
    ),
    click.option(
        "--time-limit",
        default=60.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help="Of each batch size, without --runs; an interval that is still wide then is called noisy.",
    ),
    click.option("--threads", type=click.IntRange(1), help="Threads of one call. Default: all cores."),
    click.option("--profile", is_flag=True, help="Add the time of each layer, measured apart."),
)
_files = options.together(
    click.option(
        "--save",
        type=options.FILE,
        metavar="FILE",
        help="Write the result, with pictures, and keep what was timed beside it: for `report` and --compare.",
    ),
    click.option(
        "--compare",
        type=options.FILE,
        metavar="FILE",
        help="Run what an earlier --save kept again, interleaved; exit 4 where an engine has become slower.",
    ),
)
_gates = options.together(
    click.option(
        "--max-regression",
        default=5.0,
        show_default=True,
        type=click.FloatRange(0),
        metavar="PERCENT",
        help="With --compare: how much slower is too slow. The whole 95 % interval must lie above it.",
    ),
    click.option(
        "--require-delivered",
        is_flag=True,
        help="Exit 4 where an engine does under nine tenths of what its graph gives to low precision in it.",
    ),
    click.option(
        "--require-faster",
        is_flag=True,
        help="Exit 4 where a graph of low precision is slower than fp32 in its runtime.",
    ),
    options.allow_inconclusive,
)


@click.command(short_help=__doc__)
@options.model
@_subjects
@_effort
@_files
@_gates
@options.as_json
def bench(*, model: str | None, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - the options above
    """Time engines: on the device, from images in memory (host), and from image file to encoded mask (image_to_mask).

    All engines take turns in one run, in random order, until the 95 % intervals of the medians are narrow.
    """
    from segdeploy import api

    asked = _options(**given)
    result = api.bench(model, options=asked, progress=bars.show_progress)
    saved = [] if asked.save is None else [f"kept in {asked.save}: segdeploy report {asked.save}"]
    lines = [*timings.lines(result), *saved]
    rendering.show(result, as_json=as_json, lines=lines, table=lambda: timings.row_table(result))
    for failure in result.failures:
        click.echo(f"Error: {failure.what}\n{failure.remedy}", err=True)
    if result.failures:
        sys.exit(exit_codes.FAILED_GATE)
    if result.comparison is not None and not any(row.comparable for row in result.comparison.rows):
        raise InvalidFileError("nothing could be compared.", "Save what is to be compared: segdeploy bench --save FILE")


def _options(
    *,
    runs: int | None,
    time_limit: float,
    threads: int | None,
    cuda: str | None,
    cuda_graphs: bool,
    max_regression: float,
    **given: Any,  # noqa: ANN401 - of BenchOptions, by the same names
) -> "BenchOptions":
    from segdeploy.benchmarking import BenchOptions
    from segdeploy.timing.latency import Effort

    return BenchOptions(
        effort=Effort(runs=runs, limit_s=time_limit),
        run=options.run_options(cuda, cuda_graphs=cuda_graphs, threads=threads),
        max_regression=max_regression / 100,
        command=shlex.join(["segdeploy", *sys.argv[1:]]),
        **given,
    )


COMMAND = bench
