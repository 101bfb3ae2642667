"""Every way in which another network gets deployed, planted in a graph with an honest manifest: caught, and named.

The faults stand in the files, not in PyTorch: what is proven is what would have been shipped.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import without_header
from conftest import INT8_SATURATES, Run, known
from onnx import helper

import segdeploy
from segdeploy import artifact, blocks, interpolation, models, workspace
from segdeploy.artifact import Artifact
from segdeploy.engines import Engine, ort
from segdeploy.graphs.graph import Graph
from segdeploy.making import ExportOptions
from segdeploy.proving import ProofOptions
from segdeploy.quantization import search
from segdeploy.spec import Precision

SIDE = 160  # an eighth of it is 20, which 6 does not divide
EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei"
PICTURES = 3
ROOM = 0.002  # between what an int8 graph keeps and what is asked of it: no fault of a layer is that small
BISECT = ProofOptions(bisect=True)
Fault = Callable[[Graph], None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder in which a packaged network was exported in fp32, fp16 and int8, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            few = workspace.packaged_images()[: 2 * PICTURES]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made[name])
                patch.setattr(workspace, "packaged_images", lambda: few)
                patch.setattr(search, "LEAST_LOW_SHARE", 0.0)  # so small, and on so few images, much stays in float32
                segdeploy.export(name, options=ExportOptions(size=(SIDE, SIDE)))
                segdeploy.export(name, precision=Precision.FP16)
                segdeploy.export(name, precision=Precision.INT8, options=ExportOptions(min_agreement=0.9))
        return made[name]

    return folder


@pytest.fixture
def stand_in(exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go into a copy of such a folder, with a few real pictures to prove on."""
    few = workspace.packaged_images()[:PICTURES]

    def enter(name: str) -> None:
        shutil.copytree(exported(name), tmp_path / "work")
        monkeypatch.chdir(tmp_path / "work")
        monkeypatch.setattr(workspace, "packaged_images", lambda: few)

    return enter


def plant(fault: Fault, name: str, precision: Precision = Precision.FP32, form: str | None = None) -> Artifact:
    """Edit a graph, and give it the manifest that an exporter with that fault would have written."""
    honest = artifact.read(artifact.graph_path(workspace.EXPORTS, name, precision, form))
    graph = Graph(onnx.load(honest.path))
    fault(graph)
    onnx.save(graph.model, honest.path)
    faulty = dataclasses.replace(honest, sha256=artifact.sha256(honest.path), certificate=None)
    artifact.write_manifest(faulty)
    return faulty


def node(graph: Graph, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in graph.nodes if node.name == name)
    return found


