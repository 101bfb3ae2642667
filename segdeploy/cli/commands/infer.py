"""Masks for a folder of photographs."""

import sys
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli import bars, exit_codes, folder_reports, options, rendering

if TYPE_CHECKING:
    from segdeploy.inference.report import Report

ORDER = 100
_outputs = options.together(
    click.option(
        "--out",
        default="masks",
        show_default=True,
        type=click.Path(file_okay=False),
        help="Where the masks go; s3://, gs:// or az:// where the photos are there too (extra: stores).",
    ),
    click.option(
        "--write",
        "kinds",
        default="mask",
        show_default=True,
        metavar="KIND[,KIND]...",
        help="What is written of each photo: mask, overlay, side (photo beside overlay), npy, rle (COCO's run "
        "lengths), geojson, svg (polygons), tiff (GeoTIFF); all but masks into a folder beside OUT.",
    ),
    click.option(
        "--names",
        type=click.Choice(["stem", "full"]),
        default="stem",
        show_default=True,
        help="The mask of a/x.jpg is a/x.png; full: a/x.jpg.png, so that a/x.png has one too.",
    ),
    click.option("--overlay", is_flag=True, help="Also write the photo tinted with its classes, into OUT-overlays."),
    click.option(
        "--opacity",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        help="Of the colours in overlay and side: 0 leaves the photo as it is, 1 covers it.",
    ),
    click.option(
        "--values",
        type=click.Choice(["index", "original"]),
        default="index",
        show_default=True,
        help="What masks and npy hold: the index of the class, or its value in the masks of its data set, such as "
        "Cityscapes' label ids.",
    ),
)
_which = options.together(
    click.option(
        "--include", multiple=True, metavar="PATTERN", help="Only files of such names, paths or folders: *.jpg, night."
    ),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these, whatever --include says."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Segment at most N images."),
    click.option("--shard", metavar="I/N", help="The I-th of N runs that share the folder, on any machines."),
    click.option("--dry-run", is_flag=True, help="Count what there is to do, and make no mask."),
)
_again = options.together(
    click.option("--again", is_flag=True, help="Make everything, also what an earlier run made of the same files."),
    click.option("--retry-failed", is_flag=True, help="Try files again that an earlier run could not read."),
    click.option(
        "--verify", is_flag=True, help="Read every file to see whether it changed; else its size, inode and times tell."
    ),
    click.option("--fail-fast", is_flag=True, help="Stop at the first file that fails in this run."),
)


_ray = options.together(
    click.option(
        "--ray",
        metavar="ADDRESS|local",
        help="Ray's actors make the images: on this machine, or on a cluster that sees the same files (extra: ray).",
    ),
    click.option(
        "--ray-actors",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many, each with one engine. Default: one for each GPU, else for each core.",
    ),
)
_photos = options.together(
    options.fit,
    options.decode,
    click.option(
        "--workers", type=click.IntRange(min=1), metavar="N", help="Images at work at once. Default: one for each core."
    ),
)


@click.command(short_help=__doc__)
@click.argument("inputs", nargs=-1, required=True, metavar="FOLDER|IMAGE|GLOB|LIST.txt|URL|-...")
@options.model
@options.engine
@options.running
@_outputs
@_which
@_again
@_photos
@_ray
@options.as_json
def infer(
    *,
    inputs: tuple[str, ...],
    model: str | None,
    engine: str,
    device: str,
    cuda: str | None,
    cuda_graphs: bool,
    out: str,
    kinds: str,
    names: str,
    overlay: bool,
    as_json: bool,
    **folder: Any,  # noqa: ANN401 - the fields of FolderOptions, each of its own type
) -> None:
    """Masks for a folder of photographs; exit 5 if a file failed (the rest is done).

    A run that was stopped goes on where it stood: OUT/.segdeploy keeps its journal, failed.jsonl and summary.json.
    """
    from segdeploy import FolderOptions, api

    report = api.infer(
        inputs,
        out=out,
        model=model,
        engine=engine,
        device=device,
        options=options.run_options(cuda, cuda_graphs=cuda_graphs),
        write=_kinds(kinds, overlay=overlay),
        names=names,
        folder=FolderOptions(**folder),
        progress=bars.show_progress,
    )
    _end(report, as_json=as_json)


def _kinds(text: str, *, overlay: bool) -> tuple[str, ...]:
    from segdeploy.inference import outputs

    return outputs.parse(f"{text},overlay" if overlay else text)


def _end(report: "Report", *, as_json: bool) -> None:
    """Say what became of the folder; leave with the exit code of that."""
    for failure in report.failed:
        click.echo(f"failed: {failure.reason}", err=True)
    rendering.show(report, as_json=as_json, lines=folder_reports.lines(report))
    if report.interrupted:
        raise KeyboardInterrupt
    if report.failed or report.failed_before:
        sys.exit(exit_codes.FAILED_IMAGES)


COMMAND = infer
