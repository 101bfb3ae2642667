"""FP16 graphs: what is half and what is not, what overflows, and an executor that does not hide it."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from segdeploy import fitting, images, models, workspace
from segdeploy.checkpoints import checkpoint
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import CONVOLUTIONS, Graph, layer_types
from segdeploy.precision import fp16
from segdeploy.quantization import calibration
from segdeploy.spec import Precision

EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei" / "images"
AGREEING = 0.998  # of the pixels, rounded after every node, with float32; measured 0.9988 (SegNet) to 0.99994
HIDDEN = 0.999  # of the pixels, what ONNX Runtime on a CPU makes of an overflowing graph; measured 0.9993 to 0.99999
OVERFLOWING = 0.96  # of the pixels, at most, once the overflow is computed; measured 0.91 to 0.94
# A convolution made 2^14 times larger, and the one behind its ReLU and pooling as much smaller: exact in float32.
GAIN = 2.0**14
LOUD = {
    "deeplabv3": ("trunk.layer2.1.conv1.conv/Conv", "trunk.layer2.1.conv2.conv/Conv"),
    "pspnet": ("head.0.conv/Conv", "head.2/Conv"),
    "unet": ("down.1.0.conv/Conv", "down.1.1.conv/Conv"),
    "segnet": ("encoder.0.1.conv/Conv", "encoder.1.0.conv/Conv"),
}
Batch = NDArray[np.uint8]


def run(model: onnx.ModelProto, batches: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """The first output for every batch, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])


def run_rounded(model: onnx.ModelProto, batches: Iterable[NDArray[Any]], in_float: Collection[str] = ()) -> Any:  # noqa: ANN401
    return run(fp16.executable(fp16.to_half(model, in_float=in_float)), batches)


@dataclasses.dataclass(frozen=True, slots=True)
class Packaged:
    """A packaged network's graph, some calibration images, and the example photographs with its class maps."""

    name: str
    model: onnx.ModelProto
    seen: list[Batch]
    pictures: list[Batch]
    expected: Batch


@pytest.fixture(scope="module", params=models.names())
def packaged(request: pytest.FixtureRequest) -> Packaged:
    network, spec = checkpoint.load(workspace.PACKAGED / f"{request.param}.safetensors")
    model = export.to_graph(network, spec)
    seen, shown = (
        [fitting.prepared(images.read(path), spec)[None] for path in paths]
        for paths in (workspace.packaged_images()[::4], sorted(EXAMPLES.glob("*.png")))
    )
    return Packaged(request.param, model, seen, shown, run(model, shown))


def tiny(text: str, **constants: Any) -> onnx.ModelProto:  # noqa: ANN401
    """From uint8 `images` over float `x` to float `y`; a node is named by its output."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (uint8[N, 1, 16, 16] images) => (float[N, 1, 16, 16] y) {{ x = Cast<to = 1>(images) {text} }}
    """)
    for name, value in {"w": np.ones((1, 1, 1, 1)), **constants}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


EVERY_BYTE = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


def test_the_packaged_networks_keep_their_class_maps(packaged: Packaged) -> None:
    """With every intermediate result rounded to half, and none of them out of range."""
    assert len(packaged.pictures) == 20
    extremes = calibration.extremes(packaged.model, fp16.tensors(packaged.model), lambda: packaged.seen)
    assert not fp16.beyond_range(packaged.model, extremes)
    assert np.mean(run_rounded(packaged.model, packaged.pictures) == packaged.expected) >= AGREEING


def test_a_half_graph_is_half_up_to_its_last_convolution(packaged: Packaged) -> None:
    """Bytes in and out; what is behind the logits (the last up-sampling, the argmax) compares them in float32."""
    model = fp16.to_half(packaged.model)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.UINT8
    }
    assert set(layer_types(graph).values()) == {Precision.FP16}
    last = max(index for index, node in enumerate(graph.nodes) if node.op_type in CONVOLUTIONS)
    before, behind = graph.nodes[: last + 1], graph.nodes[last + 1 :]
    assert not any(graph.is_float(name) for node in before for name in (*node.input, *node.output))
    assert not any(graph.is_half(name) for node in behind[1:] for name in (*node.input, *node.output))
    assert (behind[0].op_type, behind[0].input[0]) == ("Cast", graph.nodes[last].output[0])


