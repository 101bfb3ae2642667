"""FP8 in the graph: E4M3 weights and activations for TensorRT 10.13 to 11, on GPUs of compute capability 8.9 and above.

A float of 4 exponent and 3 mantissa bits, up to 448. QuantizeLinear and DequantizeLinear stand on the input of every
convolution that TensorRT has fast fp8 kernels for, and DequantizeLinear behind its weights, which have a scale for each
output channel; bias and output stay in float32. A tensor is rounded once, and all its readers share the result.

Matrix products stay in float32. Ranges are not clipped: a float loses no precision where its range is wider than it
need be.
"""

import math
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.graphs.graph import PRODUCTS, WEIGHT, Graph, attribute, layer_work
from segdeploy.low_precision import Budget
from segdeploy.precision._base import Layers, Range, Tolerance
from segdeploy.spec import Precision

if TYPE_CHECKING:
    import onnx

PRECISION = Precision.FP8
FORMS = ()
BUDGET = Budget(min_agreement=0.98, max_drop=0.5)
METHOD = None
TOLERANCE = Tolerance(layer=0.1, between=0.1)  # right layers of the four packaged networks: at most 0.024 and 0.029
LEAST_COMPUTE_CAPABILITY = "8.9"  # TensorRT's support matrix: Ada and newer
LARGEST = 448  # that E4M3 holds
# Release notes of TensorRT 10.13.3, "Limitations": no fp8 kernels for more taps than 32, no fast ones for groups.
# NVIDIA Model Optimizer, find_nodes_from_convs_to_exclude: with 16 channels or fewer, fp8 is slower than fp16.
MOST_TAPS = 32
TOO_FEW_CHANNELS = 16
LEAST_SCALE, LARGEST_SCALE = 2.0**-14, 65504.0  # normal numbers of a half: scales can be stored as halves


def tensors(model: "onnx.ModelProto") -> list[str]:
    """The activations whose range is asked for: what those convolutions read."""
    graph = Graph(model)
    read = {node.input[0] for node in _eligible(graph)}
    return [name for node in graph.nodes for name in node.output if name in read]


def layers(model: "onnx.ModelProto", ranges: Mapping[str, Range]) -> Layers:  # noqa: ARG001 - no range is too wide
    """Every layer; in float32 stays what TensorRT has no fast fp8 kernel for."""
    graph = Graph(model)
    found = {node.name: _reason(graph, node) for node in graph.layers()}
    return Layers(
        work=layer_work(graph),
        in_float={name: reason for name, reason in found.items() if reason is not None},
    )


def convert(
    model: "onnx.ModelProto",
    ranges: Mapping[str, Range],
    *,
    form: str | None = None,  # noqa: ARG001 - there is one
    in_float: Collection[str] = (),
) -> "onnx.ModelProto":
    """The float32 graph with its eligible convolutions in fp8, but for those that `in_float` names.

    `ranges` holds the extremes of every tensor of `tensors(model)`.
    """
    graph = Graph(model)
    chosen = {node.name for node in _eligible(graph)}.difference(in_float)
    _Writer(graph, chosen, ranges).write()
    return graph.model


