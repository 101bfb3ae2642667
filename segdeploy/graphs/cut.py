"""A float32 graph cut at its layers: each layer, and what stands between two, computed alone from given values."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy.graphs.graph import Graph, largest_rectified, logits_of, rectifies
from segdeploy.graphs.original import session

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

Array = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """What each layer should read, and what the logits should be, where earlier layers gave what they were said to."""

    read: Mapping[str, Array]
    logits: Array


class Cut:
    """The graph `model` without the layers that are named; `output` is its class map."""

    def __init__(self, model: "onnx.ModelProto", layers: Collection[str], output: str) -> None:
        self._graph = Graph(model)
        self._layers = {node.name: node for node in self._graph.nodes if node.name in layers}
        self._output = output
        self._logits = logits_of(model) or output

    def largest(self, layer: str) -> float:
        """What a ReLU6 that alone reads a layer takes for the largest value; infinite where there is none."""
        readers = self._graph.readers.get(self._layers[layer].output[0], [])
        if len(readers) != 1 or not rectifies(self._graph, readers[0]):
            return math.inf
        return largest_rectified(self._graph, readers[0])

    def made_of(self, reads: Mapping[str, Array]) -> dict[str, Array]:
        """What each layer makes of what it is given."""
        nodes = []
        for name, node in self._layers.items():
            alone = type(node).FromString(node.SerializeToString())
            alone.input[0], alone.output[0] = f"{name}/read", f"{name}/made"
            nodes.append(alone)
        given = {f"{name}/read": value for name, value in reads.items()}
        found = self._run(nodes, given, [f"{name}/made" for name in self._layers])
        return {name: found[f"{name}/made"] for name in self._layers}

    def between(self, image: NDArray[np.uint8], given: Mapping[str, Array]) -> Between:
        """What stands between the layers makes of an image (H, W, 3) and of what every layer gave."""
        known = {node.output[0]: given[name] for name, node in self._layers.items()}
        wanted = {node.input[0] for node in self._layers.values()} | {self._logits}
        nodes = [node for node in self._graph.nodes if node.name not in self._layers]
        found = known | self._run(nodes, {"images": image[None], **known}, sorted(wanted.difference(known)))
        read = {name: found[node.input[0]] for name, node in self._layers.items()}
        return Between(read, found[self._logits])

    def decided(self, logits: Array) -> NDArray[np.uint8]:
        """(H, W): the class map of logits."""
        if self._logits == self._output:
            return np.asarray(logits[0], np.uint8)
        behind, nodes = {self._logits}, []
        for node in self._graph.nodes:
            if behind.intersection(node.input):
                behind.update(node.output)
                nodes.append(node)
        found = self._run(nodes, {self._logits: logits.astype(np.float32)}, [self._output])[self._output]
        return np.asarray(found[0], np.uint8)

    def _run(
        self, nodes: "Iterable[onnx.NodeProto]", given: Mapping[str, NDArray[np.float32 | np.uint8]], wanted: list[str]
    ) -> dict[str, Array]:
        import onnx
        from onnx import helper

        if not wanted:
            return {}
        model = onnx.ModelProto()
        model.CopyFrom(self._graph.model)
        graph = model.graph
        del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
        graph.node.extend(nodes)
        for name, value in given.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        found = session(model, optimised=False).run(wanted, dict(given))
        return dict(zip(wanted, found, strict=True))