def test_onnx_runtime_opens_half_graphs_with_and_without_islands(packaged: Packaged) -> None:
    """Every second node in float32 is the most casts a graph can have; each is written once."""
    mixed = fp16.to_half(packaged.model, in_float=fp16.nodes(packaged.model)[::2])
    onnx.checker.check_model(mixed, full_check=True)
    casts = [(node.input[0], node.attribute[0].i) for node in mixed.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    for model in (mixed, fp16.to_half(packaged.model)):
        assert np.mean(run(model, packaged.pictures[:2]) == packaged.expected[:2]) >= AGREEING


def test_with_every_node_in_float_the_graph_is_the_float_graph(packaged: Packaged) -> None:
    whole = fp16.to_half(packaged.model, in_float=[node.name for node in packaged.model.graph.node])
    assert whole.graph.node == packaged.model.graph.node
    assert {tensor.name for tensor in whole.graph.initializer} == {t.name for t in packaged.model.graph.initializer}


def test_with_every_node_that_rounds_in_float_nothing_is_rounded() -> None:
    """The end of every search for layers to leave in float; what only carries values goes with them."""
    model = tiny("m = Mul(x, a) r = Relu(m) c = Conv(r, w) y = Identity(c)", a=0.1)
    np.testing.assert_array_equal(run_rounded(model, [EVERY_BYTE], fp16.nodes(model)), run(model, [EVERY_BYTE]))


def louder(model: onnx.ModelProto, first: str, second: str) -> onnx.ModelProto:
    """The same network with larger numbers between two convolutions."""
    graph = Graph(model)
    named = {node.name: node for node in graph.convolutions()}
    for name in named[first].input[1:]:
        graph.set_value(name, graph.value(name) * np.float32(GAIN))
    weight = named[second].input[1]
    graph.set_value(weight, graph.value(weight) / np.float32(GAIN))
    return graph.model


def test_overflow_is_found_and_mended_by_islands(packaged: Packaged) -> None:
    """Activations of 150,000 that come back: correct in float32, infinite in half, and hidden by a CPU."""
    model = louder(packaged.model, *LOUD[packaged.name])
    pictures, expected = packaged.pictures[:6], packaged.expected[:6]
    np.testing.assert_array_equal(run(model, pictures), expected)

    assert np.mean(run(fp16.to_half(model), pictures) == expected) >= HIDDEN
    assert np.mean(run_rounded(model, pictures) == expected) <= OVERFLOWING

    extremes = calibration.extremes(model, fp16.tensors(model), lambda: packaged.seen)
    islands = fp16.beyond_range(model, extremes)
    assert set(LOUD[packaged.name]) <= set(islands)
    assert min(islands.values()) > fp16.LARGEST
    assert np.mean(run_rounded(model, pictures, islands) == expected) >= AGREEING


def test_an_overflow_is_infinite_where_it_is_rounded() -> None:
    """ONNX Runtime on a CPU computes the same graph in float32 and gives the bytes back."""
    model = tiny("m = Mul(x, up) n = Mul(m, down) c = Conv(n, w) y = Identity(c)", up=1024, down=1 / 1024)
    half = fp16.to_half(model)
    np.testing.assert_array_equal(run(half, [EVERY_BYTE]), EVERY_BYTE)
    found = run(fp16.executable(half), [EVERY_BYTE])
    np.testing.assert_array_equal(found, np.where(EVERY_BYTE >= 64, np.inf, EVERY_BYTE))
    extremes = calibration.extremes(model, fp16.tensors(model), lambda: [EVERY_BYTE])
    islands = fp16.beyond_range(model, extremes)
    assert islands == {"m": 255 * 1024, "n": 255 * 1024}
    np.testing.assert_array_equal(run_rounded(model, [EVERY_BYTE], islands), EVERY_BYTE)


def test_a_constant_beyond_the_range_makes_an_island_of_its_reader() -> None:
    """A weight counts as much as a result; the limit is half of the largest number in half precision."""
    model = tiny("m = Mul(x, up) c = Conv(m, w) y = Identity(c)", up=40_000)
    assert fp16.beyond_range(model, {"m": (0.0, 1.0)}) == {"m": 40_000}
    assert fp16.beyond_range(model, {"m": (-32_753.0, 1.0)}) == {"m": 40_000, "c": 32_753}
    assert fp16.beyond_range(tiny("c = Conv(x, w) y = Identity(c)"), {"x": (-32_752.0, 32_752.0)}) == {}


def test_the_rounding_executor_is_the_arithmetic_of_half() -> None:
    """NumPy rounds after every operation; whoever keeps float32 in between gets other values."""
    model = tiny("p = Mul(x, a) q = Add(p, b) r = Mul(q, q) c = Conv(r, w) y = Identity(c)", a=0.1, b=3.3)
    x, a, b = EVERY_BYTE.astype(np.float16), np.float16(0.1), np.float16(3.3)
    q = x * a + b
    assert q.dtype == np.float16
    np.testing.assert_array_equal(run_rounded(model, [EVERY_BYTE]), (q * q).astype(np.float32))
    in_one_go = np.square(EVERY_BYTE * np.float32(a) + np.float32(b)).astype(np.float16)
    assert np.any(in_one_go != q * q)
    assert fp16.nodes(model) == ["x", "p", "q", "r", "c"]


def test_only_half_results_are_rounded() -> None:
    """An island's results stay as they are; its reader casts them."""
    model = tiny("p = Mul(x, a) q = Mul(p, b) c = Conv(q, w) y = Identity(c)", a=0.1, b=3.3)
    found = run_rounded(model, [EVERY_BYTE], in_float=["p"])
    p = (EVERY_BYTE.astype(np.float32) * np.float32(0.1)).astype(np.float16)
    np.testing.assert_array_equal(found, (p * np.float16(3.3)).astype(np.float32))


def test_a_tensor_that_is_read_in_both_types_is_cast_once() -> None:
    text = "p = Mul(x, a) q = Add(p, p) r = Mul(p, p) s = Add(q, r) c = Conv(s, w) y = Identity(c)"
    casts = Counter(
        node.input[0] for node in fp16.to_half(tiny(text, a=2), in_float="qr").graph.node if node.op_type == "Cast"
    )
    assert casts == {"images": 1, "p": 1, "q": 1, "r": 1, "c": 1}
