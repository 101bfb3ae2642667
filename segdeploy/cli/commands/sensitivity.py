"""Which layers cost accuracy in low precision."""

from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli import bars, options, rendering

if TYPE_CHECKING:
    from rich.table import Table

    from segdeploy.quantization.sensitivity import Quality, Sensitivity, SensitivityReport

ORDER = 80


@click.command(short_help=__doc__)
@options.model
@click.option("--precision", type=options.Names(options.low_precisions), default="int8", show_default=True)
@options.data(help="Images to measure on; with masks, mIoU counts. Default: packaged ones.")
@options.force
@options.quantizing
@options.as_json
def sensitivity(*, model: str | None, precision: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - of ExportOptions
    """Rank the layers of a network: what each gives back when it alone stays in float32, and what that costs."""
    from segdeploy import api
    from segdeploy.making import ExportOptions

    report = api.sensitivity(model, precision=precision, options=ExportOptions(**given), progress=bars.show_progress)
    rendering.show(report, as_json=as_json, table=lambda: _table(report), lines=_lines(report))


def _lines(report: "SensitivityReport") -> list[str]:
    form = f" {report.form}" if report.form else ""
    where = f"{report.model} in {report.precision}{form}, {report.images} images, kept in {report.record}"
    return [f"all layers in low precision: {_quality(report.all_low)}", where]


def _quality(found: "Quality") -> str:
    drop = "" if found.miou_drop is None else f", {-found.miou_drop:+.3f} points of mIoU"
    return f"{found.agreement:.4%} of the decided pixels agree{drop}"


def _table(report: "SensitivityReport") -> "Table":
    unit = report.cost_unit
    table = rendering.table("layer kept in float32", "agreement", "change", "mIoU, points", f"costs, {unit}")
    for layer in report.layers:
        table.add_row(*_cells(layer, report))
    return table


def _cells(layer: "Sensitivity", report: "SensitivityReport") -> list[str]:
    found = layer.quality
    return [
        rendering.layer_name(layer.layer),
        f"{found.agreement:.4%}",
        f"{found.agreement - report.all_low.agreement:+.4%}",
        "-" if found.miou_drop is None else f"{-found.miou_drop:+.3f}",
        f"{layer.cost:.2f}" if report.cost_unit == "ms" else f"{layer.cost:,.0f}",
    ]


COMMAND = sensitivity
