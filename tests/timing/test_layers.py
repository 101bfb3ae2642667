"""The time of a call under our layers' names, whatever the runtime made of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import photograph
from onnx import TensorProto, helper

from segdeploy import artifact, engines, models, precision, workspace
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import NodeTime, RunOptions
from segdeploy.graphs.graph import CONVOLUTIONS, Graph
from segdeploy.graphs.to_onnx import to_onnx
from segdeploy.progress import silent
from segdeploy.quantization import recipes, search
from segdeploy.quantization.images_in_parts import parts_of
from segdeploy.spec import Precision
from segdeploy.timing import layers
from segdeploy.timing.result_types import LayerTime

NAMED = 0.95  # of the time; measured: all of it, in each network, precision and runtime
LEAST_CONVOLVED = 0.4  # measured: 0.53 (SegNet in int8, whose unpooling ONNX Runtime does node by node) to 0.96
ONE_THREAD = RunOptions(threads=1)


def packaged(name: str, wanted: Precision, folder: Path) -> Artifact:
    weights = workspace.weights_for(name)
    network, spec = checkpoint.load(weights.checkpoint.path)
    fp32 = to_onnx(network, spec, folder / f"{name}.fp32.onnx", weights=weights.origin_in(folder))
    if wanted is Precision.FP32:
        return fp32
    parts = parts_of(at_hand=workspace.pictures_of(None)[:8], calibrate=None, data=None)
    forms = ["unsigned"] if wanted is Precision.INT8 else []
    (recipe,) = recipes.recipes(fp32, wanted, forms, parts, method=None, cache=None, progress=silent)
    model = recipe.build(set())
    return search.write(recipe.described(set(), precision.module(wanted).BUDGET, model), model, None)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [Precision.FP32, Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("name", models.names())
def test_the_time_is_that_of_our_layers(name: str, wanted: Precision, tmp_path: Path) -> None:
    """Fused, renamed, laid out anew and in int8: every convolution is found again, and nothing else is in the way."""
    file = packaged(name, wanted, tmp_path)
    nodes = onnx.load(file.path).graph.node
    modules = {node.name.partition("/")[0] for node in nodes if node.op_type != "QuantizeLinear"}
    modules -= {node.name.partition("/")[0] for node in nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    convolutions = {node.name.partition("/")[0] for node in nodes if node.op_type in CONVOLUTIONS}
    images = photograph(file.spec.height, file.spec.width)[None]
    for runtime in ("ort", "ov"):
        rows = layers.profile(file, runtime=runtime, device="cpu", images=images, runs=2, options=ONE_THREAD)
        assert rows is not None
        assert convolutions <= {row.layer for row in rows}
        assert sum(row.share for row in rows if row.layer in modules) >= NAMED
        assert sum(row.share for row in rows if row.layer in convolutions) >= LEAST_CONVOLVED
        assert sum(row.share for row in rows) == pytest.approx(1)
        assert [row.ms for row in rows] == sorted((row.ms for row in rows), reverse=True)


@pytest.mark.usefixtures("workspace")
def test_a_profile_is_the_mean_of_a_call_and_grows_with_the_batch() -> None:
    """Not the sum over the runs, and without the warm-up."""
    file = artifact.read(Path("export/unet.fp32.onnx"))
    images = np.stack([photograph(64, 64, seed) for seed in range(16)])

    def total(batch: int, runs: int) -> float:
        rows = layers.profile(file, runtime="ort", device="cpu", images=images[:batch], runs=runs, options=ONE_THREAD)
        assert rows is not None
        return sum(row.ms for row in rows)

    few, many = total(16, 3), total(16, 30)
    assert many < 4 * few, "ten times the runs are no ten times the mean"
    assert total(1, 10) < many


@pytest.mark.usefixtures("workspace")
def test_what_cannot_say_says_nothing() -> None:
    file = workspace.weights_for("unet").checkpoint
    images = photograph(file.spec.height, file.spec.width)[None]
    assert layers.profile(file, runtime="torch", device="cpu", images=images, runs=1) is None
    graph = artifact.read(Path("export/unet.fp32.onnx"))
    found = engines.modules()["ort"].layer_ms(graph, device="cuda", images=images, runs=1)  # type: ignore[attr-defined]
    assert found is None, "the clock of the host sees launches"


@pytest.fixture
def names() -> layers.LayerNames:
    """Two convolutions with a ReLU, quantised between."""

    def quantised(kind: str, source: str, made: str, name: str) -> onnx.NodeProto:
        return helper.make_node(kind, [source, "scale", "zero"], [made], name=name)

    nodes = [
        helper.make_node("Conv", ["images", "w"], ["conv2d"], name="down.0.conv/Conv"),
        helper.make_node("Relu", ["conv2d"], ["relu"], name="down.0.relu/Relu"),
        quantised("QuantizeLinear", "relu", "relu/quantized", "relu/QuantizeLinear"),
        quantised("DequantizeLinear", "relu/quantized", "relu/dequantized", "relu/DequantizeLinear"),
        quantised("DequantizeLinear", "v", "v/dequantized", "network.classifier.weight/DequantizeLinear"),
        helper.make_node("Conv", ["relu/dequantized", "v/dequantized"], ["logits"], name="classifier/Conv"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("images", "logits")]
    return layers.LayerNames(Graph(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))))


@pytest.mark.parametrize(
    "kind,known_as,layer",
    [
        ("Conv", ("down.0.conv/Conv",), "down.0.conv"),
        ("Conv", ("relu",), "down.0.conv"),  # ONNX Runtime names a fused convolution for its tensor
        ("Relu", ("relu",), "down.0.relu"),
        ("Convolution", ("down.0.relu/Relu", "down.0.conv/Conv"), "down.0.conv"),
        ("Quantize", ("relu/QuantizeLinear",), "down.0.relu"),
        ("Dequantize", ("network.classifier.weight/DequantizeLinear",), "classifier"),
        ("TopK", ("TopK_345",), None),
        ("Reorder", ("",), None),
    ],
)
def test_a_runtimes_name_leads_to_the_layer(
    names: layers.LayerNames, kind: str, known_as: tuple[str, ...], layer: str | None
) -> None:
    assert names.layer(NodeTime("n", kind, 1.0, known_as)) == layer


def test_what_a_runtime_adds_counts_for_the_layer_it_serves(names: layers.LayerNames) -> None:
    """A change of layout for the layer that reads it, the last one for what it reads, and the rest for the runtime."""
    nodes = [
        NodeTime("in", "Reorder", 1.0, ()),
        NodeTime("a", "Conv", 5.0, ("down.0.conv/Conv",), ("in",)),
        NodeTime("skipped", "Relu", 0.0, ("down.0.relu/Relu",), ("a",)),
        NodeTime("between", "Transpose", 0.5, (), ("a",)),
        NodeTime("b", "Conv", 3.0, ("classifier/Conv",), ("between",)),
        NodeTime("out", "Reorder", 0.25, (), ("b",)),
        NodeTime("apart", "Sync", 0.25, ()),
    ]
    assert layers.by_layer(nodes, names) == (
        LayerTime(layer="down.0.conv", op="Conv + Reorder", ms=6.0, share=0.6),
        LayerTime(layer="classifier", op="Conv + Transpose + Reorder", ms=3.75, share=0.375),
        LayerTime(layer=layers.RUNTIME_LAYER, op="Sync", ms=0.25, share=0.025),
    )
