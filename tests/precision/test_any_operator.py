"""Low precision of operators that our own networks do not have: right in every runtime, or left in float32."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from rtx_builder import build_plan

from segdeploy.engines import ort
from segdeploy.graphs.graph import Graph, layer_types, layer_work, weighted_layers
from segdeploy.precision import fp8, fp16, int8
from segdeploy.proof import bisection
from segdeploy.quantization import calibration
from segdeploy.spec import Precision

if TYPE_CHECKING:
    from segdeploy.precision._base import Range

CHANNELS, HEIGHT, WIDTH = 32, 16, 24
MIDDLE = f"float[N, {CHANNELS}, {HEIGHT // 2}, {WIDTH // 2}]"
AGREEING = {"fp16": 0.99, "signed": 0.9, "unsigned": 0.9, "fp8": 0.8}  # of the pixels, of random weights on noise
SATURATED = 0.95  # OpenVINO and ONNX Runtime where no processor sums bytes exactly


@dataclasses.dataclass(frozen=True)
class Block:
    """ONNX text between two convolutions, from `x` to `y` (N, 32, 8, 12), its constants, and the layers in it.

    `low`: those that int8 takes.
    """

    text: str
    constants: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, object] = dataclasses.field(default_factory=dict)
    layers: int = 0
    low: int = 0


WEIGHT = {"w": (CHANNELS, CHANNELS, 3, 3), "b": (CHANNELS,)}
TOKENS = """
    t = Reshape(x, to_tokens)
    s = Transpose<perm = [0, 2, 1]>(t)
"""
PLACES = """
    u = Transpose<perm = [0, 2, 1]>(r)
    y = Reshape(u, to_places)
