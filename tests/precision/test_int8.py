"""INT8 graphs: where they round, that they round once, what runtimes make of them, and what it costs in pixels."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from segdeploy import fitting, images, models, workspace
from segdeploy.blocks import MaxPoolWithIndices, Network, max_unpool
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidRequestError
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import CARRIERS, Graph, layer_types
from segdeploy.precision import Range, int8
from segdeploy.quantization import calibration
from segdeploy.spec import Precision, Spec

EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei" / "images"
AGREEING = 0.98  # of the pixels, with the float32 graph; measured 0.992 (SegNet) to 0.999 over the 20 examples
RUNTIMES_AGREE = 0.998  # of the pixels, unsigned, any two of three executors; measured 0.9989 to 1.0
REWRITTEN = 1e-5  # of the logits' range: a transposed convolution as a 1x1 one, in float; measured 6e-7
F32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
Batch = NDArray[np.uint8]


def run(model: onnx.ModelProto, batches: Iterable[NDArray[Any]], *, optimised: bool = True) -> NDArray[Any]:
    """The first output for every batch, on one thread."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings(optimised=optimised))
    return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])


def settings(*, optimised: bool = True) -> Any:  # noqa: ANN401
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    return options


def run_openvino(model: onnx.ModelProto, batches: Iterable[NDArray[Any]]) -> NDArray[Any]:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", F32)
    return np.concatenate([compiled(batch)[0].copy() for batch in batches])


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.GraphProto:
    """What ONNX Runtime really runs."""
    options = settings()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return onnx.load(options.optimized_model_filepath).graph


def convolutions(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in Graph(model).convolutions()]


def tiny(text: str, sizes: str = "1, 4, 4", **constants: Any) -> onnx.ModelProto:  # noqa: ANN401
    """From float `images` to float `y`; a node is named by its first output."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (float[N, {sizes}] images) => (float[N, C, H, W] y) {{ x = Identity(images) {text} }}
    """)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def kernel(*values: float) -> NDArray[np.float32]:
    """(K, 1, 1, 1): one output channel for each value."""
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A packaged network's graph, its ranges, and the example photographs with its class maps."""

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    pictures: list[Batch]
    expected: Batch

    @functools.cache  # noqa: B019 - four of them, as long as the module's tests run
    def quantized(self, form: str) -> onnx.ModelProto:
        return int8.convert(self.model, self.ranges, form=form)

    __hash__ = object.__hash__


@pytest.fixture(scope="module", params=models.names())
def packaged(request: pytest.FixtureRequest) -> Packaged:
    network, spec = checkpoint.load(workspace.PACKAGED / f"{request.param}.safetensors")
    model = export.to_graph(network, spec)
    seen, shown = (
        [fitting.prepared(images.read(path), spec)[None] for path in paths]
        for paths in (workspace.packaged_images()[::4], sorted(EXAMPLES.glob("*.png")))
    )
    ranges = calibration.collect(model, int8.tensors(model), lambda: iter(seen)).by("percentile")
    return Packaged(model, ranges, shown, run(model, shown))


@pytest.mark.parametrize("form", int8.FORMS)
def test_the_packaged_networks_keep_their_class_maps(packaged: Packaged, form: str) -> None:
    """Node by node, as the graph says; the whole point of quantising them."""
    assert len(packaged.pictures) == 20
    found = run(packaged.quantized(form), packaged.pictures, optimised=False)
    assert np.mean(found == packaged.expected) >= AGREEING


def test_three_executors_draw_the_same_maps_of_the_unsigned_form(packaged: Packaged) -> None:
    """Fused integer kernels of two makers, and the graph as it is written; they differ in ties of rounding alone."""
    model, pictures = packaged.quantized("unsigned"), packaged.pictures[:6]
    maps = [run(model, pictures), run(model, pictures, optimised=False), run_openvino(model, pictures)]
    for index, one in enumerate(maps):
        for other in maps[:index]:
            assert np.mean(one == other) >= RUNTIMES_AGREE


