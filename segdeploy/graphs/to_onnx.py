"""A checkpoint becomes a graph: image in, class map out, standard operators only (export/README.md has the promise)."""

import copy
import importlib.metadata
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy import artifact, extras, models
from segdeploy._version import __version__
from segdeploy.origin import Origin, WeightsOrigin
from segdeploy.spec import SPEC_KEY, WEIGHTS_KEY, Precision, Spec

if TYPE_CHECKING:
    import onnx

    from segdeploy.blocks import Network

OPSET = 20  # the newest that ONNX Runtime, OpenVINO and TensorRT-RTX all take and torch 2.13 writes
WRAPPER = "network."  # the name of the network inside its deployed form


def to_onnx(network: "Network", spec: Spec, path: Path, *, weights: WeightsOrigin) -> artifact.Artifact:
    """Write the float32 graph of a trained network and its manifest; `weights` says where the network came from.

    The file is the same to the byte for the same network, Spec and versions.
    """
    network.check_size(spec.height, spec.width)
    graph = to_graph(network, spec)
    graph.metadata_props.add(key=WEIGHTS_KEY, value=weights.sha256)
    with artifact.replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
    made = artifact.Artifact(
        path=path,
        kind="graph",
        precision=Precision.FP32,
        spec=spec,
        sha256=artifact.sha256(path),
        origin=Origin(
            command="export",
            version=__version__,
            weights=weights,
            opset=OPSET,
            torch=importlib.metadata.version("torch"),
        ),
        made_at=artifact.now(),
    )
    artifact.write_manifest(made)
    return made


@extras.named_where_missing()
def to_graph(network: "Network", spec: Spec) -> "onnx.ModelProto":
    """The deployed float32 graph, N dynamic, H and W fixed, batch normalisation folded; checked by onnx in full."""
    import onnx
    import torch

    from segdeploy import blocks

    folded = copy.deepcopy(network).eval()
    blocks.fold_normalisation(folded)
    example = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own deprecations, not the user's
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            models.deployed(folded, spec).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=[spec.output],
            dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
            custom_translation_table=_translations(),
            verbose=False,
        )
    assert program is not None  # noqa: S101 - dynamo=True always gives a program
    graph = program.model_proto
    _fold_constants(graph)
    _dress(graph, spec)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _translations() -> dict[Any, Any]:
    """SpaceToDepth and DepthToSpace as themselves: one node where strided slices would be many and slow."""
    import torch
    from onnxscript import opset20 as op

    def space_to_depth(x):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - onnxscript reads the body
        return op.SpaceToDepth(x, blocksize=2)

    def depth_to_space(x):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - onnxscript reads the body
        return op.DepthToSpace(x, blocksize=2, mode="DCR")

    ours = torch.ops.segdeploy
    return {ours.space_to_depth.default: space_to_depth, ours.depth_to_space.default: depth_to_space}


def _fold_constants(model: "onnx.ModelProto") -> None:
    """The exporter computes some constants when the graph runs (a matrix in float32, a zero): they can be constants."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    folded = [node for node in model.graph.node if node.op_type in {"Cast", "ConstantOfShape"}]
    for node in folded:
        if node.input[0] in constants:
            given = {node.input[0]: numpy_helper.to_array(constants[node.input[0]])}
            (value,) = ReferenceEvaluator(node).run(None, given)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), node.output[0]))
            model.graph.node.remove(node)
    read = {name for node in model.graph.node for name in node.input}
    for name in set(constants).difference(read):
        model.graph.initializer.remove(constants[name])


def _dress(model: "onnx.ModelProto", spec: Spec) -> None:
    """Name every node for its module, put the Spec in, take the exporter's traces (paths of this machine) out."""
    graph = model.graph
    used = Counter[str]()
    for node in graph.node:
        node.name = layer_name(node, used, WRAPPER)
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    del model.metadata_props[:], graph.metadata_props[:]
    graph.name, graph.doc_string = spec.name, ""
    model.producer_name, model.producer_version, model.doc_string = "segdeploy", __version__, ""
    model.metadata_props.add(key=SPEC_KEY, value=spec.to_json())


def layer_name(node: "onnx.NodeProto", used: Counter[str], wrapper: str) -> str:
    """`encoder.0.1.conv/Conv`, with a number where a module has several of one kind; `wrapper` is what is around it."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    modules = [scope for scope in scopes.strip("[]").replace("'", "").split(", ")[:-1] if scope]
    module = modules[-1].removeprefix(wrapper) if modules else "deployed"
    name = f"{module}/{node.op_type}"
    used[name] += 1
    return name if used[name] == 1 else f"{name}_{used[name]}"
