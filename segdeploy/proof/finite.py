"""Whether all logits of a graph are finite: a copy that gives them away, and the layer where they ceased to be."""

import numpy as np
import onnx
from numpy.typing import NDArray

from segdeploy.engines import ort
from segdeploy.graphs.graph import Graph, logits_of


def watched(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that gives its logits as a second output; a graph of logits, or of an adopted class map, as it is."""
    logits = logits_of(model)
    return model if logits is None else _giving(model, [logits])


def first_layer_not_finite(model: onnx.ModelProto, image: NDArray[np.uint8], *, optimised: bool) -> str:
    """The first convolution of a graph whose output is not finite for an image (H, W, 3), in the order they run in."""
    graph = Graph(model)
    outputs = {node.output[0]: node.name for node in graph.convolutions()}
    seen = ort.tensors(
        _giving(model, list(outputs)).SerializeToString(), image[None], device="cpu", optimised=optimised
    )
    broken = (name for tensor, name in outputs.items() if not np.isfinite(seen[tensor].astype(np.float32)).all())
    return next(broken, "the nodes behind the last convolution")


def _giving(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return copy