@pytest.mark.parametrize("form", int8.FORMS)
def test_a_tensor_is_rounded_once(packaged: Packaged, form: str) -> None:
    """Rounding what was rounded loses twice; only values of both signs beside unsigned ones must, behind a Concat."""
    graph = Graph(packaged.quantized(form))
    rounded = [node.input[0] for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert len(rounded) == len(set(rounded))
    for name in rounded:
        grids = [graph.value(node.input[2]) for node in carried_from(graph, name)]
        if grids:
            assert (form, graph.producer[name].op_type) == ("unsigned", "Concat")
            assert {int(zero_point) for zero_point in grids} == {0, 128}


def carried_from(graph: Graph, name: str) -> list[onnx.NodeProto]:
    """The DequantizeLinear nodes whose values a tensor holds unchanged."""
    node = graph.producer[name]
    if node.op_type == "DequantizeLinear":
        return [node]
    if node.op_type not in {*CARRIERS, "Relu"}:
        return []
    return [found for source in node.input if graph.is_activation(source) for found in carried_from(graph, source)]


@pytest.mark.parametrize("form", int8.FORMS)
def test_logits_stay_float(packaged: Packaged, form: str) -> None:
    """The last convolution's output is compared between classes: steps there are ties."""
    graph = Graph(packaged.quantized(form))
    logits = graph.convolutions()[-1].output[0]
    assert graph.is_float(logits)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in graph.readers[logits]}


def test_onnx_runtime_computes_everything_but_the_logits_in_int8(packaged: Packaged, tmp_path: Path) -> None:
    """Fusions hang on small things, such as an untouched pair; what does not fuse is slower than float."""
    names = convolutions(packaged.quantized("unsigned"))
    graph = optimised(packaged.quantized("unsigned"), tmp_path)
    kinds = Counter(node.op_type for node in graph.node)
    additions = Counter(node.op_type for node in packaged.model.graph.node)["Add"]
    assert kinds["QLinearConv"] == len(names) - 1
    assert sum("Conv" in node.op_type for node in graph.node) == len(names)
    assert (kinds["QLinearAdd"], kinds["Add"]) == (additions, 0)
    assert "ConvTranspose" not in kinds


def test_what_only_carries_values_works_on_the_quantised_ones(packaged: Packaged) -> None:
    """A quarter of the memory traffic, and exact; but for a Concat of both signs, and what float tensors come to."""
    graph = Graph(packaged.quantized("unsigned"))
    in_float = {node.op_type for node in graph.nodes if node.op_type in CARRIERS and graph.is_float(node.output[0])}
    assert in_float <= {"Concat", "Expand"}
    if "Less" in kinds(graph):
        assert not in_float
    compared = [graph.shapes[name] for node in graph.nodes if node.op_type == "Less" for name in node.input]
    assert {value.type.tensor_type.elem_type for value in compared} <= {TensorProto.UINT8}


def kinds(graph: Graph) -> set[str]:
    return {node.op_type for node in graph.nodes}


def test_the_signed_form_has_one_pair_at_every_convolution_and_nothing_else(packaged: Packaged) -> None:
    """What TensorRT takes: int8 with zero point 0, weights by output channel, a bias in float."""
    graph = Graph(packaged.quantized("signed"))
    original = {node.name: node for node in Graph(packaged.model).convolutions()}
    inputs = set()
    for node in graph.convolutions():
        inputs.add(node.input[0])
        assert graph.producer[node.input[0]].op_type == "DequantizeLinear"
        weight = graph.producer[node.input[1]]
        assert onnx.helper.get_node_attr_value(weight, "axis") == (0 if node.op_type == "Conv" else 1)
        assert node.input[2] == original[node.name].input[2]
    pairs = [node for node in graph.nodes if node.op_type == "DequantizeLinear" and node.input[0] in graph.producer]
    assert {node.output[0] for node in pairs} == inputs
    assert kinds(graph) - {"QuantizeLinear", "DequantizeLinear"} == kinds(Graph(packaged.model))
    zero_points = [graph.value(node.input[2]) for node in graph.nodes if node.op_type.endswith("quantizeLinear")]
    assert all(value.dtype == np.int8 and not value.any() for value in zero_points)
    assert TensorProto.UINT8 not in {tensor.data_type for tensor in graph.constants.values()}


@pytest.mark.parametrize("form", int8.FORMS)
def test_weights_are_within_half_a_step_of_the_trained_ones(packaged: Packaged, form: str) -> None:
    """One step for each output channel, which its largest weight needs in full."""
    graph, original = Graph(packaged.quantized(form)), Graph(packaged.model)
    trained = {node.name: original.value(node.input[1]) for node in original.convolutions()}
    for node in graph.convolutions():
        dequantize, weight = graph.producer[node.input[1]], trained[node.name]
        rounded, scale = (graph.value(name) for name in dequantize.input[:2])
        if rounded.shape != weight.shape:  # U-Net's 2x2 transposed convolutions as 1x1 ones
            weight = weight.transpose(2, 3, 1, 0).reshape(rounded.shape)
        axis = onnx.helper.get_node_attr_value(dequantize, "axis")
        column = scale.reshape([-1 if index == axis else 1 for index in range(4)])
        assert rounded.min() >= -127
        assert np.all(np.abs(rounded * column - weight) <= column * 0.5001)


