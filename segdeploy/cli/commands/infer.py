"""Masks for a folder of photographs."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segdeploy.cli import bars, exit_codes, options, rendering

if TYPE_CHECKING:
    from segdeploy.inference.report import Report

ORDER = 100

_outputs = options.together(
    click.option("--out", default="masks", show_default=True, type=options.FOLDER, help="Where the masks go."),
    click.option(
        "--write",
        "kinds",
        default="mask",
        show_default=True,
        metavar="KIND[,KIND]...",
        help="What is written of each photo, such as mask,overlay,npy: all but masks into a folder beside OUT.",
    ),
    click.option(
        "--names",
        type=click.Choice(["stem", "full"]),
        default="stem",
        show_default=True,
        help="The mask of a/x.jpg is a/x.png; full: a/x.jpg.png, so that a/x.png has one too.",
    ),
    click.option("--overlay", is_flag=True, help="Also write photo and mask in one picture, into OUT-overlays."),
)


@click.command(short_help=__doc__)
@click.argument("inputs", nargs=-1, required=True, metavar="FOLDER|IMAGE|GLOB|LIST.txt...")
@options.model
@options.engine
@options.running
@_outputs
@options.as_json
def infer(
    *,
    inputs: tuple[str, ...],
    model: str | None,
    engine: str,
    device: str,
    cuda: str | None,
    cuda_graphs: bool,
    out: Path,
    kinds: str,
    names: str,
    overlay: bool,
    as_json: bool,
) -> None:
    """Masks for a folder of photographs; exit 5 if a file failed (the rest is done).

    Masks and overlays that segdeploy wrote are known as such and not segmented again.
    """
    from segdeploy import api
    from segdeploy.inference import outputs

    report = api.infer(
        inputs,
        out=out,
        model=model,
        engine=engine,
        device=device,
        options=options.run_options(cuda, cuda_graphs=cuda_graphs),
        write=outputs.parse(f"{kinds},overlay" if overlay else kinds),
        names=names,
        progress=bars.show_progress,
    )
    for failure in report.failed:
        click.echo(f"failed: {failure.reason}", err=True)
    rendering.show(report, as_json=as_json, lines=_lines(report))
    if report.interrupted:
        raise KeyboardInterrupt
    if report.failed:
        sys.exit(exit_codes.FAILED_IMAGES)


def _lines(report: "Report") -> Iterator[str]:
    skipped = f"{report.skipped} skipped (no images, or written by segdeploy)"
    yield f"{report.done} done, {len(report.failed)} failed, {skipped}: {report.out}"
    untrained = " (RANDOM weights: the masks mean nothing)" if report.random_weights else ""
    engine = f"{report.model}{untrained} in {report.runtime}:{report.precision} on {report.device}"
    yield f"{engine}, {report.seconds:.1f} s, {report.images_per_s:.1f} images/s"
    if report.done:
        split = ", ".join(f"{step} {ms:.1f}" for step, ms in dataclasses.asdict(report.cpu_ms_per_image).items())
        yield f"CPU ms per image: {split}; {report.cores} cores"


COMMAND = infer