"""
SHAPES = {
    "to_tokens": np.array([0, CHANNELS, -1]),
    "to_places": np.array([0, CHANNELS, HEIGHT // 2, WIDTH // 2]),
}
LINEAR = {"w": (CHANNELS, CHANNELS), "b": (CHANNELS,)}
BLOCKS = {
    "depthwise": Block(
        "y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 32>(x, w, b)",
        {"w": (CHANNELS, 1, 3, 3), "b": (CHANNELS,)},
        layers=1,
        low=1,
    ),
    "grouped": Block(
        "y = Conv<kernel_shape = [3, 3], pads = [2, 2, 2, 2], dilations = [2, 2], group = 4>(x, w)",
        {"w": (CHANNELS, CHANNELS // 4, 3, 3)},
        layers=1,
        low=1,
    ),
    "uneven pads": Block('y = Conv<kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(x, w, b)', WEIGHT, layers=1, low=1),
    "grouped transposed": Block(
        """
        z = ConvTranspose<kernel_shape = [2, 2], strides = [2, 2], group = 4>(x, w)
        y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(z)
        """,
        {"w": (CHANNELS, CHANNELS // 4, 2, 2)},
        layers=1,
    ),
    "computed weights": Block(
        "f = Mul(w, one) \n y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, f)",
        {"w": (CHANNELS, CHANNELS, 3, 3)},
        {"one": np.array([1], np.float32)},
        layers=1,
    ),
    "residual": Block(
        "c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b) \n s = Add(c, x) \n y = Relu(s)",
        WEIGHT,
        layers=1,
        low=1,
    ),
    "squeeze and excite": Block(
        """
        p = GlobalAveragePool(x)
        d = Conv<kernel_shape = [1, 1]>(p, w, b)
        a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(d)
        y = Mul(x, a)
        """,
        {"w": (CHANNELS, CHANNELS, 1, 1), "b": (CHANNELS,)},
        layers=1,
        low=1,
    ),
    "ReLU6": Block(
        "c = Conv<kernel_shape = [1, 1]>(x, w, b) \n y = Clip(c, zero, six)",
        {"w": (CHANNELS, CHANNELS, 1, 1), "b": (CHANNELS,)},
        {"zero": np.float32(0), "six": np.float32(0.4)},
        layers=1,
        low=1,
    ),
    "hard swish": Block("y = HardSwish(x)"),
    "SiLU": Block("g = Sigmoid(x) \n y = Mul(x, g)"),
    "PReLU": Block("y = PRelu(x, slope)", {"slope": (CHANNELS, 1, 1)}),
    "leaky ReLU": Block("y = LeakyRelu<alpha = 0.1>(x)"),
    "GELU": Block('y = Gelu<approximate = "tanh">(x)'),
    "instance norm": Block(
        "y = InstanceNormalization<epsilon = 1e-5>(x, scale, shift)", {"scale": (CHANNELS,), "shift": (CHANNELS,)}
    ),
    "group norm": Block(
        """
        g = Reshape(x, grouped)
        n = InstanceNormalization<epsilon = 1e-5>(g, scale, shift)
        h = Reshape(n, to_places)
        y = Mul(h, gain)
        """,
        {"scale": (4,), "shift": (4,), "gain": (CHANNELS, 1, 1)},
        {**SHAPES, "grouped": np.array([0, 4, -1])},
    ),
    "layer norm": Block(
        f"{TOKENS} r = LayerNormalization<axis = -1>(s, scale, shift) {PLACES}",
        {"scale": (CHANNELS,), "shift": (CHANNELS,)},
        SHAPES,
    ),
    "layer norm written out": Block(
        f"""{TOKENS}
        mean = ReduceMean(s, last)
        c = Sub(s, mean)
        q = Pow(c, two)
        v = ReduceMean(q, last)
        e = Add(v, tiny)
        d = Sqrt(e)
        r = Div(c, d)
        {PLACES}""",
        {},
        {**SHAPES, "last": np.array([-1]), "two": np.float32(2), "tiny": np.float32(1e-12)},
    ),
    "linear": Block(f"{TOKENS} m = MatMul(s, w) \n r = Add(m, b) {PLACES}", LINEAR, SHAPES, layers=1, low=1),
    "Gemm": Block(
        """
        p = GlobalAveragePool(x)
        f = Flatten(p)
        g = Gemm<transB = 1>(f, w, b)
        h = Unsqueeze(g, axes)
        y = Add(x, h)
        """,
        LINEAR,
        {"axes": np.array([2, 3])},
        layers=1,
        low=1,
    ),
    "scaled Gemm": Block(
        """
        p = GlobalAveragePool(x)
        f = Flatten(p)
        g = Gemm<alpha = 0.5>(f, w, b)
        h = Unsqueeze(g, axes)
        y = Add(x, h)
        """,
        LINEAR,
        {"axes": np.array([2, 3])},
        layers=1,
    ),
    "attention": Block(
        f"""{TOKENS}
        q = MatMul(s, w)
        k = MatMul(s, v)
        l = Transpose<perm = [0, 2, 1]>(k)
        a = MatMul(q, l)
        b = Softmax<axis = -1>(a)
        r = MatMul(b, s)
        {PLACES}""",
        {"w": (CHANNELS, CHANNELS), "v": (CHANNELS, CHANNELS)},
        SHAPES,
        layers=4,
        low=2,
    ),
    "averaging": Block("y = MatMul(x, pool)", {}, {"pool": np.full((WIDTH // 2, WIDTH // 2), 2 / WIDTH, np.float32)}),
    "resize": Block(
        """
        d = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(d, , twice)
        """,
        {},
        {"twice": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize to a shape": Block(
        """
        d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        all = Shape(x)
        y = Resize<mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">(d, , , all)
        """
    ),
    "pad and slice": Block(
        """
        p = Pad<mode = "reflect">(x, pads)
        y = Slice(p, starts, ends, axes)
        """,
        {},
        {
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "starts": np.array([0, 2]),
            "ends": np.array([HEIGHT // 2, 2 + WIDTH // 2]),
            "axes": np.array([2, 3]),
        },
    ),
    "not a number": Block(
        """
        n = IsNaN(x)
        k = Not(n)
        f = Cast<to = 1>(k)
        y = Mul(x, f)
        """
    ),
    "one weight, two readers": Block(
        """
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b)
        d = Conv<kernel_shape = [3, 3], pads = [2, 2, 2, 2], dilations = [2, 2]>(c, w)
        e = ReduceMean(w)
        y = Add(d, e)
        """,
        WEIGHT,
        layers=2,
        low=2,
    ),
}


def network(block: Block, seed: int = 0) -> onnx.ModelProto:
    """Image to class map: a convolution of stride 2, the block, a ReLU, a convolution to three scores."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        theirs (uint8[N, {HEIGHT}, {WIDTH}, 3] images) => (uint8[N, {HEIGHT // 2}, {WIDTH // 2}] class_map) {{
            pixels = Cast<to = 1>(images)
            scaled = Mul(pixels, share)
            planes = Transpose<perm = [0, 3, 1, 2]>(scaled)
            first = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(planes, stem)
            x = Identity(first)
            {block.text}
            rectified = Relu(y)
            scores = Conv<kernel_shape = [1, 1]>(rectified, head)
            best = ArgMax<axis = 1, keepdims = 0>(scores)
            floats = Cast<to = 1>(best)
            class_map = Cast<to = 2>(floats)
        }}
    """
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(seed)
    shapes = {"stem": (CHANNELS, 3, 3, 3), "head": (3, CHANNELS, 1, 1), **block.constants}
    for name, shape in shapes.items():
        spread = (2 / np.prod(shape[1:] if len(shape) > 2 else shape[:1])) ** 0.5 if len(shape) > 1 else 0.2
        values = random.normal(0, spread, shape) + (1 if name in {"scale", "gain"} else 0)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    for name, value in {"share": np.float32(1 / 255), **block.numbers}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in model.graph.node:
        node.name = f"{node.op_type}.{node.output[0]}"
    graph = Graph(model)
    graph.describe_tensors()
    return graph.model


def noise(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def drawn(model: onnx.ModelProto, images: NDArray[np.uint8], *, optimised: bool = True) -> NDArray[np.uint8]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: NDArray[np.uint8] = session.run(None, {"images": images})[0]
    return found


def in_openvino(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: NDArray[np.uint8] = compiled([images])[0]
    return found


def low(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """The graph in fp16, fp8, or a form of int8, but for what cannot be."""
    module = {"fp16": fp16, "fp8": fp8}.get(kind, int8)
    batches = [noise(2, seed) for seed in range(3)]
    ranges: Mapping[str, Range] = calibration.collect(model, module.tensors(model), lambda: batches).by("minmax")
    always = module.layers(model, ranges).in_float
    converted: onnx.ModelProto = module.convert(model, ranges, form=kind if module is int8 else None, in_float=always)
    return converted


@pytest.mark.parametrize("kind", ["fp16", "fp8", "signed", "unsigned"])
@pytest.mark.parametrize("name", BLOCKS)
def test_an_operator_keeps_its_masks_in_low_precision(name: str, kind: str) -> None:
    """In ONNX Runtime, in OpenVINO, and for TensorRT-RTX's builder; what is low is what was said to be."""
    block = BLOCKS[name]
    model, images = network(block), noise(8, 99)
    assert len(layer_work(Graph(model))) == block.layers + 2
    converted = low(model, kind)
    if kind in {"signed", "unsigned"}:
        assert sum(each is Precision.INT8 for each in layer_types(Graph(converted)).values()) == block.low + 2
    expected = drawn(model, images)
    assert len(np.unique(expected)) > 1
    spelled = fp16.executable(converted) if kind == "fp16" else converted
    own = drawn(spelled, images, optimised=kind == "fp16")
    assert (own == expected).mean() >= AGREEING[kind]
    if kind in {"fp16", "unsigned"}:
        assert (in_openvino(converted, images) == own).mean() >= SATURATED
    if kind != "unsigned":
        build_plan(converted)


