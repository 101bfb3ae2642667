"""Which layers have an integer form that runtimes know, and why the others have none."""

from typing import TYPE_CHECKING

from segdeploy.graphs.graph import CONVOLUTIONS, WEIGHT, Graph, attribute

if TYPE_CHECKING:
    import onnx

IMAGE_RANK, MATRIX_RANK = 4, 2


def eligible(graph: Graph) -> "list[onnx.NodeProto]":
    return [node for node in graph.layers() if reason(graph, node) is None]


def reason(graph: Graph, node: "onnx.NodeProto") -> str | None:
    """Why a layer has no integer form; None where it has one."""
    is_convolution = node.op_type in CONVOLUTIONS
    constants = [name for name in node.input[WEIGHT:] if name]
    if not all(name in graph.constants for name in constants):
        return "its weights are computed" if is_convolution else "both of its matrices are computed"
    if not all(map(graph.is_float, [*constants, node.input[0]])):
        return "it does not compute in float32"
    if not graph.is_activation(node.input[0]):
        return "it reads no activation"
    return _not_as_convolution(graph, node) if is_convolution else _not_as_product(graph, node)


def _not_as_convolution(graph: Graph, node: "onnx.NodeProto") -> str | None:
    rank = len(graph.constants[node.input[WEIGHT]].dims)
    if rank != IMAGE_RANK:
        return f"a convolution over {rank - 2} axes"
    grouped = node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1
    return "a transposed convolution in groups" if grouped else None


def _not_as_product(graph: Graph, node: "onnx.NodeProto") -> str | None:
    weight, *vectors = (list(graph.constants[name].dims) for name in node.input[WEIGHT:] if name)
    if len(weight) != MATRIX_RANK:
        return "a matrix for each image"
    is_plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1 and not attribute(node, "transA", 0)
    outputs = weight[0 if attribute(node, "transB", 0) else 1]
    has_bias = all(sides == [outputs] for sides in vectors)
    return None if is_plain and has_bias else "a product that is scaled, transposed or added to a matrix"
