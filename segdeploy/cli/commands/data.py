"""Check a labelled folder, or convert it to our own layout."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segdeploy.cli import bars, options, rendering

if TYPE_CHECKING:
    from segdeploy.data.check import DataReport
    from segdeploy.data.dataset import DataFolder

ORDER = 5
NO_JSON = "it only groups commands, which print theirs"
BRIGHTEST = 255
_ignore_index = click.option("--ignore-index", default=255, show_default=True, type=click.IntRange(0, 255))


@click.group(short_help=__doc__)
def data() -> None:
    """Check a labelled folder, or convert it to our own layout.

    \b
      segdeploy data check DIR                    what is in it, and what is wrong with it
      segdeploy data convert DIR --out NEW        images/, masks/ and lists out of any layout of docs/data.md
      segdeploy data convert DIR/colours --out DIR/masks --void 0,0,0
                                                  class indices by the colours of DIR/classes.csv
    """  # noqa: D301 - a raw string would not hold click's mark


@data.command(short_help="Say what a labelled folder holds, and what is wrong with it.")
@options.data_argument("folder")
@_ignore_index
@options.force
@options.as_json
def check(*, folder: "DataFolder", ignore_index: int, force: bool, as_json: bool) -> None:
    """Say what FOLDER holds and what is wrong with it; exit 3 where something is.

    `train`, `eval`, `export`, `parity`, `bench` and `sensitivity` check their --data in the same way. docs/data.md says
    which faults are errors and which are warnings.
    """
    from segdeploy import api
    from segdeploy.data.check import refusal

    report = api.check_data(folder, ignore_index=ignore_index, progress=bars.show_progress)
    rendering.show(report, as_json=as_json, lines=_lines(report))
    if stopping := report.stopping(force=force):
        raise refusal(stopping, folder.path)


def _lines(report: "DataReport") -> Iterator[str]:
    yield from report.header()
    for fault in report.faults:
        yield f"{fault.severity}: {fault.what}"
        yield f"  {fault.remedy}"
    if not report.faults:
        yield "nothing is wrong with it"


def _colours(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> list[tuple[int, int, int]]:
    """`0,0,0` -> (0, 0, 0)."""
    found = [re.fullmatch(r"([0-9]{1,3}),([0-9]{1,3}),([0-9]{1,3})", value) for value in values]
    for value, colour in zip(values, found, strict=True):
        if colour is None or max(map(int, colour.groups())) > BRIGHTEST:
            raise click.BadParameter(f"{value!r} is no R,G,B of 0 to {BRIGHTEST}, such as 0,0,0.")
    return [(int(colour[1]), int(colour[2]), int(colour[3])) for colour in found if colour is not None]


@data.command(short_help="Convert a labelled folder to our own layout, or masks in colours to index masks.")
@options.data_argument("source")
@click.option("--out", required=True, type=options.FOLDER, help="Where it goes; nothing is written over.")
@click.option("--classes", type=options.FILE, help="Of masks in colours. Default: classes.csv beside their folder.")
@click.option(
    "--void",
    multiple=True,
    metavar="R,G,B",
    callback=_colours,
    help="A colour to ignore, of masks in colours. Repeat for more.",
)
@click.option("--void-others", is_flag=True, help="Ignore every colour that the table does not name.")
@_ignore_index
@options.as_json
def convert(
    *,
    source: "DataFolder",
    out: Path,
    classes: Path | None,
    void: Sequence[tuple[int, int, int]],
    void_others: bool,
    ignore_index: int,
    as_json: bool,
) -> None:
    """Write SOURCE, a labelled folder of any layout, into OUT as one of ours: images/, masks/, lists and classes.csv.

    Where SOURCE is a folder of masks in colours, an index PNG is written into OUT for each: a class is its line in
    classes.csv. Void is 255.
    """
    from segdeploy import api
    from segdeploy.data.convert import ConvertOptions

    asked = ConvertOptions(classes=classes, ignore_index=ignore_index, void=void, void_others=void_others)
    made = api.convert_masks(source, out=out, options=asked, progress=bars.show_progress)
    total = max(1, made.ignored + sum(made.pixels.values()))
    shares = [f"{name} {pixels / total:.1%}" for name, pixels in {**made.pixels, "ignored": made.ignored}.items()]
    rendering.show(made, as_json=as_json, lines=[f"{made.masks} masks in {out}: {', '.join(shares)}"])


COMMAND = data
