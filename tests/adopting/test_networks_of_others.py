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
from segdeploy.benchmarking import BenchOptions
from segdeploy.errors import InvalidRequestError
from segdeploy.graphs.graph import Graph, layer_work
from segdeploy.origin import GraphReading
from segdeploy.target import BuildOptions
from segdeploy.timing.latency import Effort

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


# One image at a time


def coupled(kind: str) -> Path:
    """A network in which an image beside others would be drawn otherwise, or could not be drawn at all.

    `heads`: the batch is folded into the channels, as PyTorch exports attention for one image. `sizes`: the same, by
    sizes that the graph computes. `statistics`: a mean over all images, as of a norm that was left in training.
    """
    constants = {"head": np.random.default_rng(1).normal(0, 1, (3, 3, 1, 1)).astype(np.float32)}
    reshaped = [
        helper.make_node("Reshape", ["c", "to"], ["r"]),
        helper.make_node("LpNormalization", ["r"], ["s"], axis=2, p=2),
        helper.make_node("Reshape", ["s", "own"], ["b"]),
    ]
    if kind == "heads":
        nodes = reshaped
        constants |= {"to": np.array([3, 1, -1]), "own": np.array([1, 3, *HALF])}
    elif kind == "sizes":
        constants |= {"1": np.array([1]), "-1": np.array([-1])}
        nodes = [
            helper.make_node("Shape", ["c"], ["own"]),
            helper.make_node("Gather", ["own", "1"], ["count"]),
            helper.make_node("Concat", ["count", "1", "-1"], ["to"], axis=0),
            *reshaped,
        ]
    else:
        mean = helper.make_node("ReduceMean", ["c"], ["m"], axes=[0, 2, 3], keepdims=1)
        nodes = [mean, helper.make_node("Sub", ["c", "m"], ["b"])]
    return saved([*nodes, helper.make_node("Conv", ["b", "head"], ["y"])], constants, opset=13)


@pytest.mark.parametrize("kind", ["heads", "sizes", "statistics"])
def test_a_batch_that_cannot_be_freed_is_run_image_by_image(kind: str) -> None:
    """Each image gets the mask that it gets alone, in every runtime and precision; that is said and kept."""
    data = noise(Path("data"), 8)
    found = segdeploy.adopt(coupled(kind), name="mine", options=dataclasses.replace(PLAIN, data=data))
    graph = onnx.load(found.graph.path)
    sides = [value.type.tensor_type.shape.dim[0].dim_value for value in (*graph.graph.input, *graph.graph.output)]
    assert sides == [1, 1]
    assert "Shape" not in {node.op_type for node in graph.graph.node}
    assert found.notes[-1].startswith("its batch cannot be freed exactly")
    assert found.graph.origin.foreign is not None
    assert found.graph.origin.foreign.notes == found.notes
    segdeploy.export("mine", precision="fp16")
    batch = np.random.default_rng(5).integers(0, 256, (4, *SIZE, 3), np.uint8)
    for engine in ("ort:fp32", "ov:fp32", "ort:fp16"):
        certificate = segdeploy.parity("mine", engine=engine, data=data)
        assert certificate.proves
        assert certificate.batches == {1, 3}
        with segdeploy.open("mine", engine=engine) as opened:
            alone = np.concatenate([opened.classify(image[None]) for image in batch])
            into = np.empty_like(alone)
            assert opened.classify(batch, into) is into
            np.testing.assert_array_equal(into, alone)
            np.testing.assert_array_equal(opened.classify(batch), alone)


def test_a_plan_of_a_network_that_takes_one_image_is_built_for_one() -> None:
    """The default of 8 is refused with the option, and what is timed in batches is run image by image."""
    data = noise(Path("data"), 8)
    segdeploy.adopt(coupled("heads"), name="mine", options=dataclasses.replace(PLAIN, data=data))
    options = BuildOptions(compute_capability="8.9")
    with pytest.raises(InvalidRequestError, match="takes one image at a time") as refused:
        segdeploy.build("mine", engine="trt-rtx:fp32", options=options)
    assert "--max-batch 1" in refused.value.remedy
    plan = segdeploy.build("mine", engine="trt-rtx:fp32", options=dataclasses.replace(options, max_batch=1))
    assert plan.path.is_file()
    timed = BenchOptions(engines=["ort:fp32", "ov:fp32"], data=data, batches=[2], effort=Effort(runs=3), profile=True)
    result = segdeploy.bench("mine", options=timed)
    assert {row.batch for row in result.rows} == {2}
    assert all(subject.profile is not None for subject in result.subjects)
