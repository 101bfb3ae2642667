"""The time of each layer in a call, under the names that the layers have in our networks."""

import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from segdeploy import engines
from segdeploy.artifact import Artifact
from segdeploy.engines import RUN, NodeTime, ProfilingModule, RunOptions
from segdeploy.timing.result_types import LayerTime

if TYPE_CHECKING:
    import onnx

    from segdeploy.graphs.graph import Graph

RUNTIME_LAYER = "(runtime)"  # what serves no layer that can be named
LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def profile(
    file: Artifact, *, runtime: str, device: str, images: NDArray[np.uint8], runs: int, options: RunOptions = RUN
) -> tuple[LayerTime, ...] | None:
    """The mean time of each layer in a call over (N, H, W, 3), the slowest first; None where the runtime cannot say.

    The network is opened once more for it: to time each node slows the whole network down, and would slow the engine
    whose latency is measured.
    """
    module = engines.modules()[runtime]
    if not hasattr(module, "layer_ms"):
        return None
    profiling = cast("ProfilingModule", module)
    nodes = profiling.layer_ms(file, device=device, images=images, runs=runs, options=options)
    return None if nodes is None else by_layer(nodes, LayerNames(_graph(file)))


def by_layer(nodes: Sequence[NodeTime], names: "LayerNames") -> tuple[LayerTime, ...]:
    """Sum the times of a runtime's nodes under the layers they are part of, or serve; the operators slowest first."""
    found = _serving(nodes, {node.name: names.layer(node) for node in nodes})
    kinds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in nodes:
        if node.ms > 0:
            kinds[found[node.name] or RUNTIME_LAYER][node.kind] += node.ms
    total = sum(sum(each.values()) for each in kinds.values())
    found_times = [
        LayerTime(
            layer=layer,
            op=" + ".join(sorted(each, key=lambda kind: -each[kind])),
            ms=sum(each.values()),
            share=sum(each.values()) / total,
        )
        for layer, each in kinds.items()
    ]
    return tuple(sorted(found_times, key=lambda each: -each.ms))


def _serving(nodes: Sequence[NodeTime], layers: Mapping[str, str | None]) -> dict[str, str | None]:
    """The layer of every node. One that a runtime adds, such as a change of layout, serves the layer that reads it.

    Where two layers read it, it serves the first; where none does, at the end of a network, the layer that it reads.
    """
    found = dict(layers)
    readers: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for read in node.reads:
            readers[read].append(node.name)
    for node in reversed(nodes):
        found[node.name] = _first(found, [node.name, *readers[node.name]])
    for node in nodes:
        found[node.name] = _first(found, [node.name, *node.reads])
    return found


def _first(layers: Mapping[str, str | None], names: Sequence[str]) -> str | None:
    return next((layer for name in names if (layer := layers.get(name)) is not None), None)


class LayerNames:
    """Finds the layer of a node by the names that a runtime gives it; the graph tells the names of tensors."""

    def __init__(self, graph: "Graph | None") -> None:
        self._graph = graph
        self._nodes: dict[str, onnx.NodeProto] = {} if graph is None else {node.name: node for node in graph.nodes}

    def layer(self, node: NodeTime) -> str | None:
        """The layer of a node: of several that were fused into it, that of what multiplies."""
        if self._graph is None:
            return node.names[0].partition("/")[0] if node.names else None
        ours = [found for name in node.names if (found := self._of(name, node.kind)) is not None]
        ours.sort(key=lambda found: found.op_type not in LAYERS)
        return str(ours[0].name).partition("/")[0] if ours else None

    def _of(self, name: str, kind: str) -> "onnx.NodeProto | None":
        """The node of that name, or the one that makes that tensor; for one that changes a type, the node it serves."""
        if self._graph is None:
            return None
        node = self._nodes.get(name) or self._graph.producer.get(name)
        while node is not None and (self._is_cast(node) or (kind == "Conv" and node.op_type == "Relu")):
            node = self._graph.producer.get(node.input[0]) or self._reader(node)
        return node

    def _reader(self, node: "onnx.NodeProto") -> "onnx.NodeProto | None":
        """Who reads a constant that a node makes: a weight's or a bias' convolution."""
        readers = [] if self._graph is None else self._graph.readers.get(node.output[0], [])
        return next((reader for reader in readers if not self._is_cast(reader)), None)

    def _is_cast(self, node: "onnx.NodeProto") -> bool:
        """Whether a node only changes a type; those bear the name of their tensor, and not of a layer."""
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            return True
        return node.op_type == "Cast" and bool({node.name.rpartition("/")[0]}.intersection((*node.input, *node.output)))


def _graph(file: Artifact) -> "Graph | None":
    """The graph, or the one a plan was built from; None where it is not here, or the onnx package is not."""
    path = file.path
    if file.kind == "plan":
        if file.origin.graph is None:
            return None
        path = path.parent / file.origin.graph.path
    if importlib.util.find_spec("onnx") is None or not path.is_file():
        return None
    import onnx

    from segdeploy.graphs.graph import Graph

    return Graph(onnx.load(path))
