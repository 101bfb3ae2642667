"""Asked and executed are two facts: what share of the low-precision work of a graph a runtime really does in it."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING

from segdeploy import arithmetic, engines, signature
from segdeploy.artifact import Artifact
from segdeploy.low_precision import Executed
from segdeploy.spec import Precision

if TYPE_CHECKING:
    import onnx


def asked(model: "onnx.ModelProto") -> dict[str, float]:
    """The share of the multiply-adds that a graph gives to each type."""
    from segdeploy.graphs.graph import Graph, layer_types, layer_work

    graph = Graph(model)
    work, types = layer_work(graph), layer_types(graph)
    total = sum(work.values())
    return {
        kind.value: sum(work[layer] for layer in work if types[layer] is kind) / total
        for kind in Precision
        if kind in types.values()
    }


def recorded(graph: Artifact) -> Artifact:
    """The same, its manifest saying what the runtimes at hand compute in the type that was asked for."""
    if graph.low_precision is None:
        return graph
    at_hand = {}
    for runtime, module in engines.modules().items():
        if module.OPENS == "graph" and graph.form in {None, module.FORM} and engines.installed(module.PACKAGES):
            at_hand[runtime] = executed(graph, runtime=runtime, device="cpu")
    graph = dataclasses.replace(graph, low_precision=dataclasses.replace(graph.low_precision, executed=at_hand))
    signature.publish_graph(graph)
    return graph


def executed(file: Artifact, *, runtime: str, device: str) -> Executed:
    """What a runtime makes of a graph, read from the graph as the runtime optimised it.

    Of a plan, and without the onnx package, what the manifest says was found when it was made.
    """
    if file.precision is Precision.FP32:
        return Executed(delivered=Precision.FP32, delivered_share=1.0)
    if file.plan is not None:
        return file.plan.executed
    if importlib.util.find_spec("onnx") is None:
        unknown = Executed(delivered=None, delivered_share=None, reason="the onnx package is not installed")
        return unknown if file.low_precision is None else file.low_precision.executed.get(runtime, unknown)
    import onnx

    from segdeploy.graphs.graph import Graph, layer_types, layer_work

    graph = Graph(onnx.load(file.path))
    work, types = layer_work(graph), layer_types(graph)
    low = {layer for layer, kind in types.items() if kind is file.precision}
    found = engines.of_graphs(runtime).low_precision_layers(file, device=device)
    wider = sorted((layer for layer in low if found.get(layer) is not file.precision), key=lambda each: -work[each])
    total = sum(work[layer] for layer in low)
    share = 1 - sum(work[layer] for layer in wider) / total if total else 0.0
    kind = file.precision if share >= engines.ENOUGH else Precision.FP32
    return Executed(delivered=kind, delivered_share=share, wider=tuple(wider))


def has_units(precision: Precision, device: str) -> bool:
    """Whether the device multiplies in that type; no runtime for CPUs convolves in half precision."""
    if device == "cuda":
        return True
    return precision is Precision.INT8 and arithmetic.instruction_set() in arithmetic.SUMS_BYTES