@pytest.mark.parametrize("form", int8.FORMS)
def test_in_float_leaves_exactly_those_weights_alone(packaged: Packaged, form: str) -> None:
    """Every second convolution, so that both kinds read and feed each other."""
    chosen = convolutions(packaged.model)[::2]
    mixed = int8.convert(packaged.model, packaged.ranges, form=form, in_float=chosen)
    types = layer_types(Graph(mixed))
    assert {name for name, kind in types.items() if kind is Precision.FP32} == set(chosen)
    assert set(types.values()) == {Precision.FP32, Precision.INT8}
    found = run(mixed, packaged.pictures[:3])
    assert np.mean(found == packaged.expected[:3]) >= AGREEING


@pytest.mark.parametrize("form", int8.FORMS)
def test_with_every_convolution_in_float_nothing_is_rounded(packaged: Packaged, form: str) -> None:
    """The end of every search for layers to leave in float is the float32 graph's own class map."""
    whole = int8.convert(packaged.model, packaged.ranges, form=form, in_float=convolutions(packaged.model))
    assert not {"QuantizeLinear", "DequantizeLinear"} & kinds(Graph(whole))
    assert np.mean(run(whole, packaged.pictures[:3]) == packaged.expected[:3]) > 0.99999


SMALL: list[Any] = [
    *((name, (45, 62), {}) for name in models.names()),
    *(pytest.param(name, (64, 64), {}, marks=pytest.mark.slow) for name in models.names()),
    ("segnet", (45, 62), {"form": "basic", "ceil_mode": False}),
    ("unet", (188, 204), {"form": "paper"}),
    ("deeplabv3", (45, 62), {"head": "torchvision", "depth": 18}),
]


def small(name: str, size: tuple[int, int], variant: dict[str, Any]) -> onnx.ModelProto:
    """Of few channels and untrained, with biases: the exporter drops those that are zero."""
    torch.manual_seed(0)
    variant = {"multiplier": 0.125, **variant}
    network = models.build(name, 3, **variant).eval()
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    spec = Spec(name, variant, ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), *size, margin=network.margin)
    return export.to_graph(network, spec)


@pytest.mark.parametrize("name,size,variant", SMALL, ids=str)
def test_both_forms_of_every_variant_are_valid_and_open(
    name: str, size: tuple[int, int], variant: dict[str, Any]
) -> None:
    """Odd sizes pad SegNet's pooling and U-Net's skips; the class map is still of the image's size."""
    model = small(name, size, variant)
    noise = [np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)]
    ranges = calibration.collect(model, int8.tensors(model), lambda: iter(noise)).by("minmax")
    shape = run(model, noise).shape
    for form in int8.FORMS:
        quantized = int8.convert(model, ranges, form=form)
        onnx.checker.check_model(quantized, full_check=True)
        assert set(layer_types(Graph(quantized)).values()) == {Precision.INT8}
        found = run(quantized, noise)
        assert found.dtype == np.uint8
        assert found.shape == shape
        assert run_openvino(quantized, noise).shape == shape


def test_an_unknown_form_is_refused() -> None:
    """With the names of those there are."""
    with pytest.raises(InvalidRequestError, match="'vnni'") as refused:
        int8.convert(tiny("y = Conv(x, w)", w=kernel(1)), {}, form="vnni")
    assert all(form in str(refused.value) for form in int8.FORMS)


