"""An ONNX file that somebody else wrote, read without trusting it: what it holds is bounded before it is run."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdeploy import external_data, extras
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.paths import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

MOST_BYTES = 2**31 - 1  # of a protobuf
MOST_ELEMENTS = 2**29  # of one tensor: 2 GB in float32
LEAST_OPSET, NEWEST_OPSET = 7, 25
IMAGE_RANK = 4
LAYOUTS = ("NCHW", "NHWC", "CNHW", "CHWN", "HWCN", "HWNC")
CHANNELS = (3, 1)
STANDARD = ("", "ai.onnx")
RECURRENT = ("GRU", "LSTM", "RNN")
CONTROL = ("If", "Loop", "Scan")
QUANTIZED = (
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "ConvInteger",
    "MatMulInteger",
    "QLinearMatMul",
)
ANOTHER = "Give the ONNX file of a segmentation network: one image in, a class map or a score for each class out."
AGAIN = "Export it again from where it was trained."


@extras.named_where_missing()
def read(path: Path) -> "onnx.ModelProto":
    """The network of an ONNX file, its weights in memory, its functions written out, its nodes in running order.

    Raise InvalidFileError, with the reason in one sentence, for anything that is no such file or cannot be adopted.
    """
    import onnx
    import onnx.inliner

    _require_safe(path)
    try:
        model = onnx.load(path)
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # protobuf, onnx and the file system raise unrelated kinds
        raise refused(path, f"is no ONNX file: {_first_line(error)}", AGAIN) from error
    if not model.graph.node or not model.graph.output:
        raise refused(path, "is no ONNX file: it has no nodes", AGAIN)
    _lift_constants(model)
    _let_one_image_in(model)
    _require_known(path, model)
    _sort(path, model)
    try:
        model = _with_own_shapes(model)
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own kinds and protobuf's
        raise refused(path, f"is damaged: {_first_line(error)}", AGAIN) from error
    return model


def refused(path: Path, reason: str, remedy: str = ANOTHER) -> InvalidFileError:
    return InvalidFileError(f"{shown(path)} {reason.rstrip('.')}.", remedy)


def is_quantized(model: "onnx.ModelProto") -> bool:
    """Whether somebody has quantized a network already."""
    return any(node.op_type in QUANTIZED for node in model.graph.node)


def image_input(path: Path, model: "onnx.ModelProto") -> "onnx.ValueInfoProto":
    """The one input that is no weight. Raise InvalidFileError where there are several."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(shown(value.name) for value in inputs[:5])
        kind = "states that it carries from image to image, or several images" if inputs else "no image"
        raise refused(path, f"takes {len(inputs)} inputs ({names or 'none'}): {kind}")
    found: onnx.ValueInfoProto = inputs[0]
    return found


def sides_of(value: "onnx.ValueInfoProto") -> list[int | None]:
    """The declared sides of a tensor; None where one is not fixed."""
    shape = value.type.tensor_type.shape
    return [side.dim_value if side.dim_value > 0 else None for side in shape.dim]


def layouts_of(sides: "Sequence[int | None]") -> list[tuple[str, int]]:
    """The orders of axes that declared sides allow of one image, each with its number of channels."""
    return [
        (layout, channels)
        for channels in CHANNELS
        for layout in LAYOUTS
        if sides[layout.index("C")] in {None, channels} and sides[layout.index("N")] in {None, 1}
    ]


def _let_one_image_in(model: "onnx.ModelProto") -> None:
    """Let a graph that declares several images take one as well: whether it can, running it will show."""
    if len(model.graph.input) != 1:
        return
    sides = sides_of(model.graph.input[0])
    if len(sides) == IMAGE_RANK and sides[0] and not layouts_of(sides) and layouts_of([None, *sides[1:]]):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "images"