def middle(graph: Graph) -> onnx.NodeProto:
    """Of the convolutions, the middle one: the last one's scale is that of the logits, it hardly moves a mask."""
    convolutions = [node for node in graph.convolutions() if node.op_type == "Conv"]
    return convolutions[len(convolutions) // 2]


def module(node: onnx.NodeProto) -> str:
    return node.name.rpartition("/")[0]


# The faults


def the_other_align_corners(graph: Graph) -> None:
    """On the last up-sampling alone: its two constant matrices."""
    right, wrong = (
        interpolation.interpolation_matrix(SIDE // 8, SIDE, align_corners=corners) for corners in (True, False)
    )
    for name in list(graph.constants):
        for turned in (right, right.T):
            value = graph.value(name)
            if value.shape == turned.shape and np.allclose(value, turned, atol=1e-6):
                graph.set_value(name, (wrong if turned is right else wrong.T).astype(np.float32))


def bgr_weights(graph: Graph) -> None:
    weight = graph.convolutions()[0].input[1]
    graph.set_value(weight, graph.value(weight)[:, ::-1].copy())


def bgr_images(graph: Graph) -> None:
    """What a pipeline built on OpenCV feeds."""
    graph.set_value("backwards", np.array([2, 1, 0]))
    first = next(node for node in graph.nodes if "images" in node.input)
    first.input[0] = "images/BGR"
    swap = helper.make_node("Gather", ["images", "backwards"], ["images/BGR"], name="planted/Gather", axis=3)
    graph.replace_nodes([swap, *graph.nodes])


def a_wrong_mean(graph: Graph) -> None:
    (mean,) = (name for name in node(graph, "deployed/Sub").input if name in graph.constants)
    graph.set_value(mean, np.full_like(graph.value(mean), 127.5))


def a_dropped_pooling_row(graph: Graph) -> None:
    """`avg_pool2d(k=int(size / out))` in place of `adaptive_avg_pool2d`, as MMDeploy exports it: 18 of 20 rows."""
    bins, size = 6, SIDE // 8
    kernel = size // bins
    dropped = np.zeros((bins, size))
    for row in range(bins):
        dropped[row, row * kernel : (row + 1) * kernel] = 1 / kernel
    for name in list(graph.constants):
        if graph.value(name).shape in {(bins, size), (size, bins)} and _pools(graph, name, bins, size):
            graph.set_value(name, (dropped if graph.value(name).shape[0] == bins else dropped.T).astype(np.float32))


def _pools(graph: Graph, name: str, bins: int, size: int) -> bool:
    right, value = blocks.pooling_matrix(size, bins), graph.value(name)
    return np.allclose(value if value.shape[0] == bins else value.T, right, atol=1e-6)


def an_equality_mask(graph: Graph) -> None:
    """`x == upsample(max)`: where a window ties, and flat windows of zeros do, every position gets the value."""
    pools = [node for node in graph.nodes if node.op_type == "SpaceToDepth"]
    unpools = [node for node in graph.nodes if node.op_type == "DepthToSpace"]
    zero = "planted/zero"
    graph.set_value(zero, np.zeros((), np.float32))
    masks: dict[str, list[onnx.NodeProto]] = {}
    for level, (pool, unpool) in enumerate(zip(pools, reversed(unpools), strict=True)):
        phases = list(graph.readers[pool.output[0]][0].output)
        concat = graph.producer[unpool.input[0]]
        above = graph.producer[graph.producer[concat.input[0]].input[2]]
        added = [helper.make_node("Max", phases, [f"planted/{level}/max"], name=f"planted/{level}/Max")]
        for index, phase in enumerate(phases):
            equal, kept = f"planted/{level}/{index}/equal", f"planted/{level}/{index}/kept"
            added.append(helper.make_node("Equal", [phase, f"planted/{level}/max"], [equal], name=equal))
            added.append(helper.make_node("Where", [equal, above.input[2], zero], [kept], name=kept))
            concat.input[index] = kept
        masks[concat.name] = added
    graph.replace_nodes([each for old in graph.nodes for each in (*masks.get(old.name, []), old)])


def twice_the_scale(graph: Graph) -> None:
    for name in middle(graph).input[1:]:
        graph.set_value(name, 2 * graph.value(name))


def second(graph: Graph) -> onnx.NodeProto:
    """Early in the network, where everything depends on it: an int8 graph may lose more than a middle layer moves."""
    return graph.convolutions()[1]


def twice_the_scale_of_int8_weights(graph: Graph) -> None:
    scale = graph.producer[second(graph).input[1]].input[1]
    graph.set_value(scale, 2 * graph.value(scale))


def twice_the_scale_of_int8_activations(graph: Graph) -> None:
    """Of the reading half alone: rounded on one grid, read on another."""
    reader = graph.producer[second(graph).input[0]]
    graph.set_value("planted/scale", 2 * graph.value(reader.input[1]))
    reader.input[1] = "planted/scale"


def layer_in_the_middle(graph: Graph) -> tuple[str, str, str]:
    return "layer", module(middle(graph)), ""


def first_layer(graph: Graph) -> tuple[str, str, str]:
    return "layer", module(graph.convolutions()[0]), ""


def before_the_first(graph: Graph) -> tuple[str, str, str]:
    return "before a layer", module(graph.convolutions()[0]), "deployed/Sub"


def in_the_decoder(_graph: Graph) -> tuple[str, str, str]:
    """Not in the deepest stage: what is un-pooled there is the maximum itself, and what ties there are zeros."""
    return "before a layer", "decoder.1.0.conv", "planted/3/3/kept"


Where = Callable[[Graph], tuple[str, str | None, str]]
FAULTS: list[tuple[str, Fault, Where]] = [
    ("pspnet", the_other_align_corners, lambda _: ("logits", None, "network/MatMul")),
    ("deeplabv3", the_other_align_corners, lambda _: ("logits", None, "network/MatMul")),
    *((name, bgr_weights, first_layer) for name in models.names()),
    *((name, bgr_images, lambda graph: (*before_the_first(graph)[:2], "planted/Gather")) for name in models.names()),
    *((name, a_wrong_mean, before_the_first) for name in models.names()),
    ("pspnet", a_dropped_pooling_row, lambda _: ("before a layer", "pyramid.levels.3.conv", "pyramid/MatMul")),
    ("segnet", an_equality_mask, in_the_decoder),
    *((name, twice_the_scale, layer_in_the_middle) for name in models.names()),
]


def fault_id(value: object) -> str:
    return getattr(value, "__name__", "") if callable(value) else str(value)


@pytest.mark.slow
@pytest.mark.parametrize("name,fault,where", FAULTS, ids=fault_id)
def test_a_planted_fault_is_caught_and_its_place_named(
    stand_in: Callable[[str], None], name: str, fault: Fault, where: Where
) -> None:
    stand_in(name)
    faulty = plant(fault, name)
    report = segdeploy.parity(name, engine="ort:fp32", options=BISECT)
    assert (report.passed, report.first_failing_stage) == (False, "graph")
    kind, layer, among = where(Graph(onnx.load(faulty.path)))
    found = known(report.departure)
    assert (found.stage, found.kind, found.layer) == ("graph", kind, layer)
    assert known(found.error) > 3 * found.tolerance
    assert (found.between is None) == (kind == "layer")
    assert any(each.startswith(among) for each in found.between or [""])
    assert found.image == report.stages[0].worst_images[0].image
    assert artifact.read(faulty.path).certificate == report


@pytest.mark.slow
@pytest.mark.parametrize("form", ["signed", "unsigned"])
@pytest.mark.parametrize("name", ["unet", "segnet"])
@pytest.mark.parametrize("fault", [twice_the_scale_of_int8_weights, twice_the_scale_of_int8_activations])
def test_a_scale_that_is_off_in_an_int8_graph_is_caught_and_named(
    stand_in: Callable[[str], None], name: str, form: str, fault: Fault
) -> None:
    stand_in(name)
    min_agreement = honest_agreement(name, form) - ROOM
    faulty = plant(fault, name, Precision.INT8, form)
    options = dataclasses.replace(BISECT, min_agreement=min_agreement)
    report = segdeploy.parity(faulty.path, engine="ort:int8", options=options)
    assert [stage.passed for stage in report.stages][:2] == [True, False]
    assert (report.first_failing_stage, report.limits.min_agreement) == ("graph", min_agreement)
    found = known(report.departure)
    of_weights = fault is twice_the_scale_of_int8_weights
    assert found.kind == ("layer" if of_weights else "before a layer")
    assert found.layer == module(second(Graph(onnx.load(faulty.path))))
    assert of_weights or any(each.endswith("DequantizeLinear") for each in known(found.between))
    assert known(found.error) > 3 * found.tolerance


def honest_agreement(name: str, form: str) -> float:
    """What the int8 graph without a fault keeps of the pixels that PyTorch decides."""
    path = artifact.graph_path(workspace.EXPORTS, name, Precision.INT8, form)
    return known(segdeploy.parity(path, engine="ort:int8").stages[1].decided_agreement)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort:fp32", "ov:fp32", "ort:fp16", "ov:fp16", "ort:int8", "ov:int8", "signed"])
@pytest.mark.parametrize("name", models.names())
def test_a_network_without_a_fault_passes_and_nothing_departs(
    stand_in: Callable[[str], None], name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SegNet among them: a near-tie in a pooling window moves a value in a right graph as well.

    On all the images that the budget was kept on: on a part of them a processor's fp16 may come out below it.
    """
    decided = workspace.packaged_images()[: 2 * PICTURES]
    stand_in(name)
    monkeypatch.setattr(workspace, "packaged_images", lambda: decided)
    model = f"export/{name}.int8-signed.onnx" if engine == "signed" else name
    named = "ort:int8" if engine == "signed" else engine
    report = segdeploy.parity(model, engine=named, device="cpu", options=BISECT)
    assert report.passed
    found = known(report.departure)
    if INT8_SATURATES and engine in {"ort:int8", "ov:int8"} and found.kind == "layer":
        return  # it does depart: a sum has saturated
    assert (found.kind, found.error) == ("none found", None)
    assert found.stage == ("graph" if engine == "signed" else "engine")
    layers = len(Graph(onnx.load(f"export/{name}.fp32.onnx")).convolutions())
    assert found.layers_compared == layers
    assert f"All {layers} layers" in found.text


# A stale engine


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_an_engine_that_runs_an_older_network_is_caught(
    stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """What a runtime's cache does that gives back an old blob: graph and manifest are right, the engine is not."""
    stand_in("unet")
    form = "unsigned" if precision is Precision.INT8 else None
    path = artifact.graph_path(workspace.EXPORTS, "unet", precision, form)
    older = Graph(onnx.load(path))
    (twice_the_scale_of_int8_weights if form else twice_the_scale)(older)

    def stale(file: Artifact, **_: Any) -> Engine:  # noqa: ANN401 - the options of an engine
        return ort.open(file, device="cpu", graph=older.model.SerializeToString())

    min_agreement = honest_agreement("unet", form) - ROOM if form else None
    monkeypatch.setattr("segdeploy.engines.open_engine", stale)
    options = dataclasses.replace(BISECT, min_agreement=min_agreement)
    report = segdeploy.parity("unet", engine=f"ort:{precision}", device="cpu", options=options)
    assert (report.passed, report.first_failing_stage, report.proven_to) == (False, "engine", "engine")
    found = known(report.departure)
    if INT8_SATURATES and precision is Precision.INT8 and found.kind == "layer":
        return  # the copy departs as well: a sum has saturated
    assert (found.stage, found.kind) == ("engine", "none found")
    assert "what the stage runs is not its graph" in found.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed,what",
    [("export/unet.fp32.onnx", "is not the file its manifest describes"), ("fp32", "no longer the graph that")],
)
def test_a_graph_that_changed_under_a_manifest_ends_with_3(
    stand_in: Callable[[str], None], run: Run, changed: str, what: str
) -> None:
    """The float32 graph without its manifest, and, with it, under the int8 graph that was made from it."""
    stand_in("unet")
    if changed == "fp32":
        plant(twice_the_scale, "unet")
        done = run("parity", "--model", "export/unet.int8-unsigned.onnx", "--engine", "ort:int8")
    else:
        graph = Graph(onnx.load(changed))
        twice_the_scale(graph)
        onnx.save(graph.model, changed)
        done = run("parity", "--model", "unet", "--engine", "ort:fp32")
    assert done.code == 3
    assert what in done.err


# On the command line


@pytest.mark.slow
def test_the_command_ends_with_4_and_says_where(stand_in: Callable[[str], None], run: Run) -> None:
    stand_in("segnet")
    plant(an_equality_mask, "segnet")
    done = run("parity", "--model", "segnet", "--engine", "ort:fp32", "--data", EXAMPLES, "--bisect", COLUMNS="120")
    assert (done.code, without_header(done.err)) == (4, "")
    assert "NOT the same from graph on: segnet on 20 images" in done.out
    assert "What decoder.1.0.conv reads is off by " in done.out
    assert "graph, classes: nucleus " in done.out
    assert "graph, worst images: " in done.out


@pytest.mark.slow
def test_an_export_with_a_fault_ends_with_4_and_names_the_next_command(
    stand_in: Callable[[str], None], run: Run
) -> None:
    """What failed its proof draws no masks for anybody; the remedy is the command that looks closer."""
    stand_in("unet")
    plant(bgr_weights, "unet")
    assert run("parity", "--model", "unet", "--engine", "ort:fp32").code == 4
    refused = run("infer", EXAMPLES / "images", "--model", "unet", "--engine", "ort:fp32")
    assert refused.code == 4
    remedy = refused.err.splitlines()[1]
    command = remedy.partition("segdeploy ")[2].split()
    assert command == ["parity", "--model", "export/unet.fp32.onnx", "--engine", "fp32", "--bisect"]
    looked = run(*command)
    assert looked.code == 4
    assert "The first layer that departs is down.0.0.conv" in looked.out
