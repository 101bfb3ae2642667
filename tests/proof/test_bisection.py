"""Each layer and each piece between two is judged alone, so that a fault is blamed where it is and nowhere else."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import SPEC, known, photograph, photographs
from onnx import helper

import segdeploy
from segdeploy import artifact, engines, proving, typed_json
from segdeploy.certificate import Certificate, Departure
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import ort
from segdeploy.errors import InvalidRequestError, MissingRuntimeError
from segdeploy.graphs.graph import Graph
from segdeploy.making import ExportOptions
from segdeploy.proof import bisection
from segdeploy.proof.bisection import FLOAT32
from segdeploy.proving import ProofOptions

GRAPH = Path("export/unet.fp32.onnx")
TOLERANCE = FLOAT32.layer
RAW = functools.partial(ort.tensors, device="cpu", optimised=False)
LAYER = "down.2.0.conv/Conv"
NEXT = "down.2.1.conv/Conv"
Fault = Callable[[Graph], None]


@pytest.fixture
def graph(workspace: Path) -> Graph:
    """The small U-Net, to be edited."""
    return Graph(onnx.load(workspace / GRAPH))


def look(graph: Graph, run: bisection.Run = RAW) -> bisection.Look:
    network, _ = checkpoint.load(Path("checkpoints/unet.safetensors"))
    return bisection.look(network, SPEC, graph.model, photograph(64, 64), run=run)


def departing(found: bisection.Look) -> list[tuple[str, str | None]]:
    return [(step.kind, step.layer) for step in found.steps if step.error > step.tolerance(FLOAT32)]


def said(found: bisection.Look) -> Departure:
    return bisection.departure(found, stage="graph", rounding=FLOAT32, image="a.png", otherwise="nothing")


def node(graph: Graph, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in graph.nodes if node.name == name)
    return found


@pytest.mark.parametrize("runtime", ["ort", "ov"])
def test_a_right_graph_departs_nowhere_in_any_runtime(graph: Graph, runtime: str) -> None:
    """With every step in it: what each convolution reads and gives, the logits, the class map."""
    found = look(graph, functools.partial(engines.of_graphs(runtime).tensors, device="cpu"))
    convolutions = [node.name for node in graph.convolutions()]
    pairs = [(kind, name) for name in convolutions for kind in ("before a layer", "layer")]
    assert [(step.kind, step.layer) for step in found.steps] == [*pairs, ("logits", None), ("class map", None)]
    assert max(step.error for step in found.steps) < TOLERANCE / 20
    assert departing(found) == []
    assert (said(found).kind, said(found).text) == ("none found", "nothing")


@pytest.mark.parametrize("at", [0, 5, -1])
def test_a_wrong_layer_is_blamed_alone(graph: Graph, at: int) -> None:
    """What follows is given wrong values and does right by them: one fault, one departure."""
    layer = graph.convolutions()[at]
    graph.set_value(layer.input[1], 1.01 * graph.value(layer.input[1]))
    assert departing(look(graph)) == [("layer", layer.name)]


def test_two_wrong_layers_are_both_seen_and_the_first_is_named(graph: Graph) -> None:
    for name in (NEXT, LAYER):
        weight = node(graph, name).input[1]
        graph.set_value(weight, 2 * graph.value(weight))
    found = look(graph)
    assert departing(found) == [("layer", LAYER), ("layer", NEXT)]
    departure = said(found)
    assert (departure.layer, departure.between) == ("down.2.0.conv", None)
    assert 0.1 < (departure.error or 0) < 2
    assert departure.layers_compared == len(graph.convolutions())


def behind(graph: Graph, tensor: str, kind: str, *others: str) -> None:
    """Put a node between a tensor and all its readers."""
    planted = helper.make_node(kind, [tensor, *others], [f"{tensor}/planted"], name=f"planted/{kind}")
    for reader in graph.readers[tensor]:
        for index, name in enumerate(reader.input):
            reader.input[index] = f"{tensor}/planted" if name == tensor else name
    producer = graph.producer[tensor]
    graph.replace_nodes([each for old in graph.nodes for each in ([old, planted] if old == producer else [old])])


def test_what_is_wrong_between_two_layers_is_named_by_its_nodes(graph: Graph) -> None:
    pool = next(node for node in graph.nodes if node.op_type == "MaxPool")
    behind(graph, pool.output[0], "Neg")
    departure = said(look(graph))
    assert (departure.kind, departure.layer) == ("before a layer", "down.1.0.conv")
    assert departure.between == (pool.name, "planted/Neg")
    assert f"{pool.name}, planted/Neg" in departure.text


def test_a_relu_too_many_is_seen_though_it_could_be_fused(graph: Graph) -> None:
    """Behind a transposed convolution, which has none: what it rectifies away is missed by the next layer."""
    rise = node(graph, "rise.0/ConvTranspose")
    behind(graph, rise.output[0], "Relu")
    assert departing(look(graph)) == [("before a layer", "up.0.0.conv/Conv")]


def test_a_missing_relu_is_seen(graph: Graph) -> None:
    relu = graph.readers[node(graph, LAYER).output[0]][0]
    node(graph, NEXT).input[0] = relu.input[0]
    found = look(graph)
    assert departing(found) == [("before a layer", NEXT)]
    assert said(found).text.endswith("Nothing stands between them: a node is missing.")


def test_a_class_map_that_is_not_the_argmax_is_seen(graph: Graph) -> None:
    argmax = next(node for node in graph.nodes if node.op_type == "ArgMax")
    graph.set_value("one", np.array(1))
    behind(graph, argmax.output[0], "BitwiseXor", "one")
    departure = said(look(graph))
    assert (departure.kind, departure.layer, departure.error) == ("class map", None, 1.0)
    assert departure.tolerance == bisection.WRONG_CLASSES
    assert known(departure.between)[:2] == (argmax.name, "planted/BitwiseXor")


def test_another_shape_is_a_departure_that_json_can_hold(graph: Graph) -> None:
    """No error can be said of maps of different sizes: it is null."""
    weight, bias = node(graph, "classifier/Conv").input[1:]
    graph.set_value(weight, np.concatenate([graph.value(weight)] * 2))
    graph.set_value(bias, np.concatenate([graph.value(bias)] * 2))
    found = look(graph)
    assert departing(found) == [("layer", "classifier/Conv"), ("logits", None)]
    departure = said(found)
    assert (departure.layer, departure.error) == ("classifier", None)
    assert "of another shape" in departure.text
    assert typed_json.to_builtins(departure)["error"] is None


def test_what_is_no_number_is_a_departure(graph: Graph) -> None:
    weight = node(graph, LAYER).input[1]
    graph.set_value(weight, np.full_like(graph.value(weight), np.nan))
    found = look(graph)
    assert departing(found)[0] == ("layer", LAYER)
    assert math.isinf(next(step.error for step in found.steps if step.layer == LAYER and step.kind == "layer"))


def test_a_layer_without_its_name_is_passed_over(graph: Graph) -> None:
    """A graph that was edited elsewhere: the layers that still bear their names are compared."""
    node(graph, LAYER).name = "renamed"
    found = look(graph)
    assert departing(found) == []
    assert found.layers == len(graph.convolutions()) - 1


def test_the_graph_that_is_looked_into_is_left_as_it_is(graph: Graph) -> None:
    before = graph.model.SerializeToString(deterministic=True)
    look(graph)
    assert graph.model.SerializeToString(deterministic=True) == before


# What is said where nothing departs


def drawn(*, by_copy: int, by_stage: int, passed: bool = False) -> str:
    expected, copy, stage = (np.zeros((8, 8), np.uint8) for _ in range(3))
    copy.flat[:by_copy] = 1
    stage.flat[:by_stage] = 1
    step = bisection.Step("layer", LAYER, 0.0, [LAYER])
    return bisection.none_found(bisection.Look([step], copy), stage, expected, passed=passed)


def test_a_stage_that_draws_what_its_copy_does_not_runs_something_else() -> None:
    assert "in 1 pixels, the stage's own in 20: what the stage runs is not its graph" in drawn(by_copy=1, by_stage=20)
    assert "rounding that adds up" in drawn(by_copy=19, by_stage=20)
    assert drawn(by_copy=0, by_stage=20, passed=True).endswith("give what PyTorch gives.")


# Through `parity`


@pytest.fixture
def photos(workspace: Path) -> Path:
    photographs(workspace, *(f"photos/images/{name}.png" for name in "abc"))
    return workspace / "photos"


def edited(path: Path, fault: Fault) -> None:
    honest = artifact.read(path)
    graph = Graph(onnx.load(path))
    fault(graph)
    onnx.save(graph.model, path)
    artifact.write_manifest(dataclasses.replace(honest, sha256=artifact.sha256(path)))


def turned(graph: Graph) -> None:
    weight = node(graph, LAYER).input[1]
    graph.set_value(weight, -graph.value(weight))


def looked_into(photos: Path, model: str = "unet", engine: str = "ort:fp32") -> Certificate:
    return segdeploy.parity(model, engine=engine, data=photos, options=ProofOptions(bisect=True))


def test_a_graph_of_logits_is_looked_into_as_well(workspace: Path, photos: Path) -> None:
    segdeploy.export("unet", options=ExportOptions(output="logits", data=photos))
    path = workspace / "export/unet.fp32.logits.onnx"
    edited(path, turned)
    departure = known(looked_into(photos, str(path)).departure)
    assert (departure.kind, departure.layer) == ("layer", "down.2.0.conv")


def test_without_bisect_there_is_no_departure(photos: Path) -> None:
    edited(GRAPH, turned)
    assert segdeploy.parity("unet", engine="ort:fp32", data=photos).departure is None


def test_the_worst_image_is_looked_at(photos: Path) -> None:
    edited(GRAPH, turned)
    report = looked_into(photos)
    worst = report.stages[0].worst_images
    assert known(report.departure).image == worst[0].image
    assert worst[0].differing_pixels == max(each.differing_pixels for each in worst)


def test_what_is_certified_is_not_what_is_looked_into(photos: Path) -> None:
    """The copy with its layers visible is never written, and the proof is of the file as it was."""
    before = GRAPH.read_bytes()
    report = looked_into(photos)
    assert GRAPH.read_bytes() == before
    assert [path.name for path in GRAPH.parent.glob("*.onnx")] == [GRAPH.name]
    assert report.stages == segdeploy.parity("unet", engine="ort:fp32", data=photos).stages


def test_pytorch_has_no_graph_to_look_into(photos: Path) -> None:
    with pytest.raises(InvalidRequestError, match="torch runs a checkpoint"):
        looked_into(photos, engine="torch:fp32")


def test_a_required_engine_that_is_none_here_is_said_before_the_work(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signed int8 form is TensorRT's: without it the graph alone can be proven, and a gate may not take that."""
    options = ExportOptions(forms=["signed"], calibrate=photos, data=photos, min_agreement=0.8)
    segdeploy.export("unet", precision="int8", options=options)
    signed = "export/unet.int8-signed.onnx"
    assert segdeploy.parity(signed, engine="int8", data=photos).proven_to == "graph"
    monkeypatch.setattr(proving, "judge", lambda *_, **__: pytest.fail("proved"))
    with pytest.raises(MissingRuntimeError, match="computes the signed form"):
        segdeploy.parity(signed, engine="int8", data=photos, options=ProofOptions(require_engine=True))
