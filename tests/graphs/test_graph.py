"""What a graph can be asked, on graphs small enough to count by hand."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from segdeploy import models
from segdeploy.errors import InvalidFileError
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import Graph, attribute, layer_types, layer_work
from segdeploy.precision import fp16, int8
from segdeploy.spec import Precision, Spec

SIZE = (45, 62)
RANGES = {"x": (-4.0, 4.0), "r": (0.0, 6.0), "m": (0.0, 6.0), "y": (-9.0, 9.0)}


def two_convolutions() -> onnx.ModelProto:
    """8x6 pixels, a 3x3 convolution of 2 -> 4 channels, pooling to 4x3, a transposed one of 4 -> 3; named by output."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (uint8[N, 2, 8, 6] images) => (int64[N, 8, 6] class_map) {
            x = Cast<to = 1>(images)
            c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b)
            r = Relu(c)
            m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            y = ConvTranspose<kernel_shape = [2, 2], strides = [2, 2]>(m, v)
            class_map = ArgMax<axis = 1, keepdims = 0>(y)
        }
    """)
    values = np.random.default_rng(0)
    for name, shape in {"w": (4, 2, 3, 3), "b": (4,), "v": (4, 3, 2, 2), "unread": (1,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(values.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def exported(name: str, **variant: Any) -> onnx.ModelProto:  # noqa: ANN401
    options = {"multiplier": 0.125, **variant}
    spec = Spec(name, options, ("a", "b"), ((0, 0, 0), (1, 1, 1)), *SIZE)
    return export.to_graph(models.build(name, 2, **options).eval(), spec)


def test_the_work_of_a_convolution_is_its_multiply_adds() -> None:
    """A weight meets every place of a convolution's output, and every place of a transposed one's input."""
    assert layer_work(Graph(two_convolutions())) == {"c": 4 * 2 * 3 * 3 * 8 * 6, "y": 4 * 3 * 2 * 2 * 4 * 3}


def test_work_and_names_outlive_the_low_precisions() -> None:
    """What was ranked in the float graph is looked up in the one of low precision."""
    model = two_convolutions()
    work = layer_work(Graph(model))
    for converted in (fp16.to_half(model), *(int8.convert(model, RANGES, form=form) for form in int8.FORMS)):
        assert layer_work(Graph(converted)) == work


def test_a_convolution_has_the_type_that_its_weights_are_stored_in() -> None:
    """Past the DequantizeLinear or the Cast that reads them."""
    model = two_convolutions()
    kinds = Precision
    assert layer_types(Graph(model)) == {"c": kinds.FP32, "y": kinds.FP32}
    assert layer_types(Graph(fp16.to_half(model))) == {"c": kinds.FP16, "y": kinds.FP16}
    assert layer_types(Graph(fp16.to_half(model, in_float=["c"]))) == {"c": kinds.FP32, "y": kinds.FP16}
    for form in int8.FORMS:
        mixed = int8.convert(model, RANGES, form=form, in_float=["y"])
        assert layer_types(Graph(mixed)) == {"c": kinds.INT8, "y": kinds.FP32}


def test_knows_what_stands_before_a_convolution() -> None:
    """The logits, and whatever is made of them, are outside."""
    graph = Graph(two_convolutions())
    assert {"x", "c", "r", "m"} <= graph.before_layers()
    assert not {"y", "class_map"} & graph.before_layers()


def test_only_what_a_relu_gave_is_positive_by_construction() -> None:
    """Carried on through pooling, still so."""
    graph = Graph(two_convolutions())
    assert [name for name in graph.producer if graph.is_positive(name)] == ["r", "m"]
    assert [name for name in graph.producer if graph.carries(name)] == ["m"]


def test_asking_changes_nothing_of_the_model() -> None:
    """A Graph is a copy; the same float graph is converted again and again."""
    model = two_convolutions()
    before = model.SerializeToString(deterministic=True)
    graph = Graph(model)
    graph.set_value("w", np.zeros((4, 2, 3, 3), np.float32))
    graph.drop_unread_constants()
    fp16.to_half(model)
    for form in int8.FORMS:
        int8.convert(model, RANGES, form=form)
    assert model.SerializeToString(deterministic=True) == before


def test_constants_are_set_added_and_dropped() -> None:
    """`constants` and the file's initialisers stay the same list."""
    graph = Graph(two_convolutions())
    graph.set_value("b", np.arange(4, dtype=np.float32))
    graph.set_value("new", np.ones(2, np.float32))
    assert graph.value("b").tolist() == [0, 1, 2, 3]
    assert {tensor.name for tensor in graph.model.graph.initializer} == {"w", "b", "v", "unread", "new"}
    graph.drop_unread_constants()
    assert {tensor.name for tensor in graph.model.graph.initializer} == set(graph.constants) == {"w", "b", "v"}
    assert graph.is_float("b")
    assert not graph.is_activation("b")


def test_attributes_shapes_and_types_are_read_from_the_file() -> None:
    graph = Graph(two_convolutions())
    c, y = graph.convolutions()
    assert (attribute(c, "pads"), attribute(y, "strides"), attribute(c, "group", 1)) == ([1, 1, 1, 1], [2, 2], 1)
    assert (graph.shape("m"), graph.shape("y")) == ([0, 4, 4, 3], [0, 3, 8, 6])
    assert not graph.is_float("no such tensor")
    assert Graph(fp16.to_half(graph.model)).is_half("r")


@pytest.mark.parametrize("name", models.names())
def test_no_exported_graph_computes_a_constant(name: str) -> None:
    """A matrix that a Cast makes when the graph runs is no constant to whoever quantises or halves it."""
    graph = Graph(exported(name))
    for node in graph.nodes:
        assert node.op_type != "ConstantOfShape"
        assert not graph.constants.keys() >= set(node.input), node.name
    kinds = {tensor.data_type for tensor in graph.constants.values()}
    assert kinds <= {TensorProto.FLOAT, TensorProto.INT64}
    assert set(graph.constants) <= set(graph.readers)


def test_a_size_that_does_not_follow_from_the_graph_is_refused() -> None:
    """Work that is not known would falsify every share: it is never taken for none."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (uint8[N, 2, 8, 6] images) => (float[N, 4, M, K] y) {
            x = Cast<to = 1>(images)
            s = Shape(x)
            f = Cast<to = 1>(s)
            h = Sqrt(f)
            i = Cast<to = 7>(h)
            z = Resize<mode = "nearest">(x, , , i)
            y = Conv<kernel_shape = [1, 1]>(z, w)
        }
    """)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2, 1, 1), np.float32), "w"))
    with pytest.raises(InvalidFileError, match="has a size that does not follow from the graph"):
        layer_work(Graph(model))
