"""Take a checkpoint that another program wrote for one of the four networks."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli import options, rendering

if TYPE_CHECKING:
    from segdeploy.checkpoints.foreign import ImportOptions
    from segdeploy.importing import ImportReport

ORDER = 15


@click.command("import", short_help=__doc__)
@click.argument("file", type=options.FILE)
@click.option("--name", required=True, help="What the network is called from then on; --model takes it everywhere.")
@click.option(
    "--classes",
    metavar="NAMES|FILE",
    help="Names by index with commas between, or a classes.csv. Default: the file's own, else a guess by their count.",
)
@options.size(help="Network input. Default: what the family is customarily run at.")
@click.option(
    "--option",
    "variant",
    multiple=True,
    metavar="KEY=VALUE",
    callback=options.parsed_variant,
    help="A convention that the file does not tell, such as stride_in=1x1; the report lists them. Repeat for more.",
)
@click.option(
    "--part", metavar="KEY", help="Which network, where the file holds several, such as an average of weights."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier network of that name.")
@click.option("--force", is_flag=True, help="Leave tensors out that the network does not have.")
@options.as_json
def import_(*, file: Path, name: str, overwrite: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - of ImportOptions
    """Write FILE as checkpoints/NAME.safetensors: torchvision, semseg, mmsegmentation, milesial's U-Net, Caffe SegNet.

    Which network it is, is read from its tensors; nothing in the file is run. docs/own-network.md shows the way from
    there to a proven engine.
    """
    from segdeploy import api

    report = api.import_checkpoint(file, name=name, options=_options(**given), overwrite=overwrite)
    rendering.show(report, as_json=as_json, lines=_lines(report))


def _options(*, classes: str | None, **given: Any) -> "ImportOptions":  # noqa: ANN401 - the others of ImportOptions
    from segdeploy.checkpoints.foreign import ImportOptions
    from segdeploy.data import class_table

    if classes is None:
        return ImportOptions(**given)
    if classes.endswith(".csv"):
        table = class_table.read(Path(classes))
        return ImportOptions(classes=table.names, colours=table.colours, **given)
    return ImportOptions(classes=tuple(name.strip() for name in classes.split(",")), **given)


def _lines(report: "ImportReport") -> Iterator[str]:
    spec, keys = report.spec, report.keys
    variant = ", ".join(f"{key}={value}" for key, value in spec.variant.items())
    yield f"{report.checkpoint}: {keys.family}, a {spec.model} ({variant or 'as by default'})"
    yield f"  {len(spec.classes)} classes (from {keys.classes_from}): {', '.join(spec.classes[:4])}"
    yield f"  {spec.height}x{spec.width}, RGB, mean {_three(spec.mean)}, deviation {_three(spec.std)} of 0..1"
    if keys.wrapping:
        yield f"  unwrapped: {', '.join(keys.wrapping)}"
    counts = {"taken": keys.taken, "renamed": keys.renamed, "missing": keys.missing, "left over": keys.left_over}
    yield f"  tensors: {', '.join(f'{len(found)} {what}' for what, found in counts.items())}"
    yield from (f"    missing: {name}" for name in keys.missing)
    yield from (f"    left over: {name}" for name in keys.left_over)
    if keys.assumed:
        assumed = ", ".join(f"{key}={value}" for key, value in keys.assumed.items())
        yield f"  the file does not tell, so as published: {assumed} (else: --option)"


def _three(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


COMMAND = import_
