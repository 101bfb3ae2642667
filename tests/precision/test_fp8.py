"""fp8 graphs: what is eligible, how values are rounded, and that the graph computes what it says."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy import making, models, workspace
from segdeploy.engines import BuildOptions, ort
from segdeploy.errors import InvalidRequestError
from segdeploy.graphs.graph import Graph, layer_types
from segdeploy.making import ExportOptions
from segdeploy.precision import fp8
from segdeploy.quantization import calibration
from segdeploy.spec import Precision

E4M3 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
LARGEST = 448.0


def quantizer() -> onnxruntime.InferenceSession:
    """QuantizeLinear and DequantizeLinear on a row of values, node by node, as proofs run them."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    constants = [
        numpy_helper.from_array(np.array(1, np.float32), "scale"),
        numpy_helper.from_array(np.zeros((), E4M3), "zero"),
    ]
    graph = helper.make_graph(nodes, "rounding", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), plain, providers=["CPUExecutionProvider"])


ROUNDING = quantizer()


def grid() -> list[float]:
    """Every finite E4M3 value from 0 up, from the definition: 8 subnormals, then 3 bits of mantissa an exponent."""
    subnormal = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    normal = [(1 + mantissa / 8) * 2.0**exponent for exponent in range(-6, 9) for mantissa in range(8)]
    return sorted({*subnormal, *(value for value in normal if value <= LARGEST)})


def nearest(value: float) -> float:
    """The nearest value of the grid, ties to the even mantissa; above the largest, the largest."""
    size = min(abs(value), LARGEST)
    values = grid()
    best = min(range(len(values)), key=lambda index: (abs(values[index] - size), index % 2))
    return float(np.copysign(values[best], value))


def test_the_executor_rounds_to_e4m3_exactly_on_every_value_and_every_tie() -> None:
    values = grid()
    assert (len(values), values[-1]) == (127, LARGEST)
    ties = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    beside = [np.nextafter(np.float32(tie), np.float32(to)) for tie in ties for to in (0, 1e9)]
    x = np.array([*values, *ties, *beside, 449, 464, 1e4, 3e38], np.float32)
    x = np.concatenate([x, -x])
    (found,) = ROUNDING.run(None, {"x": x})
    np.testing.assert_array_equal(found, np.array([nearest(float(each)) for each in x], np.float32))


