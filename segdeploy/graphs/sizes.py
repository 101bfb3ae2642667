"""Sizes that a graph computes from its own shapes, written out: exporters leave them behind, and few tools see through.

The image has one size, so all but the number of images is the same in every run: what that is, two runs tell.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InvalidFileError
from segdeploy.graphs.foreign import IMAGE_RANK
from segdeploy.graphs.graph import Graph, attribute
from segdeploy.graphs.original import Original
from segdeploy.graphs.spellings import enlarge_by_scales

if TYPE_CHECKING:
    import onnx

IMAGES_SEEN = (2, 3)  # in one run each: two numbers that nothing else is likely to be
ONE_IMAGE = (1, 1)  # of a graph that takes no more
Found = dict[str, NDArray[Any]]


def with_sizes_written_out(model: "onnx.ModelProto", images_seen: tuple[int, int] = IMAGES_SEEN) -> "onnx.ModelProto":
    """A deployed graph, its computed sizes constants; as it is where it has none, or cannot take so many images."""
    graph = Graph(model)
    sizes = _sizes(graph)
    if not sizes:
        return model
    resized = [node.input[0] for node in graph.nodes if _has_sizes(node)]
    try:
        fewer, more = (_run(graph, [*sizes, *resized], images) for images in images_seen)
    except InvalidFileError:
        return model
    _write_out(graph, {name: (fewer[name], more[name]) for name in sizes})
    for node in graph.nodes:
        if _has_sizes(node) and node.input[3] not in graph.constants:
            _enlarge(graph, node, fewer)
    graph.index()
    _drop_unread(graph, set(sizes))
    graph.drop_unread_constants()
    return graph.model


def _sizes(graph: Graph) -> list[str]:
    """The tensors that follow from shapes alone."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        read = [name for name in node.input if name]
        follows = any(name in found for name in read) and all(name in found or name in graph.constants for name in read)
        if node.op_type == "Shape" or (follows and not any(each.HasField("g") for each in node.attribute)):
            found |= dict.fromkeys(node.output)
    return [name for name in found if name]


def _has_sizes(node: "onnx.NodeProto") -> bool:
    return node.op_type == "Resize" and len(node.input) > IMAGE_RANK - 1 and bool(node.input[3])


def _run(graph: Graph, tensors: list[str], images: int) -> Found:
    """What some tensors are for so many black images."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(graph.model)
    taken = copy.graph.input[0]
    sides = [side.dim_value for side in taken.type.tensor_type.shape.dim][1:]
    given = [value.name for value in copy.graph.output]
    wanted = list(dict.fromkeys(tensors))
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in given)
    return Original(copy, optimised=False).run(taken.name, np.zeros((images, *sides), np.uint8), wanted)


def _write_out(graph: Graph, seen: dict[str, tuple[NDArray[Any], NDArray[Any]]]) -> None:
    """Make constants of what is the same for any number of images; of the shape of a Reshape, all but that number."""
    same = {name: fewer for name, (fewer, more) in seen.items() if np.array_equal(fewer, more)}
    for node in graph.nodes:
        if node.op_type == "Reshape" and node.input[1] in seen and node.input[1] not in same:
            fewer, more = seen[node.input[1]]
            if (fewer[0], more[0]) == IMAGES_SEEN and np.array_equal(fewer[1:], more[1:]):
                name = f"{node.output[0]}.sides"
                graph.set_value(name, np.array([-1, *fewer[1:]], np.int64))
                node.input[1] = name
    for node in list(graph.nodes):
        if node.output and all(name in same for name in node.output):
            graph.nodes.remove(node)
    for name, value in same.items():
        graph.set_value(name, value)
    graph.index()


def _drop_unread(graph: Graph, sizes: set[str]) -> None:
    """Take away the sizes that nobody reads any more, the last ones first."""
    for node in reversed(list(graph.nodes)):
        is_read = any(graph.readers.get(name) for name in node.output)
        if set(node.output) <= sizes and not is_read:
            graph.nodes.remove(node)
            graph.index()


def _enlarge(graph: Graph, node: "onnx.NodeProto", seen: Found) -> None:
    """Scales say nothing of the number of images."""
    wanted, own = seen.get(node.input[3]), seen[node.input[0]].shape
    if wanted is not None and len(own) == len(wanted) == IMAGE_RANK and not attribute(node, "axes"):
        enlarge_by_scales(graph, node, own, [int(side) for side in wanted])
