"""FP16 in the graph: half-precision weights and activations, float32 islands where range or accuracy demands them.

The images' uint8 and everything behind the last layer (the last up-sampling, the argmax) stay as they are.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from segdeploy.graphs.graph import CARRIERS, Graph, layer_work
from segdeploy.low_precision import Budget
from segdeploy.precision._base import Layers, Range, Tolerance
from segdeploy.spec import Precision

if TYPE_CHECKING:
    import onnx

PRECISION = Precision.FP16
FORMS = ()
BUDGET = Budget(min_agreement=0.999, max_drop=0.05)
METHOD = None
# Between layers: computed in float32, pooling ties are decided by digits that halves do not show.
TOLERANCE = Tolerance(layer=1e-2, between=0.3)
LEAST_COMPUTE_CAPABILITY = None
LARGEST = 65504 / 2  # half of the largest number in half precision: other images may reach further than those measured
# Nothing is rounded here.
EXACT = {*CARRIERS, "Greater", "IsNaN", "Less", "Relu", "Transpose"}
EXACT |= {"Flatten", "Gather", "Identity", "Reshape", "Squeeze", "Tile", "Unsqueeze"}
# They sum up squares or exponentials, or divide by what may be nearly nothing: in half precision, norms and attention
# lose what they are there for.
WIDE = {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"}
WIDE |= {"Exp", "Log", "LogSoftmax", "MeanVarianceNormalization", "Pow", "Softmax"}
WIDE |= {"ReduceL2", "ReduceLogSumExp", "ReduceSum", "ReduceSumSquare"}
ALWAYS_FLOAT = {"ConstantOfShape", "EyeLike", "OneHot", "Range"}  # their type is not that of what they read
FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}  # a region and scales, which ONNX wants in float32


def layers(model: "onnx.ModelProto", ranges: Mapping[str, Range]) -> Layers:
    """Every node that rounds. In float32 stays what real images bring above `LARGEST`, and what halves would ruin."""
    graph = Graph(model)
    work = layer_work(graph)
    beyond = beyond_range(model, ranges)
    convertible = _convertible(graph)
    in_float = {node.name: "sums up what halves cannot" for node in convertible if node.op_type in WIDE}
    in_float |= {node.name: "adds what a half takes for 0" for node in convertible if _vanishes(graph, node)}
    in_float |= {name: f"reaches {largest:.4g}, above {LARGEST:g}" for name, largest in beyond.items()}
    return Layers(work={name: work.get(name, 0) for name in (*nodes(model), *beyond)}, in_float=in_float)


def convert(
    model: "onnx.ModelProto",
    ranges: Mapping[str, Range],  # noqa: ARG001 - a half needs no scale
    *,
    form: str | None = None,  # noqa: ARG001 - there is one
    in_float: Collection[str] = (),
) -> "onnx.ModelProto":
    return to_half(model, in_float=in_float)


def to_half(model: "onnx.ModelProto", *, in_float: Collection[str] = ()) -> "onnx.ModelProto":
    """The float32 graph in half precision, but for the nodes that `in_float` names and what follows the last one."""
    from onnx import TensorProto

    graph = Graph(model)
    chosen = {node.name for node in _convertible(graph)}.difference(in_float)
    floats = {name for name in (*graph.producer, *graph.constants) if graph.is_float(name)}
    halves: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        is_half = node.name in chosen
        if node.op_type in EXACT:  # given by float32 and read by float32, it is not rounded in between
            is_half &= halves.issuperset(graph.activations_read(node))
        for index, source in enumerate(node.input):
            wants_half = is_half and index not in FLOAT_INPUTS.get(node.op_type, ())
            if source in floats and (source in halves) != wants_half:
                node.input[index] = _converted(graph, source, nodes, to_half=wants_half)
        nodes.append(node)
        if is_half:
            _retype(node, TensorProto.FLOAT16)
            halves.update(floats.intersection(node.output))
    graph.replace_nodes(nodes)
    graph.drop_unread_constants()
    graph.describe_tensors()
    return graph.model


def nodes(model: "onnx.ModelProto") -> list[str]:
    """The nodes that `to_half` would round."""
    return [node.name for node in _convertible(Graph(model)) if node.op_type not in EXACT]


def tensors(model: "onnx.ModelProto") -> list[str]:
    """The activations whose range decides what may be half."""
    graph = Graph(model)
    found = [name for node in _convertible(graph) for name in (*node.input, *node.output) if graph.is_activation(name)]
    return list(dict.fromkeys(found))


def beyond_range(model: "onnx.ModelProto", extremes: Mapping[str, Range]) -> dict[str, float]:
    """The nodes whose constants exceed `LARGEST`, or whose inputs or outputs where they round; the largest of each."""
    graph = Graph(model)
    found = {}
    for node in _convertible(graph):
        touched = () if node.op_type in EXACT else (*node.input, *node.output)
        seen = [extremes[name] for name in touched if name in extremes]
        constants = [name for name in node.input if name in graph.constants and graph.is_float(name)]
        held = [np.abs(graph.value(name)).max(initial=0) for name in constants]
        largest = max([*(max(-low, high) for low, high in seen), *map(float, held)], default=0.0)
        if largest > LARGEST:
            found[node.name] = largest
    return found


def _vanishes(graph: Graph, node: "onnx.NodeProto") -> bool:
    """Whether a number that a node adds or divides by, such as the epsilon of a norm, is 0 as a half."""
    numbers = [graph.value(name) for name in node.input if name in graph.constants and graph.is_float(name)]
    return any(number.size == 1 and number.any() and not number.astype(np.float16).any() for number in numbers)


def in_single(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A graph with every half in float32: what was stored in half precision is exact there."""
    from onnx import TensorProto

    graph = Graph(model)
    if not any(map(graph.is_half, (*graph.constants, *graph.producer))):
        return model
    for name in [name for name in graph.constants if graph.is_half(name)]:
        graph.set_value(name, graph.value(name).astype(np.float32))
    for node in graph.nodes:
        _retype(node, TensorProto.FLOAT)
    del graph.model.graph.value_info[:]
    graph.describe_tensors()
    return graph.model


