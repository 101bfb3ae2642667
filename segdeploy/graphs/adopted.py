"""A foreign graph in the deployed form: uint8 RGB image in, class map out, the original's nodes between.

What it draws is defined by `segdeploy.graphs.reading`, in NumPy; here are the same steps as ONNX operators that every
runtime takes.
"""

import itertools
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy._version import __version__
from segdeploy.graphs import reading, sizes, spellings
from segdeploy.graphs.graph import DECISION, Graph
from segdeploy.graphs.probing import Sight
from segdeploy.interpolation import interpolation_matrix
from segdeploy.origin import GraphReading, Preprocessing
from segdeploy.spec import SPEC_KEY, WEIGHTS_KEY, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

IMAGES = "images"
OURS = "deployed"  # in front of the names of what is added
BEFORE = f"{OURS}/normalised"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]")

log = logging.getLogger("segdeploy")


def candidates(model: "onnx.ModelProto", sight: Sight, spec: Spec, *, sha256: str) -> "Iterator[onnx.ModelProto]":
    """The deployed graph in several spellings, the most convenient first; those that cannot be written are left out.

    N is dynamic, H and W are fixed. Which of them draws what the original draws is for the caller to find out.
    """
    for spelled in spellings.spellings(model):
        whole = _deployed(spelled, sight, spec)
        for each in (spellings.simplified, _as_it_is):
            try:
                yield _completed(each(sizes.with_sizes_written_out(whole)), spec, sha256)
            except Exception as error:  # noqa: BLE001 - of onnx's C++ and of ONNX Runtime: the next one is tried
                log.debug("A spelling of %s is left out: %s", spec.name, error)