def executable(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """As it is: node by node, ONNX Runtime's QuantizeLinear rounds to E4M3, ties to even, and saturates at 448."""
    return model


def _eligible(graph: Graph) -> "list[onnx.NodeProto]":
    return [node for node in graph.convolutions() if _reason(graph, node) is None]


def _reason(graph: Graph, node: "onnx.NodeProto") -> str | None:
    """Why a layer is not for fp8; None where it is."""
    if node.op_type in PRODUCTS:
        return "a matrix product"
    if not all(name in graph.constants and graph.is_float(name) for name in node.input[WEIGHT:] if name):
        return "its weights are computed, or not in float32"
    if not graph.is_activation(node.input[0]):
        return "it reads no activation"
    return "a transposed convolution: TensorRT has none in fp8" if node.op_type != "Conv" else _slow(graph, node)


def _slow(graph: Graph, node: "onnx.NodeProto") -> str | None:
    """Why TensorRT has no fast fp8 kernel for a convolution; None where it has."""
    outputs, inputs, *kernel = graph.constants[node.input[WEIGHT]].dims
    if attribute(node, "group", 1) != 1 or len(kernel) != 2:  # noqa: PLR2004 - rows and columns
        return "a grouped convolution: TensorRT has no fast one in fp8"
    if math.prod(kernel) > MOST_TAPS:
        return f"{math.prod(kernel)} taps: TensorRT takes up to {MOST_TAPS} in fp8"
    if min(inputs, outputs) <= TOO_FEW_CHANNELS:
        return f"{min(inputs, outputs)} channels: fp8 is faster with more than {TOO_FEW_CHANNELS}"
    return None


class _Writer:
    """Writes the nodes anew, in their order; the chosen ones read rounded values."""

    def __init__(self, graph: Graph, chosen: AbstractSet[str], ranges: Mapping[str, Range]) -> None:
        self.graph = graph
        self.chosen = chosen
        self.ranges = ranges
        self.rounded = {node.input[0] for node in graph.convolutions() if node.name in chosen}
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        for node in list(self.graph.nodes):
            if node.name in self.chosen:
                self._round_weights(node)
                node.input[0] = f"{node.input[0]}/dequantized"
            self.nodes.append(node)
            for name in self.rounded.intersection(node.output):
                self._round(name)
        self.graph.replace_nodes(self.nodes)
        self.graph.drop_unread_constants()
        self.graph.describe_tensors()

    def _round(self, name: str) -> None:
        from onnx import helper

        scale = _scales(np.abs(self.ranges[name]).max())
        self._set_grid(name, scale)
        inputs = [name, f"{name}/scale", f"{name}/zero_point"]
        self.nodes.append(
            helper.make_node("QuantizeLinear", inputs, [f"{name}/quantized"], name=f"{name}/QuantizeLinear")
        )
        self._dequantize(name)

    def _round_weights(self, node: "onnx.NodeProto") -> None:
        name = node.input[WEIGHT]
        weight = self.graph.value(name)
        scales = _scales(np.abs(weight).reshape(len(weight), -1).max(axis=1))
        if f"{name}/quantized" not in self.graph.constants:  # equal weights are one constant
            self.graph.set_value(f"{name}/quantized", _rounded(weight / scales.reshape(-1, 1, 1, 1)))
            self._set_grid(name, scales)
            self._dequantize(name, axis=0)
        node.input[WEIGHT] = f"{name}/dequantized"

    def _set_grid(self, name: str, scale: NDArray[np.float32]) -> None:
        """Write scale and zero point. The zero point is always 0; in ONNX, its type says that fp8 is meant."""
        self.graph.set_value(f"{name}/scale", scale)
        self.graph.set_value(f"{name}/zero_point", _rounded(np.zeros_like(scale)))

    def _dequantize(self, name: str, **attributes: int) -> None:
        from onnx import helper

        inputs = [f"{name}/{part}" for part in ("quantized", "scale", "zero_point")]
        named: dict[str, Any] = {"name": f"{name}/DequantizeLinear", **attributes}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}/dequantized"], **named))


def _scales(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scales with which E4M3 reaches the largest values; each is exact in half precision.

    What is always zero, or small, gets more room than it needs, which costs a float nothing.
    """
    return np.clip(largest / LARGEST, LEAST_SCALE, LARGEST_SCALE).astype(np.float16).astype(np.float32)


def _rounded(value: NDArray[Any]) -> NDArray[Any]:
    """The nearest E4M3 values, ties to even; what is larger than the largest becomes the largest."""
    from onnx import TensorProto, helper

    kind = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
    rounded: NDArray[Any] = np.clip(value, -LARGEST, LARGEST).astype(kind)
    return rounded
