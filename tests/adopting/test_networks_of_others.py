"""What public networks taught (benchmarks/zoo.py), each as the smallest graph that has it."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_graphs import SIZE, noise
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import segdeploy
from segdeploy.adopting.options import AdoptOptions
from segdeploy.errors import InvalidRequestError
from segdeploy.graphs.graph import Graph, layer_work
from segdeploy.origin import GraphReading

HALF = (SIZE[0] // 2, SIZE[1] // 2)
PLAIN = AdoptOptions(preset="0..1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.float32]], *, opset: int, side: int = 3) -> Path:
    """A graph from `x` (1, side, 16, 24) to `y`, its nodes behind a convolution `c` of random weights."""
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (3, side, 3, 3)).astype(np.float32)
    weight -= weight.mean(axis=(1, 2, 3), keepdims=True)
    conv = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2])
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, side, *SIZE])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, None, None])
    held = [numpy_helper.from_array(value, name) for name, value in {"w": weight, **constants}.items()]
    graph = helper.make_graph([conv, *nodes], "theirs", [taken], [given], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    path = Path("theirs.onnx")
    path.write_bytes(model.SerializeToString())
    return path


def reading_of(found: segdeploy.Adopted) -> GraphReading:
    foreign = found.graph.origin.foreign
    assert foreign is not None
    return foreign.reading


@pytest.mark.parametrize("kind, opset", [("Upsample", 9), ("Resize", 10)])
def test_a_resize_of_before_opset_11_keeps_its_corners(kind: str, opset: int) -> None:
    """Then pixels lay at their corners; the converter of onnx would put them at their centres."""
    enlarge = helper.make_node(kind, ["c", "scales"], ["y"], mode="linear")
    scales = np.array([1, 1, SIZE[0] / HALF[0], SIZE[1] / HALF[1]], np.float32)
    path = saved([enlarge], {"scales": scales}, opset=opset)
    found = segdeploy.adopt(path, name="mine", options=dataclasses.replace(PLAIN, data=noise(Path("data"))))
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves


def independent() -> Path:
    """Three sigmoid channels at half the size."""
    return saved([helper.make_node("Sigmoid", ["c"], ["y"])], {}, opset=13)


def test_several_sigmoids_do_not_say_where_the_background_is() -> None:
    """Three probabilities of their own may be three things and a background, or three classes."""
    with pytest.raises(InvalidRequestError, match="of their own") as refused:
        segdeploy.adopt(independent(), name="mine", options=PLAIN)
    assert "--classes 4" in refused.value.remedy
    assert "--classes 3" in refused.value.remedy


def test_several_sigmoids_with_one_class_more_have_a_background() -> None:
    """Class 0 where none is above the threshold: in the deployed graph too, alone and in a batch."""
    options = dataclasses.replace(PLAIN, classes=4, threshold=0.7, data=noise(Path("data")))
    found = segdeploy.adopt(independent(), name="mine", options=options)
    assert (reading_of(found).kind, len(found.graph.spec.classes)) == ("several channels", 4)
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves
    segdeploy.infer(Path("data/images"), model="mine", engine="ort:fp32", out=Path("masks"))
    drawn = np.stack([np.asarray(Image.open(mask)) for mask in sorted(Path("masks").glob("*.png"))])
    assert set(np.unique(drawn)) == {0, 1, 2, 3}
    half, *_ = segdeploy.export("mine", precision="fp16")
    assert half.certificate is not None
    assert half.certificate.proves


def test_several_sigmoids_with_as_many_classes_take_the_largest() -> None:
    found = segdeploy.adopt(independent(), name="mine", options=dataclasses.replace(PLAIN, classes=3))
    assert (reading_of(found).kind, len(found.graph.spec.classes)) == ("scores", 3)


def sized() -> Path:
    """Enlarged to twice its own size, as PyTorch's old exporter writes it, before the last layer."""
    constants = {
        "head": np.random.default_rng(1).normal(0, 1, (3, 3, 1, 1)).astype(np.float32),
        **{name: np.array(value) for name, value in {"0": [0], "2": [2], "4": [4]}.items()},
    }
    nodes = [
        helper.make_node("Shape", ["c"], ["own"]),
        helper.make_node("Slice", ["own", "0", "2", "0"], ["count"]),
        helper.make_node("Slice", ["own", "2", "4", "0"], ["sides"]),
        helper.make_node("Mul", ["sides", "2"], ["twice"]),
        helper.make_node("Concat", ["count", "twice"], ["wanted"], axis=0),
        helper.make_node("Resize", ["c", "", "", "wanted"], ["large"], mode="linear"),
        helper.make_node("Conv", ["large", "head"], ["y"]),
    ]
    return saved(nodes, constants, opset=13)


def test_sizes_that_a_graph_computes_are_written_out() -> None:
    """All but the number of images is known: low precision asks for the size of what each layer computes."""
    found = segdeploy.adopt(sized(), name="mine", options=dataclasses.replace(PLAIN, data=noise(Path("data"))))
    kinds = {node.op_type for node in onnx.load(found.graph.path).graph.node}
    assert not {"Shape", "Slice", "Concat"} & kinds
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves
    assert all(work > 0 for work in layer_work(Graph(onnx.load(found.graph.path))).values())