class PoolAndUnpool(Network):
    """SegNet's pooling alone: what comes out is each value, negated, where its maximum stood, else zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.first.weight = nn.Parameter(torch.eye(3)[..., None, None])
        self.last.weight = nn.Parameter(-torch.eye(3)[..., None, None])
        self.pool = MaxPoolWithIndices(ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        pooled, winners = self.pool(x)
        logits: Tensor = self.last(max_unpool(pooled, winners, (x.shape[2], x.shape[3])))
        return logits


@pytest.mark.parametrize("size", [(45, 62), (8, 8)])
def test_pooling_of_quantised_values_is_exact_ties_included(size: tuple[int, int]) -> None:
    """Bit-equal to PyTorch's MaxPool2d and MaxUnpool2d on whole numbers that tie in most windows."""
    spec = Spec("pool", {}, ("a", "b", "c"), ((0, 0, 0),) * 3, *size, (0.0,) * 3, (1 / 255,) * 3, output="logits")
    model = export.to_graph(PoolAndUnpool().eval(), spec)
    quantized = Graph(int8.convert(model, dict.fromkeys(int8.tensors(model), (0.0, 255.0)), form="unsigned"))
    cascade = [node for node in quantized.nodes if node.op_type in {"SpaceToDepth", "Split", "Where", "DepthToSpace"}]
    assert {quantized.shapes[name].type.tensor_type.elem_type for node in cascade for name in node.output} == {
        TensorProto.UINT8
    }
    picture = np.random.default_rng(0).choice(np.array([0, 3, 255], np.uint8), (2, *size, 3))
    x = torch.tensor(picture).permute(0, 3, 1, 2).float()
    pooled, indices = nn.functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    expected = nn.functional.max_unpool2d(pooled, indices, (2, 2), output_size=size).numpy()
    for found in (run(quantized.model, [picture]), run_openvino(quantized.model, [picture])):
        np.testing.assert_array_equal(np.round(found), -expected)


def test_a_doubling_transposed_convolution_is_a_pointwise_one() -> None:
    """In float, so that nothing but the rewriting is measured; ONNX Runtime has no transposed convolution in int8."""
    values = np.random.default_rng(0)
    constants = {"w": values.normal(size=(5, 3, 2, 2)), "b": values.normal(size=3)}
    text = "r = Relu(x) y = ConvTranspose<strides = [2, 2]>(r, w, b)"
    model = tiny(text, "5, 4, 6", **{name: value.astype(np.float32) for name, value in constants.items()})
    ranges = {"r": (0.0, 4.0), "y": (-9.0, 9.0)}
    rewritten = int8.convert(model, ranges, form="unsigned", in_float=["y"])
    assert [node.op_type for node in rewritten.graph.node][-2:] == ["Conv", "DepthToSpace"]
    picture = [values.normal(size=(2, 5, 4, 6)).astype(np.float32)]
    expected = run(model, picture)
    assert np.abs(run(rewritten, picture) - expected).max() <= REWRITTEN * np.ptp(expected)


@pytest.mark.parametrize(
    "attributes,shape",
    [("strides = [1, 1]", (5, 3, 2, 2)), ("strides = [2, 2], pads = [1, 1, 1, 1]", (5, 3, 2, 2))],
)
def test_other_transposed_convolutions_stay_as_they_are(attributes: str, shape: tuple[int, ...]) -> None:
    """Overlapping or cropped ones are no DepthToSpace."""
    constants = {"w": np.ones(shape, np.float32), "b": np.zeros(3, np.float32)}
    model = tiny(f"y = ConvTranspose<{attributes}>(x, w, b)", "5, 4, 6", **constants)
    quantized = int8.convert(model, {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}, form="unsigned")
    assert "ConvTranspose" in kinds(Graph(quantized))
    picture = [np.random.default_rng(0).uniform(-1, 1, (1, 5, 4, 6)).astype(np.float32)]
    np.testing.assert_allclose(run(quantized, picture), run(model, picture), atol=5 * 4 * 0.5 / 127)


RAMP = [np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)]


@pytest.mark.parametrize("form", int8.FORMS)
def test_channels_without_weights_give_their_bias(form: str) -> None:
    """A dead channel has no largest weight to divide by; nor has a dead convolution."""
    text, biases = "c = Conv(x, w, b) r = Relu(c) y = Conv(r, v, d)", {"b": [0.5, 0.25], "d": [-3]}
    constants: dict[str, Any] = {name: np.array(value, np.float32) for name, value in biases.items()}
    dead = tiny(text, w=kernel(0, 0), v=np.zeros((1, 2, 1, 1), np.float32), **constants)
    half_dead = tiny(text, w=kernel(1, 0), v=np.ones((1, 2, 1, 1), np.float32), **constants)
    ranges = {"x": (-1.0, 1.0), "r": (0.0, 2.0)}
    for model in (dead, half_dead):
        quantized = int8.convert(model, ranges, form=form)
        np.testing.assert_allclose(run(quantized, RAMP), run(model, RAMP), atol=0.03)


