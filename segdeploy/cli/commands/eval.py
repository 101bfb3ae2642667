"""Score an engine on a labelled folder."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from segdeploy.cli import bars, options, rendering

if TYPE_CHECKING:
    from segdeploy.data.dataset import DataFolder
    from segdeploy.fitting import Decode
    from segdeploy.proof.accuracy import Evaluation
    from segdeploy.spec import Fit

ORDER = 90


@click.command("eval", short_help=__doc__)
@options.model
@options.engine
@options.running
@options.data(required=True, help="Labelled folder, in any layout of docs/data.md.")
@options.fit
@options.decode
@options.force
@options.as_json
def evaluate(
    *,
    model: str | None,
    engine: str,
    device: str,
    cuda: str | None,
    cuda_graphs: bool,
    data: "DataFolder",
    fit: "Fit | None",
    overlap: int | None,
    decode: "Decode",
    force: bool,
    as_json: bool,
) -> None:
    """Score an engine: mIoU, pixel accuracy and IoU by class, at the size of the labels."""
    from segdeploy import api

    run = options.run_options(cuda, cuda_graphs=cuda_graphs)
    found = api.evaluate(
        model,
        data=data,
        engine=engine,
        device=device,
        options=run,
        fit=fit,
        overlap=overlap,
        decode=decode,
        force=force,
        progress=bars.show_progress,
    )
    rendering.show(found, as_json=as_json, lines=_lines(found))


def _lines(found: "Evaluation") -> Iterator[str]:
    untrained = " (RANDOM weights)" if found.random_weights else ""
    accuracy = "no pixels" if found.pixel_accuracy is None else f"pixel accuracy {found.pixel_accuracy:.4f}"
    where = f"{found.model}{untrained} in {found.runtime}, {found.images} images"
    yield f"{where}: {rendering.miou(found.miou)}, {accuracy}"
    yield from rendering.other_fit(found.fit, found.own_fit)
    if found.decode == "scaled":
        yield "With --decode scaled: of large JPEGs a smaller scale was decoded."
    for name, iou in found.classes.items():
        yield f"  {name}: {'absent' if iou is None else f'{iou:.4f}'}"


COMMAND = evaluate