@settings(max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_the_executor_rounds_to_e4m3_exactly_on_any_value(values: list[float]) -> None:
    (found,) = ROUNDING.run(None, {"x": np.array(values, np.float32)})
    np.testing.assert_array_equal(found, np.array([nearest(value) for value in values], np.float32))


def converted(fp32: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float32 graph, and the same in fp8 with ranges of three photographs."""
    model = onnx.load(fp32)
    batches = [photograph(64, 64, seed)[None] for seed in range(3)]
    ranges = calibration.extremes(model, fp8.tensors(model), lambda: batches)
    return model, fp8.convert(model, ranges, in_float=fp8.layers(model, ranges).in_float)


def test_what_tensorrt_has_no_fast_kernel_for_stays_in_float32_and_says_why(small: Path) -> None:
    model, low = converted(small / "export" / "unet.fp32.onnx")
    reasons = fp8.layers(model, {}).in_float
    assert reasons["rise.0/ConvTranspose"] == "a transposed convolution: TensorRT has none in fp8"
    assert reasons["down.0.0.conv/Conv"] == "3 channels: fp8 is faster with more than 16"
    types, graph = layer_types(Graph(low)), Graph(model)
    for node in graph.convolutions():
        outputs, inputs, *_ = graph.value(node.input[1]).shape
        eligible = node.op_type == "Conv" and min(inputs, outputs) > 16
        assert types[node.name] is (Precision.FP8 if eligible else Precision.FP32)


def test_a_large_kernel_and_a_group_stay_in_float32() -> None:
    weights = {"taps": (32, 32, 7, 7), "groups": (32, 1, 3, 3), "plain": (32, 32, 4, 8)}
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="r")]
    nodes += [
        helper.make_node("Conv", ["r", f"{name}/w"], [name], name=f"{name}/Conv", group=32 if name == "groups" else 1)
        for name in weights
    ]
    constants = [numpy_helper.from_array(np.ones(shape, np.float32), f"{name}/w") for name, shape in weights.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 16, 16])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in weights]
    model = helper.make_model(
        helper.make_graph(nodes, "kernels", [image], outputs, constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    inferred = onnx.shape_inference.infer_shapes(model)
    assert fp8.layers(inferred, {}).in_float == {
        "taps/Conv": "49 taps: TensorRT takes up to 32 in fp8",
        "groups/Conv": "a grouped convolution: TensorRT has no fast one in fp8",
    }


def test_weights_have_a_scale_for_each_channel_and_reach_the_largest_value(small: Path) -> None:
    model, low = converted(small / "export" / "unet.fp32.onnx")
    before, after = Graph(model), Graph(low)
    for node in after.convolutions():
        if layer_types(after)[node.name] is Precision.FP8:
            name = node.input[1].removesuffix("/dequantized")
            scale = after.value(f"{name}/scale")
            stored, weight = after.value(f"{name}/quantized").astype(np.float32), before.value(name)
            assert scale.shape == (len(weight),)
            assert 440 <= np.abs(stored).max() <= LARGEST
            column = scale.reshape(-1, 1, 1, 1)
            assert np.abs(stored * column - weight).max() <= np.abs(weight).max() / 16, "half a step of 3 bits"


def rectified() -> onnx.ModelProto:
    """Images, moved to both sides of zero, through a Relu to fp8 and back."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "middle"], ["centred"]),
        helper.make_node("Relu", ["centred"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(128, np.float32), "middle"),
        numpy_helper.from_array(np.array(1, np.float32), "scale"),
        numpy_helper.from_array(np.zeros((), E4M3), "zero"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 4, 4, 3])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 3])
    graph = helper.make_graph(nodes, "rectified", [images], [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_onnx_runtime_does_not_drop_a_relu_in_front_of_fp8() -> None:
    """Its rule ReluQuantRewrite (1.32) does, with optimisations on: negative values go on, and masks are wrong."""
    model, images = rectified().SerializeToString(), np.zeros((1, 4, 4, 3), np.uint8)
    assert (ort.tensors(model, images, device="cpu", optimised=True)["y"] == 0).all()
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (wrong,) = plain.run(None, {"images": images})
    assert (wrong == -128).all(), "the rule is right now: ort.WRONG_RULES can go"


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_a_packaged_network_is_inside_the_budget_and_builds_for_a_gpu_that_has_fp8(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a build computes at run time is not known without a GPU."""
    monkeypatch.chdir(tmp_path)
    few = workspace.packaged_images()[:8]
    monkeypatch.setattr(workspace, "packaged_images", lambda: few)
    (graph,) = segdeploy.export(name, precision="fp8")
    assert graph.certificate is not None
    assert graph.certificate.passed
    _, written, engine, _ = graph.certificate.stages
    assert written.agreement is not None
    assert engine.agreement == pytest.approx(written.agreement, abs=1e-3), "ONNX Runtime runs another network"
    assert graph.low_precision is not None
    assert graph.low_precision.asked["fp8"] > 0.75
    plan = segdeploy.build(name, engine="trt-rtx:fp8", options=BuildOptions(compute_capability="8.9"))
    assert plan.plan is not None
    assert plan.plan.typed.work["fp8"] == pytest.approx(graph.low_precision.asked["fp8"])
    assert plan.path.name == f"{name}.trt-rtx.fp8.cc89.plan"


@pytest.mark.usefixtures("workspace")
def test_a_gpu_without_fp8_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "graph_for", lambda *_, **__: pytest.fail("made a graph"))
    with pytest.raises(InvalidRequestError, match=r"fp8 needs compute capability 8\.9 or more, the target has 8\.6"):
        segdeploy.build("unet", engine="trt-rtx:fp8", options=BuildOptions(compute_capability="8.6"))


@pytest.mark.usefixtures("workspace")
def test_it_clips_no_range() -> None:
    photos = workspace.packaged_images()[0].parent
    with pytest.raises(InvalidRequestError, match="fp8 clips no range"):
        segdeploy.export("unet", precision="fp8", options=ExportOptions(method="mse", calibrate=photos))