def executable(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A half-precision graph as a float32 one that rounds every result to half and back.

    ONNX Runtime on a CPU computes half-precision graphs in float32 and hides what overflows; it keeps these casts.
    """
    from onnx import TensorProto, helper

    graph = Graph(model)
    halves = {name for name in (*graph.producer, *graph.constants) if graph.is_half(name)}
    for name in halves.intersection(graph.constants):
        graph.set_value(name, graph.value(name).astype(np.float32))
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        rounds = node.op_type not in EXACT
        given = halves.intersection(node.output)
        _retype(node, TensorProto.FLOAT)
        nodes.append(node)
        for name in given if rounds else ():
            node.output[list(node.output).index(name)] = f"{name}/unrounded"
            steps = [(f"{name}/unrounded", f"{name}/rounded", TensorProto.FLOAT16)]
            steps.append((f"{name}/rounded", name, TensorProto.FLOAT))
            nodes += [helper.make_node("Cast", [a], [b], name=f"{b}/Rounding", to=kind) for a, b, kind in steps]
    graph.replace_nodes(nodes)
    graph.describe_tensors()
    return graph.model


def _convertible(graph: Graph) -> "list[onnx.NodeProto]":
    """The nodes up to the last layer that have to do with floats."""
    before, layers = graph.before_layers(), {node.name for node in graph.layers()}
    return [
        node
        for node in graph.nodes
        if (node.name in layers or before.intersection(node.output))
        and node.op_type not in ALWAYS_FLOAT
        and any(graph.is_float(name) for name in (*node.input, *node.output))
    ]


def _converted(graph: Graph, source: str, nodes: "list[onnx.NodeProto]", *, to_half: bool) -> str:
    """The name of a tensor in the other type; the cast is written once."""
    from onnx import TensorProto, helper

    name = f"{source}/{'half' if to_half else 'float'}"
    if source in graph.constants:
        graph.set_value(name, graph.value(source).astype(np.float16))
    elif all(name not in node.output for node in nodes):
        kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", [source], [name], name=f"{name}/Cast", to=kind))
    return name


def _retype(node: "onnx.NodeProto", kind: int) -> None:
    """A Cast names the type it gives; every other node takes it from what it reads."""
    from onnx import TensorProto

    for attribute in node.attribute:
        if (
            node.op_type == "Cast"
            and attribute.name == "to"
            and attribute.i in {TensorProto.FLOAT, TensorProto.FLOAT16}
        ):
            attribute.i = kind
