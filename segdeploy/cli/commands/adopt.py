"""Make a deployed graph of a network somebody else trained."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segdeploy.cli import bars, certificates, options, rendering

if TYPE_CHECKING:
    from rich.table import Table

    from segdeploy.adopting.options import Adopted
    from segdeploy.certificate import Certificate
    from segdeploy.origin import GraphReading
    from segdeploy.proof import conventions

ORDER = 15


@dataclasses.dataclass(frozen=True, slots=True)
class TriedPreprocessing:
    """A customary preprocessing, and the mIoU of the network with it on labelled images, in 0..1."""

    name: str
    miou: float


@dataclasses.dataclass(frozen=True, slots=True)
class AdoptReport:
    """The deployed graph, how the original is read, and who says how its images are prepared.

    `tried`: every customary preprocessing, best first, where labelled images decided.
    """

    schema: Literal[1]
    path: Path
    sha256: str
    classes: tuple[str, ...]
    reading: "GraphReading"
    preprocessing_from: str
    notes: tuple[str, ...]
    tried: tuple[TriedPreprocessing, ...]
    parity: "Certificate | None"


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # click 8.2 takes no argument there
    """Numbers with commas, such as 0.485,0.456,0.406."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:  # noqa: ANN401 - click's signature
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(self._kind(each) for each in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers, such as 0.485,0.456,0.406.", param, ctx)


_NUMBERS: dict[str, Any] = {"type": _Numbers(float), "default": (), "metavar": "N[,N,N]"}
_network = options.together(
    click.option("--name", required=True, metavar="NAME", help="What it is called from then on: --model NAME."),
    options.size(help="Network input, where the file takes any size."),
    options.fit,
    click.option(
        "--classes", metavar="NAMES|FILE|COUNT", help="With commas, or a file: classes.csv, or a name a line."
    ),
    click.option(
        "--class-values",
        type=_Numbers(int),
        default=(),
        metavar="N,N,...",
        help="Of a class map: the value of each class, where those are no indices.",
    ),
    click.option("--output-name", metavar="NAME", help="The output that is the mask. Default: the finest one."),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        show_default=True,
        help="Of sigmoid channels: the probability above which a pixel is of a class.",
    ),
)
_preprocessing = options.together(
    click.option("--preset", metavar="imagenet|0..1|-1..1|0..255", help="How an image's values are prepared."),
    click.option("--scale", type=float, help="(pixel x SCALE - MEAN) / DEVIATION, of pixels in 0..255. Default: 1."),
    click.option("--mean", **_NUMBERS, help="One value, or one a channel. Default: 0."),
    click.option("--deviation", **_NUMBERS, help="One value, or one a channel. Default: 1."),
    click.option(
        "--channels", type=click.Choice(["rgb", "bgr"]), help="The order that the network takes. Default: rgb."
    ),
)
_images = options.together(
    options.data(
        help="Images to prove it on; with masks/, they find the preprocessing where nothing says it.",
    ),
    click.option("--calibrate", type=options.FOLDER, help="Images without labels to prove it on."),
    options.force,
    options.allow_inconclusive,
    click.option(
        "--proof-kit/--no-proof-kit",
        default=True,
        show_default=True,
        help="Write the proof's images and right masks beside the graph: any machine can then prove it.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the graph that was adopted under that name."),
)


@click.command(short_help=__doc__)
@click.argument("network", metavar="FILE|FOLDER|MODULE:BUILD")
@click.option("--weights", type=options.FILE, help="Of MODULE:BUILD: .safetensors, .pth, .pt, .ckpt or .npz.")
@_network
@_preprocessing
@_images
@options.as_json
def adopt(*, network: str, name: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - of AdoptOptions
    """Make a deployed graph (image in, class map out) of a segmentation network that somebody else trained.

    It is an ONNX FILE, a program of torch.export (.pt2), a TorchScript archive, a FOLDER that transformers or
    segmentation_models.pytorch saved, or package.module:build, code that builds a torch module: that code is run.

    The original, run in ONNX Runtime or PyTorch, is what its masks are compared with; it is `--model NAME` everywhere.
    Without images the graph is unproven. How images are prepared is what --preset, or --scale, --mean and --deviation,
    say; else what the file or one beside it says; else labelled --data finds it, with a table. It is never guessed.
    """
    from segdeploy import api
    from segdeploy.adopting.options import AdoptOptions, UndecidedError

    try:
        found = api.adopt(network, name=name, options=AdoptOptions(**given), progress=bars.show_progress)
    except UndecidedError as error:
        if not as_json:
            rendering.show(None, as_json=False, lines=(), table=functools.partial(_table, error.table))
        raise
    rendering.show(
        _report(found),
        as_json=as_json,
        lines=_lines(found),
        table=None if found.table is None else lambda: _table(found.table),
    )


def _report(found: "Adopted") -> AdoptReport:
    graph, foreign = found.graph, found.graph.origin.foreign
    assert foreign is not None  # noqa: S101 - of an adopted graph
    return AdoptReport(
        schema=1,
        path=graph.path,
        sha256=graph.sha256,
        classes=graph.spec.classes,
        reading=foreign.reading,
        preprocessing_from=found.source,
        notes=found.notes,
        tried=tuple(TriedPreprocessing(*row) for row in _rows(found.table)),
        parity=graph.certificate,
    )


def _lines(found: "Adopted") -> list[str]:
    graph = found.graph
    unproven = f"  unproven: it came without images. Prove it: segdeploy parity --model {graph.spec.name} --data DIR"
    proof = unproven if graph.certificate is None else f"  {certificates.verdict_line(graph.certificate)}"
    notes = (f"  {note}" for note in found.notes)
    return [rendering.artifact_line(graph), f"  preprocessing: {_said(found)} ({found.source})", *notes, proof]


def _said(found: "Adopted") -> str:
    foreign = found.graph.origin.foreign
    assert foreign is not None  # noqa: S101 - of an adopted graph
    how = foreign.reading.preprocessing
    mean, deviation = (",".join(f"{value:g}" for value in values) for values in (how.mean, how.deviation))
    spread = ", each image's values over 0..255 before" if how.stretched else ""
    return f"(pixel x {how.scale:.6g} - {mean}) / {deviation}, {how.channels}{spread}"


def _rows(table: "conventions.Table | None") -> list[tuple[str, float]]:
    return [(score.convention.name, score.miou) for score in table.scores] if table is not None else []


def _table(table: "conventions.Table | None") -> "Table":
    made = rendering.table("preprocessing", "mIoU")
    for name, miou in _rows(table):
        made.add_row(name, f"{miou:.4f}")
    return made


COMMAND = adopt
