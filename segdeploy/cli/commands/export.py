"""Write the deployed graph, in fp32 or low precision, and prove it."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segdeploy.cli import bars, certificates, options, rendering
from segdeploy.errors import InvalidRequestError

if TYPE_CHECKING:
    from segdeploy.artifact import Artifact
    from segdeploy.certificate import Certificate
    from segdeploy.low_precision import Executed

ORDER = 20
FP32 = "fp32"
OF_LOW_PRECISION = {"forms", "calibrate", "method", "cache", "max_drop", "min_agreement"}
NAMED = 5  # layers in a line
SPELLED = {"forms": "form", "method": "calibration-method", "cache": "calibration-cache"}


@dataclasses.dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A graph that was written. `in_float`, `asked` and `delivered` are of low precision (`LowPrecision`)."""

    path: Path
    sha256: str
    precision: str
    form: str | None
    size_mb: float
    in_float: Mapping[str, str] | None
    asked: Mapping[str, float] | None
    delivered: "Mapping[str, Executed] | None"
    parity: "Certificate | None"


@dataclasses.dataclass(frozen=True, slots=True)
class ExportReport:
    """One graph, or one for each form."""

    schema: Literal[3]
    graphs: tuple[ExportedGraph, ...]


_network = options.together(
    click.option(
        "--precision",
        type=options.Names(lambda: [FP32, *options.low_precisions()]),
        default=FP32,
        show_default=True,
        help="Of the graph.",
    ),
    click.option(
        "--weights",
        metavar="PATH|random",
        help="Default: what training left in checkpoints/, else the packaged. Also what `segdeploy import` takes.",
    ),
    click.option("--name", help="With --weights FILE: what a foreign checkpoint is called and kept as."),
    options.size(help="Network input. Default: the size it was trained at."),
    options.fit,
    click.option("--output", type=click.Choice(["class_map", "logits"]), default="class_map", show_default=True),
    options.variant,
    options.data(
        help="Images to prove it on; with masks, mIoU counts. Default: packaged ones for packaged weights, else those "
        "that training validated on.",
    ),
    options.allow_inconclusive,
    click.option(
        "--proof-kit/--no-proof-kit",
        default=True,
        show_default=True,
        help="Write the proof's images and right masks beside the graph: any machine can then prove it.",
    ),
    options.force,
)
_budget = options.together(
    options.max_drop(help="mIoU that may be lost, with --data. Default: the precision's own, such as 0.5 (int8)."),
    options.agreement(help="Pixels that must agree with PyTorch. Default: the precision's own, such as 0.98 (int8)."),
)


@click.command(short_help=__doc__)
@click.option("--model", metavar="NAME", help="Network to use. Default: what --weights FILE holds.")
@_network
@options.quantizing
@_budget
@options.as_json
def export(*, model: str | None, precision: str, output: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - of ExportOptions
    """Write the deployed graph (image in, class map out) and prove that it draws PyTorch's masks.

    A graph of low precision is made from the fp32 graph inside an accuracy budget: layers that cost too much stay in
    float32. Exit 4 where less than half of all multiply-adds would be in that precision.
    """
    from segdeploy import api
    from segdeploy.making import ExportOptions

    if precision == FP32:
        *others, last = options.low_precisions()
        low = {name: value for name, value in given.items() if name in OF_LOW_PRECISION}
        _require_none(low, f"--precision {', '.join(others)} or {last}")
    else:
        _require_none({"output": None if output == "class_map" else output}, f"--precision {FP32}")
    asked = ExportOptions(output=output, **given)
    graphs = api.export(model, precision=precision, options=asked, progress=bars.show_progress)
    lines = (line for graph in graphs for line in _lines(graph))
    rendering.show(ExportReport(3, tuple(map(_exported, graphs))), as_json=as_json, lines=lines)


def _require_none(given: Mapping[str, Any], owner: str) -> None:
    """Refuse options that mean nothing for the precision that was asked for."""
    for name, value in given.items():
        if value not in {None, ()}:
            spelled = SPELLED.get(name, name.replace("_", "-"))
            raise InvalidRequestError(f"--{spelled} belongs to {owner}.", "Leave it out, or change --precision.")


def _exported(graph: "Artifact") -> ExportedGraph:
    low = graph.low_precision
    return ExportedGraph(
        path=graph.path,
        sha256=graph.sha256,
        precision=graph.precision,
        form=graph.form,
        size_mb=graph.path.stat().st_size / 1e6,
        in_float=None if low is None else low.in_float,
        asked=None if low is None else low.asked,
        delivered=None if low is None else low.executed,
        parity=graph.certificate,
    )


def _lines(graph: "Artifact") -> Iterator[str]:
    yield rendering.artifact_line(graph)
    if (low := graph.low_precision) is not None:
        yield from (f"  float32: {line}" for line in _by_reason(low.in_float))
        shares = ", ".join(f"{share:.1%} {kind}" for kind, share in low.asked.items())
        computed = [
            f"{runtime} computes {found.delivered_share:.0%} of it in {graph.precision}"
            for runtime, found in low.executed.items()
            if found.delivered_share is not None
        ]
        yield f"  multiply-adds: {'; '.join([shares, *computed])}"
    yield f"  {certificates.verdict_line(graph.certificate)}"


def _by_reason(in_float: Mapping[str, str]) -> Iterator[str]:
    """The layers that stay in float32, those with one reason in one line."""
    for reason in dict.fromkeys(in_float.values()):
        layers = [rendering.layer_name(layer) for layer, why in in_float.items() if why == reason]
        more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
        yield f"{', '.join(layers[:NAMED])}{more} ({reason})"


COMMAND = export