@pytest.mark.parametrize("form", int8.FORMS)
def test_a_tensor_that_is_always_zero_stays_zero(form: str) -> None:
    """A range of nothing has no scale of its own, and takes 1: the bias behind it is in steps of the weights' scale."""
    model = tiny("c = Conv(x, w, b) r = Relu(c) y = Conv(r, v, d)", w=kernel(1), v=kernel(1), b=F(-9), d=F(0.5))
    quantized = int8.convert(model, {"x": (-1.0, 1.0), "r": (0.0, 0.0)}, form=form)
    for found in (run(quantized, RAMP), run(quantized, RAMP, optimised=False), run_openvino(quantized, RAMP)):
        np.testing.assert_allclose(found, 0.5, atol=0.5 / 127)


@pytest.mark.parametrize("form", int8.FORMS)
def test_convolutions_may_share_constants(form: str) -> None:
    """The exporter stores equal tensors once; a bias has other steps at each of its readers."""
    model = tiny("c = Conv(x, w, b) r = Relu(c) y = Conv(r, w, b)", w=kernel(1), b=F(0.5))
    quantized = int8.convert(model, {"x": (-1.0, 1.0), "r": (0.0, 1.5)}, form=form)
    np.testing.assert_allclose(run(quantized, RAMP), run(model, RAMP), atol=0.02)


def F(*values: float) -> NDArray[np.float32]:  # noqa: N802 - short, for its many uses
    return np.array(values, np.float32)


def test_a_bias_too_large_for_its_steps_coarsens_the_weights_instead() -> None:
    """A channel with tiny weights has tiny steps: 500 of bias would be 1e13 of them, and wrap around in int32."""
    model = tiny("c = Conv(x, w, b) r = Relu(c) y = Conv(r, v, d)", w=kernel(1e-9), v=kernel(1), b=F(500), d=F(0))
    ranges = {"x": (-1.0, 1.0), "r": (0.0, 510.0)}
    quantized = int8.convert(model, ranges, form="unsigned")
    assert abs(int(Graph(quantized).value("b/quantized")[0])) < 2**31
    for found in (run(quantized, RAMP), run(quantized, RAMP, optimised=False), run_openvino(quantized, RAMP)):
        np.testing.assert_allclose(found, 500, atol=0.01)


def test_padding_between_quantised_values_is_zero() -> None:
    """Bytes of zero would be -128 steps on a grid whose zero is 128 (U-Net's skips at odd sizes)."""
    text = "c = Conv(x, w, b) p = Pad(c, by) y = Conv(p, v, d)"
    model = tiny(text, w=kernel(1), v=kernel(1), b=F(0), d=F(0), by=np.array([0, 0, 1, 2, 0, 0, 3, 4]))
    quantized = int8.convert(model, dict.fromkeys("xcp", (-1.0, 1.0)), form="unsigned")
    graph = Graph(quantized)
    assert graph.shapes[graph.producer["c/quantized"].output[0]].type.tensor_type.elem_type == TensorProto.UINT8
    expected = np.pad(RAMP[0], ((0, 0), (0, 0), (1, 3), (2, 4)))
    for found in (run(quantized, RAMP), run(quantized, RAMP, optimised=False), run_openvino(quantized, RAMP)):
        np.testing.assert_array_equal(found[expected == 0], 0)
        np.testing.assert_allclose(found, expected, atol=1.5 / 127)


@pytest.mark.parametrize(
    "low,grids", [(0.0, {0}), (-2.0, {0, 128})], ids=["one sign shares a grid", "both signs are rounded again"]
)
def test_a_concatenation_shares_a_grid_where_its_signs_agree(low: float, grids: set[int]) -> None:
    """Values from 0 up lose half of their steps beside negative ones: then each keeps its grid, and the Concat's."""
    text = "a = Conv(x, w, b) s = Relu(a) c = Conv(x, w, b2) t = Concat<axis = 1>(s, c) y = Conv(t, v, d)"
    both = np.ones((1, 2, 1, 1), np.float32)
    model = tiny(text, w=kernel(1), b=F(0), b2=F(0), v=both, d=F(0))
    model.graph.node[3].input[1] = "w2"
    model.graph.initializer.append(numpy_helper.from_array(kernel(1), "w2"))
    ranges = {"x": (-1.0, 1.0), "s": (0.0, 1.0), "c": (low, 2.0), "t": (low, 2.0)}
    graph = Graph(int8.convert(model, ranges, form="unsigned"))
    assert {int(graph.value(f"{name}/zero_point")) for name in "sc"} == grids
    scales = {float(graph.value(f"{name}/scale")) for name in "sct"}
    assert len(scales) == (1 if low >= 0 else 2)
    assert graph.is_float("t") == (low < 0)
