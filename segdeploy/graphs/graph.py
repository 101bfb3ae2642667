"""An ONNX graph that can be asked who makes a tensor and who reads it."""

import math
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from segdeploy.errors import InvalidFileError
from segdeploy.interpolation import averages
from segdeploy.spec import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")
POSITIVE = ("HardSigmoid", "Relu", "Sigmoid", "Softmax")  # they give no negative value
WEIGHT = 1  # input of a convolution or a matrix product
LIMITS = 2  # of Clip: the least value and the largest
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

    def layers(self) -> "list[onnx.NodeProto]":
        """What multiplies values that are learned or computed: convolutions and matrix products.

        A matrix product that only averages places, as pooling and up-sampling do, is none.
        """
        return [
            node
            for node in self.nodes
            if node.op_type in CONVOLUTIONS or (node.op_type in PRODUCTS and not self._averages(node))
        ]

    def _averages(self, node: "onnx.NodeProto") -> bool:
        """Whether one side is a constant matrix that only averages."""
        given = [(index, self.value(name)) for index, name in enumerate(node.input[:2]) if name in self.constants]
        if node.op_type != "MatMul" or len(given) != 1 or given[0][1].ndim != 2:  # noqa: PLR2004 - a matrix
            return False
        index, matrix = given[0]
        return averages(matrix, axis=1 - index)

    def before_layers(self) -> set[str]:
        """The tensors that some layer still depends on; logits are none of them."""
        layers = {node.name for node in self.layers()}
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.name in layers or found.intersection(node.output):
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
        if producer.op_type == "Clip" and len(producer.input) > 1 and producer.input[1] in self.constants:
            return bool((self.value(producer.input[1]) >= 0).all())
        return producer.op_type in POSITIVE

    def is_float(self, name: str) -> bool:
        from onnx import TensorProto

        return self.type_of(name) == TensorProto.FLOAT

    def is_half(self, name: str) -> bool:
        from onnx import TensorProto

        return self.type_of(name) == TensorProto.FLOAT16

    def type_of(self, name: str) -> int:
        """ONNX's number of a tensor's type; 0 where it does not follow from the graph."""
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


def layer_work(graph: Graph) -> dict[str, int]:
    """Multiply-adds of one image in each layer.

    Raise InvalidFileError where the shape of what a layer gives does not follow from the graph.
    """
    sides = sides_of_one_image(graph)
    return {node.name: _multiply_adds(graph, node, sides) for node in graph.layers()}


def sides_of_one_image(graph: Graph) -> dict[str, list[int]]:
    """The shape of each tensor for a batch of one; 0 where a side does not follow from the graph."""
    import onnx

    alone = onnx.ModelProto()
    alone.CopyFrom(graph.model)
    for value in alone.graph.input:
        for side in value.type.tensor_type.shape.dim[:1]:
            side.dim_value = side.dim_value or 1
    del alone.graph.value_info[:]
    for value in alone.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(alone, data_prop=True).graph
    found = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        found[value.name] = [side.dim_value for side in value.type.tensor_type.shape.dim]
    return found


def _multiply_adds(graph: Graph, node: "onnx.NodeProto", sides: dict[str, list[int]]) -> int:
    """Every weight of a convolution meets every place of its output (of a transposed one, of its input) once.

    In a matrix product, every value that is given sums up as many products as the two matrices have in common.
    """
    given, made = (sides.get(name, [0]) for name in (node.input[0], node.output[0]))
    if node.op_type in PRODUCTS:
        common = given[-2] if node.op_type == "Gemm" and attribute(node, "transA", 0) else given[-1]
        found = math.prod([*made, common])
    else:
        batch, _, *places = made if node.op_type == "Conv" else given
        found = math.prod([*_weight_sides(graph, node, sides), batch, *places])
    if found == 0:
        raise InvalidFileError(
            f"what the layer {node.name} computes has a size that does not follow from the graph.",
            "Export the network again at a fixed size.",
        )
    return found


def _weight_sides(graph: Graph, node: "onnx.NodeProto", sides: dict[str, list[int]]) -> list[int]:
    stored = _stored(graph, node.input[WEIGHT])
    return sides.get(node.input[WEIGHT], [0]) if stored is None else list(stored.dims)


def layer_types(graph: Graph) -> dict[str, Precision]:
    """What each layer computes in: the type its weights are stored in; of two computed sides, that of the first."""
    from onnx import TensorProto

    names = dict(zip(TensorProto.DataType.values(), TensorProto.DataType.keys(), strict=True))
    found = {}
    for node in graph.layers():
        stored = _stored(graph, node.input[WEIGHT])
        kind = stored.data_type if stored is not None else graph.type_of(node.input[0])
        found[node.name] = WEIGHT_TYPES.get(names[kind], Precision.FP32)
    return found


def logits_of(model: "onnx.ModelProto") -> str | None:
    """The tensor that the class map is decided by; None in a graph that gives logits, or an adopted class map."""
    decided = [node for node in model.graph.node if node.op_type == "ArgMax" or node.name == DECISION]
    return decided[-1].input[0] if decided else None


def rectifies(graph: Graph, node: "onnx.NodeProto") -> bool:
    """Whether a node is a ReLU, or clips at 0 and at a constant above, as ReLU6 does."""
    if node.op_type != "Clip":
        return bool(node.op_type == "Relu")
    limits = [name for name in node.input[1:] if name]
    return (
        len(limits) == LIMITS and all(name in graph.constants for name in limits) and not graph.value(limits[0]).any()
    )


def largest_rectified(graph: Graph, node: "onnx.NodeProto") -> float:
    """The largest value that a rectifier gives."""
    return float(graph.value(node.input[-1])) if node.op_type == "Clip" else math.inf


def weighted_layers(graph: Graph) -> "list[onnx.NodeProto]":
    """The layers that multiply by constants."""
    return [node for node in graph.layers() if _stored(graph, node.input[WEIGHT]) is not None]


def _stored(graph: Graph, weight: str) -> "onnx.TensorProto | None":
    """The constant behind a weight, past the DequantizeLinear or Cast that reads it; None where it is computed."""
    while weight in graph.producer and graph.producer[weight].op_type in {"DequantizeLinear", "Cast"}:
        weight = graph.producer[weight].input[0]
    return graph.constants.get(weight)
