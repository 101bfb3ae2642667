"""`parity --bisect` on an adopted network whose float32 graph is not what was adopted: it says from where on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch_networks as networks
from conftest import Run
from foreign_graphs import Foreign, noise
from onnx import helper
from torch_networks import built

import segdeploy
from segdeploy import artifact
from segdeploy.adopting.options import AdoptOptions
from segdeploy.certificate import Departure
from segdeploy.errors import GateFailedError, InvalidRequestError
from segdeploy.graphs.graph import Graph
from segdeploy.proving import ProofOptions

Fault = Callable[[Graph], None]
IMAGENET = AdoptOptions(preset="imagenet")
BISECT = ProofOptions(bisect=True)
FP32, FP16 = Path("export/mine.fp32.onnx"), Path("export/mine.fp16.onnx")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def adopted(foreign: Foreign) -> Path:
    """Adopt a graph as `mine`; give the folder with the images it is proven on."""
    data = noise(Path("data"))
    segdeploy.adopt(foreign.save(Path("theirs.onnx")), name="mine", options=dataclasses.replace(IMAGENET, data=data))
    return data


def planted(fault: Fault) -> None:
    """Put a fault into the float32 graph, and into every manifest the digest that the file has now."""
    honest = artifact.read(FP32)
    graph = Graph(onnx.load(FP32))
    fault(graph)
    FP32.write_bytes(graph.model.SerializeToString())
    artifact.write_manifest(dataclasses.replace(honest, sha256=artifact.sha256(FP32), certificate=None))
    if FP16.is_file():
        half = artifact.read(FP16)
        assert half.origin.graph is not None
        source = dataclasses.replace(half.origin.graph, sha256=artifact.sha256(FP32))
        origin = dataclasses.replace(half.origin, graph=source)
        artifact.write_manifest(dataclasses.replace(half, origin=origin, certificate=None))


def departure(data: Path, engine: str) -> Departure:
    found = segdeploy.parity("mine", engine=engine, data=data, options=BISECT)
    assert not found.passed
    assert found.departure is not None
    return found.departure


def other_weights(graph: Graph) -> None:
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    graph.set_value(conv.input[1], -graph.value(conv.input[1]))


def another_mean(graph: Graph) -> None:
    """As where --mean had been given for the channels in another order."""
    centred = next(node for node in graph.nodes if node.op_type == "Sub")
    graph.set_value(centred.input[1], graph.value(centred.input[1])[:, ::-1].copy() + 20)


def the_least_wins(graph: Graph) -> None:
    decision = next(node for node in graph.nodes if node.op_type == "ArgMax")
    decision.op_type = "ArgMin"


def a_node_too_many(graph: Graph) -> None:
    """Behind a name that the original has as well, where nothing else is changed."""
    nodes = list(graph.nodes)
    at, conv = next((index, node) for index, node in enumerate(nodes) if node.op_type == "Conv")
    conv.output[0] = "not theirs"
    nodes.insert(at + 1, helper.make_node("Neg", ["not theirs"], ["c"], name="Neg"))
    graph.replace_nodes([type(node).FromString(node.SerializeToString()) for node in nodes])


@pytest.mark.parametrize(
    "fault, kind, layer, between",
    [
        (other_weights, "layer", "/a/b:Conv", None),
        (another_mean, "before a layer", "/a/b:Conv", "deployed/Sub.centred"),
        (a_node_too_many, "before a layer", "deployed/Decision", "Neg"),
        (the_least_wins, "class map", None, "deployed/Decision"),
    ],
)
def test_the_node_is_named_from_which_on_the_float32_graph_is_not_the_original(
    fault: Fault, kind: str, layer: str | None, between: str | None
) -> None:
    """In the graph in its own arithmetic, by the names that the original's nodes have."""
    data = adopted(Foreign())
    planted(fault)
    found = departure(data, "ort:fp32")
    assert (found.stage, found.kind, found.layer) == ("graph", kind, layer)
    assert between is None or between in (found.between or ())


@pytest.mark.parametrize("foreign", [Foreign(kind="class map"), Foreign(layout="NHWC", dtype="float16", opset=9)])
def test_other_kinds_of_graphs_are_looked_into_as_well(foreign: Foreign) -> None:
    """A graph that is right departs nowhere; the same one with other weights does in the convolution."""
    options = dataclasses.replace(IMAGENET, data=noise(Path("data")), classes=3)
    segdeploy.adopt(foreign.save(Path("theirs.onnx")), name="mine", options=options)
    found = segdeploy.parity("mine", engine="ort:fp32", data=Path("data"), options=BISECT)
    assert found.departure is not None
    assert (found.passed, found.departure.kind) == (True, "none found")
    assert found.departure.layers_compared > 1
    planted(other_weights)
    assert departure(Path("data"), "ort:fp32").layer == "/a/b:Conv"


def test_the_command_on_a_graph_of_low_precision_looks_into_the_float32_graph(run: Run) -> None:
    """The chain begins there: what is wrong in it is none of the low precision's, and the exit code is 4."""
    data = adopted(Foreign())
    segdeploy.export("mine", precision="fp16")
    planted(other_weights)
    done = run("parity", "--model", "mine", "--engine", "ort:fp16", "--data", data, "--bisect", COLUMNS="120")
    assert done.code == 4
    assert "fp32 graph, bisected on " in done.out
    assert "The first layer that departs is /a/b:Conv" in done.out


def test_the_float32_graph_of_a_module_has_no_layers_to_compare(run: Run) -> None:
    """Its original is a program of tensor operators: that the two differ is said, and what to do."""
    data = noise(Path("data"))
    options = dataclasses.replace(IMAGENET, size=(32, 48), data=data)
    images = torch.zeros(1, 3, 32, 48)
    torch.export.save(torch.export.export(built(networks.Small).eval(), (images,)), "theirs.pt2")
    segdeploy.adopt("theirs.pt2", name="mine", options=options)
    segdeploy.export("mine", precision="fp16")
    planted(other_weights)
    done = run("parity", "--model", "mine", "--engine", "ort:fp16", "--data", data, "--bisect", COLUMNS="200")
    assert done.code == 4
    assert "The float32 graph itself does not draw what the module draws that was adopted: adopt it again." in done.out
    with pytest.raises(InvalidRequestError, match="mine was a torch module"):
        segdeploy.parity("mine", engine="ort:fp32", data=data, options=BISECT)
    assert not segdeploy.parity("mine", engine="ort:fp32", data=data).passed
    with pytest.raises(GateFailedError) as refused:
        segdeploy.infer(data / "images", model="mine", engine="ort:fp32", out="masks")
    assert refused.value.remedy == "Give another --size."
