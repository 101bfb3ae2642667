"""Ways to spell a foreign graph so that what comes after can read it: a newer opset, folded constants, a free batch.

Each is tried, and taken only where the deployed graph then draws what the original draws.
"""

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdeploy.graphs import foreign
from segdeploy.graphs.foreign import IMAGE_RANK
from segdeploy.graphs.graph import Graph, attribute
from segdeploy.graphs.original import session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

OPSET = 20  # what our own graphs are written in
LEAST_OPSET = 13  # the first that has all that is added to a graph
FIRST_OF_COORDINATES = 11  # the opset from which on Resize says where the pixels of a smaller image lie
AS_BEFORE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def spellings(model: "onnx.ModelProto") -> "Iterator[onnx.ModelProto]":
    """The graph, the most convenient spelling first; nothing where it cannot be written in opset 13 or above."""
    written = [found for found in (_converted(model, OPSET), _converted(model, LEAST_OPSET)) if found is not None]
    if foreign.opset_of(model) >= LEAST_OPSET:
        written.append(model)
    yield from written
    yield from map(with_free_batch, written)


def _converted(model: "onnx.ModelProto", opset: int) -> "onnx.ModelProto | None":
    """The graph in a newer opset; None where it is newer already, or has what the converter does not know."""
    import onnx

    if foreign.opset_of(model) >= opset:
        return None
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
        onnx.checker.check_model(converted)
    except Exception:  # noqa: BLE001 - of onnx's C++: the graph is tried as it is
        return None
    if foreign.opset_of(model) < FIRST_OF_COORDINATES:
        _place_as_before(converted)
    return converted


def _place_as_before(model: "onnx.ModelProto") -> None:
    """Resize as it was before it could say where pixels lie: onnx's converter leaves another default in its place."""
    from onnx import helper

    for node in model.graph.node:
        if node.op_type == "Resize":
            kept = [each for each in node.attribute if each.name not in AS_BEFORE]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(helper.make_attribute(name, value) for name, value in AS_BEFORE.items())


def with_free_batch(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A graph that was written for one image, its shapes that say so freed."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type == "Reshape" and node.input[1] in graph.constants:
            sides = graph.value(node.input[1]).copy()
            if sides.size and sides[0] == 1:
                sides[0] = 0 if -1 in sides else -1
                _put(graph, node, 1, sides)
        elif node.op_type == "Squeeze" and len(node.input) > 1 and node.input[1] in graph.constants:
            axes = graph.value(node.input[1])
            if 0 in axes and node.output[0] in {output.name for output in graph.model.graph.output}:
                _keep_batch(graph, node, axes)
    _free_resizing(graph)
    for output in graph.model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return graph.model


def _put(
    graph: Graph, node: "onnx.NodeProto", index: int, value: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
) -> None:
    """A constant of this node alone: others may read the old one."""
    name = f"{node.output[0]}.{index}.free"
    graph.set_value(name, value)
    node.input[index] = name


def _keep_batch(graph: Graph, node: "onnx.NodeProto", axes: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> None:
    """Squeeze the other axes alone."""
    if len(axes) > 1:
        _put(graph, node, 1, axes[axes != 0])
    else:
        node.op_type = "Identity"
        node.input[:] = node.input[:1]


def _free_resizing(graph: Graph) -> None:
    """Sizes for one image as scales, which say nothing of the batch."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph.model, data_prop=True)
    sides = {value.name: foreign.sides_of(value) for value in (*inferred.graph.value_info, *inferred.graph.input)}
    for node in graph.nodes:
        if node.op_type == "Resize" and len(node.input) > IMAGE_RANK - 1 and node.input[3] in graph.constants:
            own, wanted = sides.get(node.input[0], []), graph.value(node.input[3])
            if len(own) == len(wanted) == IMAGE_RANK and None not in own and not attribute(node, "axes"):
                enlarge_by_scales(graph, node, [side or 1 for side in own], [int(side) for side in wanted])


def enlarge_by_scales(graph: Graph, node: "onnx.NodeProto", own: "Sequence[int]", wanted: "Sequence[int]") -> None:
    """Let a Resize have scales in place of sizes."""
    name = f"{node.output[0]}.scales"
    graph.set_value(name, np.array([_scale(*sides) for sides in zip(own, wanted, strict=True)], np.float32))
    node.input[:] = [*node.input[:2], name]


def _scale(inputs: int, outputs: int) -> np.float32:
    """The scale that enlarges so many to so many, rounded down as Resize does."""
    scale = np.float32(outputs / inputs)
    while math.floor(inputs * float(scale)) < outputs:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def simplified(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Constants and norms folded by ONNX Runtime, in standard operators; as it is where it has none of its own.

    A graph in half precision and one that somebody quantized stay as they are: there ONNX Runtime spells otherwise.
    """
    import onnx

    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    if halves or foreign.is_quantized(model):
        return model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        session(model, save_to=path)
        found = onnx.load(path)
    if any(node.domain not in foreign.STANDARD for node in found.graph.node):
        return model
    kept = [each for each in found.opset_import if each.domain in foreign.STANDARD]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found