def of_one_image(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same graph for one image at a time, where its batch cannot be freed."""
    graph = Graph(sizes.with_sizes_written_out(model, sizes.ONE_IMAGE))
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    name_nodes(graph.model)
    graph.describe_tensors()
    return graph.model


def takes_one_image(model: "onnx.ModelProto") -> bool:
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1)


def _as_it_is(model: "onnx.ModelProto") -> "onnx.ModelProto":
    return model


def _deployed(model: "onnx.ModelProto", sight: Sight, spec: Spec) -> "onnx.ModelProto":
    copy = Graph(model).model
    names = _rename(copy)
    how = sight.reading
    writer = _Writer(copy, how)
    taken = writer.normalise(names[how.input])
    inner = list(copy.graph.node)
    writer.decide(names[how.output], sight, spec)
    _assemble(copy, [*writer.before, *inner, *writer.after], spec)
    _feed(copy, names[how.input], taken, how)
    return copy


def _completed(model: "onnx.ModelProto", spec: Spec, sha256: str) -> "onnx.ModelProto":
    """With names, types, shapes, and what it is."""
    _decide_through_floats(model)
    name_nodes(model)
    del model.metadata_props[:]
    model.metadata_props.add(key=SPEC_KEY, value=spec.to_json())
    model.metadata_props.add(key=WEIGHTS_KEY, value=sha256)
    graph = Graph(model)
    graph.drop_unread_constants()
    graph.describe_tensors()
    return graph.model


def _decide_through_floats(model: "onnx.ModelProto") -> None:
    """TensorRT takes bytes as output from floats alone; ONNX Runtime folds the two casts into one."""
    from onnx import helper

    nodes = list(model.graph.node)
    last = next(node for node in nodes if node.output[0] == model.graph.output[0].name)
    maker = next((node for node in nodes if node.output[0] == last.input[0]), None)
    if last.op_type == "Cast" and (maker is None or maker.op_type != "Cast"):
        floats = f"{OURS}/through floats"
        cast = helper.make_node("Cast", [last.input[0]], [floats], name=f"{OURS}/Cast.classes", to=_kind("float32"))
        last.input[0] = floats
        nodes.insert(nodes.index(last), cast)
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def name_nodes(model: "onnx.ModelProto") -> None:
    """Give every node a name of its own, its own one where it has one: what layers are called everywhere."""
    used = Counter[str]()
    for node in model.graph.node:
        name = node.name or node.op_type
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        node.doc_string = ""
        del node.metadata_props[:]


def names_in(model: "onnx.ModelProto") -> dict[str, str]:
    """What each tensor of a foreign graph is called once it is adopted, whichever spelling of the graph was taken.

    Names have no slashes: low precision names what it adds `TENSOR/...`, and meets no name of theirs.
    """
    graph = model.graph
    every = [
        *(each.name for each in (*graph.input, *graph.initializer)),
        *(o for node in graph.node for o in node.output),
    ]
    names, used = {"": ""}, {IMAGES, "class_map", "logits"}
    for name in dict.fromkeys(every):
        if name:
            plain = _UNSAFE.sub(".", name)
            numbered = (f"{plain}.{number}" for number in itertools.count(2))
            names[name] = next(free for free in itertools.chain([plain], numbered) if free not in used)
            used.add(names[name])
    return names


def _rename(model: "onnx.ModelProto") -> dict[str, str]:
    """Give every tensor the name it has from now on."""
    graph, names = model.graph, names_in(model)
    for each in (*graph.input, *graph.initializer, *graph.output):
        each.name = names[each.name]
    _rename_nodes(graph, names)
    name_nodes(model)
    return names


def _rename_nodes(graph: "onnx.GraphProto", names: dict[str, str]) -> None:
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                own = {each.name for each in (*inner.input, *inner.initializer)}
                own |= {name for each in inner.node for name in each.output}
                _rename_nodes(inner, {name: new for name, new in names.items() if name not in own})


def _feed(model: "onnx.ModelProto", name: str, taken: str, how: GraphReading) -> None:
    """Let the original's nodes read the normalised image; casts of bytes to floats read the floats themselves."""
    graph = Graph(model)
    floats = how.dtype == "uint8" and _only_cast(graph, name)
    source = BEFORE if floats else taken
    for node in model.graph.node:
        node.input[:] = [source if each == name else each for each in node.input]
    if floats and taken != BEFORE:
        cast = next(node for node in model.graph.node if taken in node.output)
        model.graph.node.remove(cast)


def _only_cast(graph: Graph, name: str) -> bool:
    """Whether bytes are only moved until they are cast to floats."""
    moving = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity"}
    readers = [node for node in graph.readers.get(name, []) if node.input[0] == name]
    return bool(readers) and all(
        node.op_type == "Cast" or (node.op_type in moving and _only_cast(graph, node.output[0])) for node in readers
    )


def _assemble(model: "onnx.ModelProto", nodes: "list[onnx.NodeProto]", spec: Spec) -> None:
    from onnx import TensorProto, helper

    graph = model.graph
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    shape: list[str | int | None] = ["N", spec.height, spec.width]
    graph.input.append(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [*shape, 3]))
    graph.output.append(helper.make_tensor_value_info(spec.output, TensorProto.UINT8, shape))
    graph.name, graph.doc_string = spec.name, ""
    model.producer_name, model.producer_version, model.doc_string = "segdeploy", __version__, ""


