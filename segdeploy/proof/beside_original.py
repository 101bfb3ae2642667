"""Where a float32 graph departs from the ONNX file that it was adopted from.

Adopting keeps the names of tensors: those that both graphs have are compared, in the order they are computed in. The
two compute in the same arithmetic; what rounding adds up to over the layers is allowed for.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from segdeploy.graphs import adopted, foreign, reading
from segdeploy.graphs.graph import Graph
from segdeploy.graphs.original import Original
from segdeploy.origin import GraphReading
from segdeploy.precision import Tolerance
from segdeploy.proof.bisection import Images, Look, Run, Step, error_of, names_of, nodes_between

Array = NDArray[Any]
ADDED_UP = Tolerance(layer=1e-3, between=1e-3)  # relative RMS errors; the 485 nodes of a right U2-Net reach 8e-5


def look(path: Path, how: GraphReading, model: onnx.ModelProto, image: Images, *, run: Run) -> Look:
    """Judge every node whose result the original at `path` computes as well, on one image (H, W, 3).

    `run` gives all outputs of a graph by name, in the arithmetic that is looked into.
    """
    original, graph = foreign.read(path), Graph(model)
    shared = _shared(original, graph)
    theirs = _computed(original, how, image, [*shared.values(), how.output])
    prepared = reading.as_rounded(image, dataclasses.replace(how, dtype="float32"))
    expected = {adopted.BEFORE: prepared} | {ours: theirs[name] for ours, name in shared.items()}
    compared = [name for name in graph.producer if name in expected]
    class_map = graph.model.graph.output[0].name
    graph.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in compared)
    found = run(graph.model.SerializeToString(), image[None])
    drawn = found[class_map][0]
    wrong = float(np.mean(drawn != reading.class_map(theirs[how.output], how, *drawn.shape)))
    behind = names_of(nodes_between(graph, compared, class_map))
    steps = [
        *(_step(graph, compared, name, _error(found[name], expected[name])) for name in compared),
        Step("class map", None, wrong, behind),
    ]
    return Look(steps, drawn, beside="the original", each_alone=False)


def _shared(original: onnx.ModelProto, graph: Graph) -> dict[str, str]:
    """The tensors that both graphs compute: the name here, and the original's own."""
    made = {name for node in original.graph.node for name in node.output}
    return {
        ours: theirs for theirs, ours in adopted.names_in(original).items() if theirs in made and ours in graph.producer
    }


def _computed(original: onnx.ModelProto, how: GraphReading, image: Images, wanted: list[str]) -> Mapping[str, Array]:
    """Tensors of the original, which is given what a graph computes of an image in float32."""
    known = {value.name for value in original.graph.output}
    wanted = list(dict.fromkeys(wanted))
    original.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    return Original(original, optimised=False).run(how.input, reading.as_rounded(image, how), wanted)


def _step(graph: Graph, compared: Collection[str], tensor: str, error: float) -> Step:
    """A node alone where all that it reads was compared; else what stands in front of the first one that reads it."""
    nodes = names_of(nodes_between(graph, {*compared} - {tensor}, tensor))
    readers = graph.readers.get(tensor, [])
    if len(nodes) > 1 and readers:
        return Step("before a layer", readers[0].name, error, nodes, rounds=True)
    return Step("layer", graph.producer[tensor].name, error, nodes, rounds=True)


def _error(found: Array, expected: Array) -> float:
    """Of the values in their order: an axis of one image may be there or not."""
    ours, theirs = (torch.from_numpy(np.ravel(each).astype(np.float64)) for each in (found, expected))
    return error_of(ours, theirs, theirs)
