"""One page that says which engine to ship."""

from pathlib import Path

import click

from segdeploy.cli import options, rendering

ORDER = 70


@click.command(short_help=__doc__)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULTS.json...")
@click.option("--out", default="report.html", show_default=True, type=options.FILE, help="Where the page goes.")
@click.option("--title", help="Its heading. Default: Which engine to ship.")
@options.as_json
def report(*, results: tuple[Path, ...], out: Path, title: str | None, as_json: bool) -> None:
    """One HTML file from the results of `segdeploy bench --save`: the verdict, charts, masks to compare, the proof.

    It asks nothing of any network, and stays below 5 MB.
    """
    from segdeploy import api

    written = api.report(results, out=out, title=title)
    count = len(written.subjects)
    engines = "1 engine" if count == 1 else f"{count} engines"
    rendering.show(written, as_json=as_json, lines=[f"{written.path}  {written.size_mb:.2f} MB  {engines}"])


COMMAND = report