def looked_into(model: onnx.ModelProto, converted: onnx.ModelProto) -> bisection.Look:
    run = functools.partial(ort.tensors, device="cpu", optimised=False)
    return bisection.look_beside(model, converted, noise(1, 7)[0], run=run)


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_layer_that_departs_is_named_beside_the_float32_graph(name: str, kind: str) -> None:
    """Every layer of a right graph is right; of one whose weights are negated, that layer is the first that is not."""
    model = network(BLOCKS[name])
    converted = low(model, kind)
    assert looked_into(model, converted).first(int8.TOLERANCE) is None
    graph = Graph(converted)
    planted = weighted_layers(graph)[-2].name
    weight = next(node.input[1] for node in graph.nodes if node.name == planted)
    stored = graph.producer[weight].input[0] if weight in graph.producer else weight
    graph.set_value(stored, -graph.value(stored))
    step = looked_into(model, graph.model).first(int8.TOLERANCE)
    assert step is not None
    assert (step.kind, step.layer) == ("layer", planted)


def test_a_class_map_that_is_not_the_largest_score_is_found() -> None:
    model = network(BLOCKS["linear"])
    graph = Graph(low(model, "signed"))
    graph.set_value("one more", np.array(1))
    floats = graph.producer["floats"]
    at = list(graph.nodes).index(floats)
    graph.nodes.insert(at, onnx.helper.make_node("Add", ["best", "one more"], ["shifted"], name="planted"))
    graph.nodes[at + 1].input[0] = "shifted"
    step = looked_into(model, graph.model).first(int8.TOLERANCE)
    assert step is not None
    assert step.kind == "class map"