def require_bounded(path: Path, model: "onnx.ModelProto") -> None:
    """Raise InvalidFileError where a tensor is too large to be computed; the input has its size by now."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of onnx's C++; a graph that cannot be inferred is refused before it can run
        raise refused(path, f"is damaged: {_first_line(error)}", AGAIN) from error
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if math.prod(side or 1 for side in sides_of(value)) > MOST_ELEMENTS:
            raise refused(path, f"computes a tensor of shape {sides_of(value)}, too large to run ({shown(value.name)})")


def _require_safe(path: Path) -> None:
    if not path.is_file():
        raise InvalidRequestError(
            f"there is no file {shown(path)}.",
            "Give an ONNX file, a .pt2, a TorchScript archive, a folder, or code: package.module:build",
        )
    if path.stat().st_size > MOST_BYTES:
        raise refused(
            path, "has 2 GB and more, which no protobuf holds", "Save its weights as external data beside it."
        )
    try:
        external_data.require_contained(path)
    except InvalidFileError as error:
        raise InvalidFileError(
            error.what, "Bring the files whole; external data has to lie beside the ONNX file."
        ) from error


def _require_known(path: Path, model: "onnx.ModelProto") -> None:
    """Standard operators only, in a version that is known, and every weight of a sensible size."""
    opset = opset_of(model)
    if not LEAST_OPSET <= opset <= NEWEST_OPSET:
        raise refused(path, f"is written in opset {opset}, not in {LEAST_OPSET} to {NEWEST_OPSET}", AGAIN)
    for node in _every_node(model.graph):
        if node.domain not in STANDARD:
            reason = f"has the custom operator {shown(node.op_type)} of {shown(node.domain)}, whose library is not here"
            raise refused(path, reason, "Export it again in standard operators.")
        if node.op_type in RECURRENT:
            raise refused(path, f"is recurrent ({node.op_type}): a mask would depend on what came before")
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > MOST_ELEMENTS:
            raise refused(path, f"has a weight of shape {list(tensor.dims)} ({shown(tensor.name)}), too large to run")


def opset_of(model: "onnx.ModelProto") -> int:
    return next((int(each.version) for each in model.opset_import if each.domain in STANDARD), 1)


def _every_node(graph: "onnx.GraphProto") -> "Iterator[onnx.NodeProto]":
    """Of a graph and of what its loops and branches hold."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _every_node(inner)


def _lift_constants(model: "onnx.ModelProto") -> None:
    """Constants that are nodes become weights, and weights are no inputs: one spelling for all that follows."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    constants = [node for node in graph.node if node.op_type == "Constant" and node.domain in STANDARD]
    for node in constants:
        value = next((each.t for each in node.attribute if each.name == "value"), None)
        tensor = value or numpy_helper.from_array(np.asarray(next(iter(ReferenceEvaluator(node).run(None, {})))))
        added = graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = node.output[0]
        graph.node.remove(node)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # from here on, weights need be no inputs


def _with_own_shapes(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """With the shapes that follow from the inputs, not those that the file declares: these may be wrong."""
    import onnx

    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    found: onnx.ModelProto = onnx.shape_inference.infer_shapes(model)
    for output in found.graph.output:
        output.type.tensor_type.shape.SetInParent()  # the checker asks for one
    return found


def _sort(path: Path, model: "onnx.ModelProto") -> None:
    """Put the nodes in an order they can run in. Raise InvalidFileError where they wait for one another."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    done, waiting, ordered = {""}, list(graph.node), []
    while waiting:
        left = []
        for node in waiting:
            if all(name in done or name not in made for name in _read(node)):
                ordered.append(node)
                done.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            stuck = shown(left[0].name or left[0].op_type)
            raise refused(path, f"is cyclic: {stuck} waits for its own result", AGAIN)
        waiting = left
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _read(node: "onnx.NodeProto") -> "Iterator[str]":
    """What a node reads, inside its loops and branches too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {name for each in inner.node for name in each.output}
            yield from (name for each in inner.node for name in _read(each) if name not in own)


def _first_line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:200]
