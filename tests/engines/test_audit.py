"""What a network asks for is read from the parsed network, what an engine delivers from its inspector."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorrt_rtx
import torch

from segdeploy import models
from segdeploy.engines import _audit, _plan_build
from segdeploy.engines._audit import Typed
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import Graph, layer_types, layer_work
from segdeploy.low_precision import Executed
from segdeploy.precision import fp16, int8
from segdeploy.spec import Precision, Spec

SIZE = (45, 62)  # odd: it pads SegNet's pooling and crops U-Net's skips
VARIANT = {"multiplier": 0.125}
INT8, FP16, FP32 = Precision.INT8, Precision.FP16, Precision.FP32


@pytest.fixture(scope="module", params=models.names())
def float_graph(request: pytest.FixtureRequest) -> onnx.ModelProto:
    torch.manual_seed(0)
    network: Any = models.build(request.param, 3, **VARIANT).eval()
    colours = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    return export.to_graph(network, Spec(request.param, VARIANT, ("a", "b", "c"), colours, *SIZE))


def in_low_precision(model: onnx.ModelProto, kind: str, in_float: list[str]) -> onnx.ModelProto:
    """Over ranges that a trained network might have."""
    if kind == "fp16":
        return fp16.to_half(model, in_float=in_float)
    graph = Graph(model)
    plausible = {name: (0.0 if graph.is_positive(name) else -6.0, 6.0) for name in int8.tensors(model)}
    return int8.convert(model, plausible, form="signed", in_float=in_float)


def parsed(model: onnx.ModelProto) -> Typed:
    log = _plan_build.Log(tensorrt_rtx)
    builder = tensorrt_rtx.Builder(log.logger)
    network = _plan_build.parse(tensorrt_rtx, builder, log, Path("graph.onnx"), model.SerializeToString())
    return _audit.typed(tensorrt_rtx, network)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kept", [0, 3])
def test_the_parsed_network_has_the_work_and_the_types_of_the_graph(
    float_graph: onnx.ModelProto, kind: str, kept: int
) -> None:
    """To the multiply-add and for each convolution: two readings of one file, TensorRT's and ONNX's.

    `kept` convolutions, the first and others, stay in float32.
    """
    names = [node.name for node in Graph(float_graph).convolutions()]
    model = (
        float_graph if kind == "fp32" else in_low_precision(float_graph, kind, names[:: max(1, len(names) // 3)][:kept])
    )
    graph, found = Graph(model), parsed(model)
    assert found.work == layer_work(graph)
    assert found.types == layer_types(graph)
    assert sum(found.shares().values()) == pytest.approx(1)
    wide = sum(kind is FP32 for kind in found.types.values())
    assert wide == (len(names) if kind == "fp32" else kept)


def test_the_layers_of_each_type_are_counted(float_graph: onnx.ModelProto) -> None:
    layers = parsed(in_low_precision(float_graph, "int8", [])).layers
    assert layers["int8"] > len(Graph(float_graph).convolutions())  # all weights, and activations that several share
    assert layers["uint8"] >= 1
    assert "fp16" not in layers
    assert list(layers) == sorted(layers)


def ten(name: str, given: str | None, metadata: str = "") -> dict[str, Any]:
    """A layer as TensorRT 10's inspector tells it."""
    inputs = [] if given is None else [{"Name": "x", "Dimensions": [1, 8, 4, 4], "Format/Datatype": given}]
    outputs = [{"Name": "y", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP32"}]
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": inputs, "Outputs": outputs, "Metadata": metadata}


def eleven(name: str, given: str, key: str = "DataType") -> dict[str, Any]:
    """A layer as TensorRT 11's inspector tells it."""
    inputs = [{"Name": "x", "Format": "Row major linear", key: given}]
    return {"Name": "fused_7", "LayerType": "gemm", "Inputs": inputs, "Metadata": f"[ONNX Layer: {name}]"}


LAYERS = {
    *("a/Conv", "b/Conv", "c/Conv", "d/ConvTranspose", "head.2/Conv_3", "up.1/ConvTranspose", "up/ConvTranspose_12"),
    *("node_conv2d_3", "/blocks.0/attn/MatMul"),
}


def inspected(*layers: object) -> dict[str, Precision | None]:
    for rest in ({"Bindings": ["images", "class_map"]}, {"I/O Tensors": [{"Name": "images", "IOMode": "Input"}]}):
        found = _audit.inspected(json.dumps({"Layers": layers, **rest}), LAYERS)
    return found


@pytest.mark.parametrize(
    "said,kind",
    [
        ("Row major linear FP32", FP32),
        ("Row major linear FP16 format", FP16),
        ("Channel major FP16 format where channel % 8 == 0", FP16),
        ("Two wide channel vectorized row major FP16 format", FP16),
        ("Thirty-two wide channel vectorized row major Int8 format", INT8),
        ("Four wide channel vectorized row major INT8 format", INT8),
        ("Half(64,1:8,8,4)", FP16),
        ("Float(64,16,4,1)", FP32),
        ("N/A due to dynamic shapes", None),
        ("", None),
        (None, None),
    ],
)
def test_tensorrt_10_says_format_and_type_in_one_field(said: str | None, kind: Precision | None) -> None:
    assert inspected(ten("a/Conv", said)) == {"a/Conv": kind}


@pytest.mark.parametrize("key", ["DataType", "Datatype"])
@pytest.mark.parametrize("said,kind", [("FP16", FP16), ("Half", FP16), ("INT8", INT8), ("Float", FP32), ("FP32", FP32)])
def test_tensorrt_11_says_them_in_two(said: str, kind: Precision, key: str) -> None:
    assert inspected(eleven("a/Conv", said, key)) == {"a/Conv": kind}


@pytest.mark.parametrize(
    "name,metadata",
    [
        ("a/Conv", ""),
        ("a/Conv + a/Relu", ""),
        ("a/Conv_weights_quantized + a/QuantizeLinear + a/Conv + a/Add", ""),
        ("__myl_Conv_7", "[ONNX Layer: a/Conv]\x1e[ONNX Layer: a/Relu]"),
        ("__myl_ConvRelu_7", "[ONNX Layer: a/Relu]\x1e[ONNX Layer: a/Conv]\x1e[ONNX Layer: a/Conv]"),
    ],
)
def test_a_convolution_is_found_in_what_it_was_fused_with(name: str, metadata: str) -> None:
    assert inspected(ten(name, "Row major linear FP16 format", metadata)) == {"a/Conv": FP16}


def test_layers_are_found_by_the_names_that_the_graph_gives_them() -> None:
    names = ["head.2/Conv_3", "up.1/ConvTranspose", "up/ConvTranspose_12", "node_conv2d_3", "/blocks.0/attn/MatMul"]
    layers = [ten(name, "Row major linear FP16 format") for name in names]
    assert inspected(*layers) == dict.fromkeys(names, FP16)


def test_several_convolutions_in_one_layer_are_unknown() -> None:
    """The type of what goes in is that of the first; nobody says what lies between."""
    by_name = ten("a/Conv + a/Relu + b/Conv", "Row major linear FP16 format")
    by_metadata = ten("m", "Half", "[ONNX Layer: c/Conv]\x1e[ONNX Layer: d/ConvTranspose]")
    assert inspected(by_name, by_metadata) == dict.fromkeys(["a/Conv", "b/Conv", "c/Conv", "d/ConvTranspose"])


def test_layers_that_are_only_named_say_nothing() -> None:
    """Without detailed profiling, layers are strings."""
    assert inspected("a/Conv + a/Relu", "b/Conv") == {}
    assert _audit.inspected("{}", LAYERS) == {}


def test_layers_that_do_not_multiply_say_nothing() -> None:
    others = ["a/Relu", "PWN(a/Sigmoid)", "a/ConvInteger", "pool/MaxPool", "a/Convolve", "node_conv2d"]
    assert inspected(*(ten(name, "Half") for name in others)) == {}


def asked(**work: int) -> Typed:
    return Typed(work, dict.fromkeys(work, FP16), {})


@pytest.mark.parametrize("wide,kind", [(0, FP16), (5, FP16), (9, FP16), (11, FP32), (100, FP32)])
def test_nine_tenths_of_the_work_make_an_engine_one_of_low_precision(wide: int, kind: Precision) -> None:
    found = {"a": FP16, "b": FP32}
    told = _audit.executed(asked(a=100 - wide, b=wide), FP16, found)
    assert told.delivered is kind
    assert told.delivered_share == pytest.approx(1 - wide / 100)
    assert told.reason is None


@pytest.mark.parametrize(
    "wide,unknown,kind", [(0, 9, FP16), (5, 4, FP16), (0, 11, None), (9, 9, None), (11, 20, FP32), (0, 100, None)]
)
def test_what_is_unknown_decides_only_where_it_could(wide: int, unknown: int, kind: Precision | None) -> None:
    """Eleven hundredths that run wider are too many, whatever the rest does."""
    told = _audit.executed(asked(a=100 - wide - unknown, b=wide, c=unknown), FP16, {"a": FP16, "b": FP32, "c": None})
    assert told.delivered is kind
    assert told.wider == ("b",)
    if kind is None:
        assert told.delivered_share is None
        assert f"{unknown / 100:.1%}" in str(told.reason)
    else:
        assert told.delivered_share == pytest.approx(1 - (wide + unknown) / 100)


def test_a_layer_that_the_inspector_does_not_name_is_unknown() -> None:
    assert _audit.executed(asked(a=50, b=50), FP16, {"a": FP16}).delivered is None


def test_the_widest_layers_come_first() -> None:
    told = _audit.executed(
        asked(small=1, large=70, middle=20, low=9),
        FP16,
        dict.fromkeys(["small", "large", "middle"], FP32) | {"low": FP16},
    )
    assert told.wider == ("large", "middle", "small")
    assert told.delivered_share == pytest.approx(0.09)


def test_layers_that_were_left_in_float_are_not_asked_for() -> None:
    """The graph keeps them wide: the engine has delivered what was asked."""
    typed = Typed({"a": 10, "b": 90}, {"a": INT8, "b": FP32}, {})
    assert typed.asked_for(INT8) == ["a"]
    assert typed.shares() == {"fp32": 0.9, "int8": 0.1}
    told = _audit.executed(typed, INT8, {"a": INT8, "b": FP32})
    assert (told.delivered, told.delivered_share, told.wider) == (INT8, 1.0, ())


def test_an_engine_that_cannot_be_inspected_is_unknown_with_the_reason() -> None:
    told = _audit.executed(asked(a=1), FP16, None)
    assert (told.delivered, told.delivered_share) == (None, None)
    assert "GPU" in str(told.reason)


def test_float32_is_always_delivered() -> None:
    typed = Typed({"a": 1}, {"a": FP32}, {})
    assert _audit.executed(typed, FP32, None) == Executed(delivered=FP32, delivered_share=1.0, wider=(), reason=None)


@pytest.mark.parametrize("rest", [{"b": FP32}, {}], ids=["wider", "unknown"])
def test_nine_tenths_exactly_are_enough(rest: dict[str, Precision | None]) -> None:
    """1 - 0.9 is a little less than 0.1."""
    assert _audit.executed(asked(a=90, b=10), FP16, {"a": FP16, **rest}).delivered is FP16


def test_a_network_without_a_convolution_of_low_precision_delivers_none() -> None:
    assert _audit.executed(Typed({"a": 1}, {"a": FP32}, {}), INT8, {"a": FP32}).delivered is not INT8


def test_a_copy_between_formats_says_nothing_of_the_convolution_it_serves() -> None:
    copy = {**ten("Reformatting CopyNode", "Row major linear FP32", "[ONNX Layer: a/Conv]"), "LayerType": "Reformat"}
    for layers in ([ten("a/Conv", "Half"), copy], [copy, ten("a/Conv", "Half")]):
        assert inspected(*layers) == {"a/Conv": FP16}


def test_two_layers_that_contradict_each_other_leave_a_convolution_unknown() -> None:
    layers = [ten("m1", "Half", "[ONNX Layer: a/Conv]"), ten("m2", "Row major linear FP32", "[ONNX Layer: a/Conv]")]
    assert inspected(*layers) == {"a/Conv": None}


@pytest.mark.parametrize("said,kind", [("Float16", FP16), ("BFloat16", None), ("Float8", None)])
def test_other_floats_are_no_float32(said: str, kind: Precision | None) -> None:
    assert inspected(eleven("a/Conv", said)) == {"a/Conv": kind}


@pytest.mark.parametrize("said,kind", [("Half", FP16), ("Int8", INT8), ("Float", FP32)])
def test_the_weights_say_it_where_the_batch_is_dynamic(said: str, kind: Precision) -> None:
    """TensorRT 10 writes "N/A due to dynamic shapes" for every tensor of an engine with a profile, as all of ours."""
    layer = {**ten("a/Conv", "N/A due to dynamic shapes"), "Weights": {"Type": said, "Count": 9408}}
    assert inspected(layer) == {"a/Conv": kind}