class _Writer:
    """Writes the nodes in front of the original's and behind them."""

    def __init__(self, model: "onnx.ModelProto", how: GraphReading) -> None:
        self.model = model
        self.how = how
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []
        self._nodes = self.before
        self._last = IMAGES

    def _add(self, kind: str, name: str, *constants: NDArray[Any], node: str = "", **attributes: Any) -> None:  # noqa: ANN401 - of any operator
        """Append an operator on what was made last, its further inputs being constants."""
        from onnx import helper, numpy_helper

        given = [f"{OURS}/{name}/{index}" for index in range(len(constants))]
        for label, value in zip(given, constants, strict=True):
            self.model.graph.initializer.append(numpy_helper.from_array(value, label))
        output = f"{OURS}/{name}"
        named = {"name": node or f"{OURS}/{kind}.{name}", **attributes}
        self._nodes.append(helper.make_node(kind, [self._last, *given], [output], **named))
        self._last = output

    def normalise(self, tensor: str) -> str:
        """What the original's input `tensor` is, made of the images; give the name of the tensor that holds it."""
        how = self.how
        self._add("Cast", "floats", to=_kind("float32"))
        order = ["NHWC".index(axis) for axis in how.layout]
        if order != [0, 1, 2, 3]:
            self._add("Transpose", "placed", perm=order)
        self._order(how.preprocessing, how.layout.index("C"))
        if how.preprocessing.stretched:
            self._stretch([how.layout.index(axis) for axis in "CHW"])
        self._scale(how.preprocessing, how.layout.index("C"))
        self._nodes[-1].output[0] = self._last = BEFORE
        if how.dtype != "float32":
            self._add("Cast", tensor, to=_kind(how.dtype))
        return self._last

    def _order(self, how: Preprocessing, axis: int) -> None:
        if how.channels == "bgr":
            self._add("Gather", "bgr", np.array([2, 1, 0]), axis=axis)
        elif how.channels == "grey":
            self._add("Mul", "weighed", _column(reading.GREY, axis))
            self._add("ReduceSum", "summed", np.array([axis]), keepdims=1)
            self._add("Add", "rounded", np.float32(reading.GREY_TOTAL // 2).reshape(1))
            self._add("Mul", "grey", np.float32(1 / reading.GREY_TOTAL).reshape(1))
            self._add("Floor", "levels")

    def _stretch(self, axes: list[int]) -> None:
        """An image's least value becomes 0 and its largest 255."""
        from onnx import helper

        pixels, low, high = self._last, f"{OURS}/low", f"{OURS}/high"
        self._add("ReduceMin", "low", np.array(axes), keepdims=1)
        self._last = pixels
        self._add("ReduceMax", "high", np.array(axes), keepdims=1)
        self._nodes.append(helper.make_node("Sub", [high, low], [f"{OURS}/span"], name=f"{OURS}/Sub.span"))
        self._last = f"{OURS}/span"
        self._add("Max", "divisor", np.float32(reading.SMALLEST_SPAN).reshape(1))
        self._nodes.append(helper.make_node("Sub", [pixels, low], [f"{OURS}/raised"], name=f"{OURS}/Sub.raised"))
        self._nodes.append(
            helper.make_node(
                "Div", [f"{OURS}/raised", f"{OURS}/divisor"], [f"{OURS}/shares"], name=f"{OURS}/Div.shares"
            )
        )
        self._last = f"{OURS}/shares"
        self._add("Mul", "stretched", np.float32(reading.LARGEST).reshape(1))

    def _scale(self, how: Preprocessing, axis: int) -> None:
        if any(how.mean):
            self._add("Sub", "centred", _column(reading.centre(how), axis))
        if any(gain != 1 for gain in reading.gains(how)):
            self._add("Mul", "scaled", _column(reading.gains(how), axis))

    def decide(self, output: str, sight: Sight, spec: Spec) -> None:
        """The class map, made of the original's output."""
        self._nodes, self._last = self.after, output
        how, axes = self.how, self.how.axes
        if "N" not in axes:
            side = dict(zip("KHW", sight.plane, strict=True))
            self._add("Reshape", "with a batch", np.array([-1, *(side[axis] for axis in axes)]))
            axes = f"N{axes}"
        self._add("Cast", "values", to=_kind("float32"))
        if how.kind in {"scores", "several channels"}:
            self._choose(axes, sight, spec)
        else:
            self._plane(axes)
            self._of_plane(sight, spec)
        self._add("Cast", "decided", to=_kind("uint8"))
        self._nodes[-1].output[0] = spec.output

    def _choose(self, axes: str, sight: Sight, spec: Spec) -> None:
        """Scores -> (N, H, W) class indices as floats, the first one of equals."""
        if sight.plane[1:] != (spec.height, spec.width):
            if axes != "NKHW":
                self._add("Transpose", "planes", perm=[axes.index(axis) for axis in "NKHW"])
            self._enlarge(sight.plane[1:], spec)
            axes = "NKHW"
        if self.how.kind == "several channels":
            self._put_background(axes)
        left = axes.replace("K", "")
        self._add("ArgMax", "chosen", node=DECISION, axis=axes.index("K"), keepdims=0)
        self._add("Cast", "classes", to=_kind("float32"))
        if left != "NHW":
            self._add("Transpose", "upright", perm=[left.index(axis) for axis in "NHW"])

    def _put_background(self, axes: str) -> None:
        """The threshold as the score of class 0, in front of the others."""
        in_front = np.array([axis == "K" for axis in axes] + [False] * len(axes), np.int64)
        self._add("Pad", "with a background", in_front, np.array(self.how.threshold, np.float32))

    def _enlarge(self, sides: tuple[int, ...], spec: Spec) -> None:
        """(N, K, h, w) -> (N, K, H, W): two constant matrix products, as in our own networks."""
        from onnx import helper, numpy_helper

        rows = interpolation_matrix(sides[0], spec.height, align_corners=False).astype(np.float32)
        columns = interpolation_matrix(sides[1], spec.width, align_corners=False).astype(np.float32)
        self._add("MatMul", "wide", np.ascontiguousarray(columns.T))
        label, output = f"{OURS}/rows", f"{OURS}/enlarged"
        self.model.graph.initializer.append(numpy_helper.from_array(rows, label))
        self._nodes.append(helper.make_node("MatMul", [label, self._last], [output], name=f"{OURS}/MatMul.enlarged"))
        self._last = output

    def _plane(self, axes: str) -> None:
        """One channel -> (N, H, W)."""
        if "K" in axes:
            self._add("Squeeze", "plane", np.array([axes.index("K")]))
        left = axes.replace("K", "")
        if left != "NHW":
            self._add("Transpose", "upright", perm=[left.index(axis) for axis in "NHW"])

    def _of_plane(self, sight: Sight, spec: Spec) -> None:
        """(N, h, w) values -> (N, H, W) class indices as floats."""
        sides, how, full = sight.plane[1:], self.how, (spec.height, spec.width)
        if how.kind == "one channel":
            if sides != full:
                self._enlarge(sides, spec)
            self._add("Greater", "above", np.float32(how.threshold).reshape(1), node=DECISION)
            self._add("Cast", "classes", to=_kind("float32"))
            return
        for axis, (own, wanted) in enumerate(zip(sides, full, strict=True), start=1):
            if own != wanted:
                self._add("Gather", f"nearest {axis}", reading.nearest(own, wanted), axis=axis)
        if how.values:
            self._look_up(how.values)

    def _look_up(self, values: tuple[int, ...]) -> None:
        from onnx import helper, numpy_helper

        table = reading.table_of(values).astype(np.float32)
        self._add("Clip", "inside", np.array(0, np.float32), np.array(len(table) - 1, np.float32))
        self._add("Cast", "places", to=_kind("int32"))
        label, output = f"{OURS}/table", f"{OURS}/indices"
        self.model.graph.initializer.append(numpy_helper.from_array(table, label))
        self._nodes.append(
            helper.make_node("Gather", [label, self._last], [output], name=f"{OURS}/Gather.indices", axis=0)
        )
        self._last = output


def _column(values: Any, axis: int) -> NDArray[np.float32]:  # noqa: ANN401 - any sequence of numbers
    """One value a channel, shaped for the axis of the channels."""
    shape = [1, 1, 1, 1]
    shape[axis] = len(values)
    return np.array(values, np.float64).reshape(shape).astype(np.float32)


def _kind(name: str) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(name)))
