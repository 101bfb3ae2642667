"""An ONNX graph that can be asked who makes a tensor and who reads it."""

import math
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from segdeploy.spec import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

CONVOLUTIONS = ("Conv", "ConvTranspose")
DECISION = "deployed/Decision"  # the node that decides the classes in an adopted graph
# They move values and compute none: where the input is quantized, so is the output, with the same scale.
CARRIERS = ("Concat", "DepthToSpace", "Expand", "MaxPool", "Pad", "Slice", "SpaceToDepth", "Split", "Where")


WEIGHT_TYPES = {  # by ONNX's name of the type
    "FLOAT16": Precision.FP16,
    "FLOAT8E4M3FN": Precision.FP8,
    "INT8": Precision.INT8,
}


class Graph:
    """A copy of a model, with the producer and the readers of each tensor; `replace_nodes` finds them anew."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in self.model.graph.initializer}
        self.index()
        self._read_shapes()

    def _read_shapes(self) -> None:
        graph = self.model.graph
        self.shapes = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}

    def describe_tensors(self) -> None:
        """Write types and shapes of all tensors anew, and check the whole."""
        import onnx

        del self.model.graph.value_info[:]
        self.model.CopyFrom(onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True))
        onnx.checker.check_model(self.model)
        self._read_shapes()
        self.index()

    @property
    def nodes(self) -> Any:  # noqa: ANN401 - protobuf's repeated field
        return self.model.graph.node

    def index(self) -> None:
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def convolutions(self) -> "list[onnx.NodeProto]":
        return [node for node in self.nodes if node.op_type in CONVOLUTIONS]

    def before_convolutions(self) -> set[str]:
        """The tensors that some convolution still depends on; logits are none of them."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type in CONVOLUTIONS or found.intersection(node.output):
                found.update(node.input)
        return found

    def activations_read(self, node: "onnx.NodeProto") -> list[str]:
        return [source for source in node.input if self.is_activation(source)]

    def is_activation(self, name: str) -> bool:
        """A float tensor that depends on the images."""
        return name in self.producer and self.is_float(name)

    def carries(self, name: str) -> bool:
        """Whether the node that makes a tensor only moves values (CARRIERS)."""
        return name in self.producer and self.producer[name].op_type in CARRIERS

    def is_positive(self, name: str) -> bool:
        """Whether a tensor has no negative values by construction: it comes from a ReLU, or was carried from one."""
        producer = self.producer[name]
        if self.carries(name):
            return all(self.is_positive(source) for source in self.activations_read(producer))
        return bool(producer.op_type == "Relu")

    def is_float(self, name: str) -> bool:
        from onnx import TensorProto

        return self._type(name) == TensorProto.FLOAT

    def is_half(self, name: str) -> bool:
        from onnx import TensorProto

        return self._type(name) == TensorProto.FLOAT16

    def _type(self, name: str) -> int:
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self.shapes[name].type.tensor_type.elem_type) if name in self.shapes else 0

    def value(self, name: str) -> NDArray[Any]:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def set_value(self, name: str, value: NDArray[Any]) -> None:
        """Add a constant, or give one another value."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(value, name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self.constants[name] = self.model.graph.initializer[-1]

    def shape(self, name: str) -> list[int]:
        """(N, C, H, W) of a tensor; 0 where a side is not fixed."""
        return [side.dim_value for side in self.shapes[name].type.tensor_type.shape.dim]

    def replace_nodes(self, nodes: "Iterable[onnx.NodeProto]") -> None:
        kept = list(nodes)
        del self.nodes[:]
        self.nodes.extend(kept)
        self.index()

    def drop_unread_constants(self) -> None:
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}


def attribute(node: "onnx.NodeProto", name: str, default: Any = None) -> Any:  # noqa: ANN401 - any attribute
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def convolution_work(graph: Graph) -> dict[str, int]:
    """Multiply-adds of one image in each convolution."""
    return {node.name: _multiply_adds(graph, node) for node in graph.convolutions()}


def _multiply_adds(graph: Graph, node: "onnx.NodeProto") -> int:
    """Every weight of a convolution meets every place of its output (of a transposed one, of its input) once."""
    places = graph.shape(node.output[0] if node.op_type == "Conv" else node.input[0])[2:]
    return math.prod([*_stored(graph, node.input[1]).dims, *places])


def convolution_types(graph: Graph) -> dict[str, Precision]:
    """What each convolution computes in: the type its weights are stored in."""
    from onnx import TensorProto

    stored = {node.name: _stored(graph, node.input[1]).data_type for node in graph.convolutions()}
    names = dict(zip(TensorProto.DataType.values(), TensorProto.DataType.keys(), strict=True))
    return {layer: WEIGHT_TYPES.get(names[kind], Precision.FP32) for layer, kind in stored.items()}


def _stored(graph: Graph, weight: str) -> "onnx.TensorProto":
    """The constant behind a weight, past the DequantizeLinear or Cast that reads it."""
    while weight in graph.producer:
        weight = graph.producer[weight].input[0]
    return graph.constants[weight]
