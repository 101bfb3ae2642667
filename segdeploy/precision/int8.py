"""INT8 in the graph: QuantizeLinear and DequantizeLinear where the target fuses them, from one calibration.

Two forms. *signed* is TensorRT's: int8 activations with zero point 0 on the input of every layer, float bias.
*unsigned* is x86's, for ONNX Runtime and OpenVINO alike: uint8 activations, every convolution's output quantised (which
makes residual additions int8 as well), int32 bias, and whatever only carries values from one convolution to the next
(pooling, un-pooling, concatenation) working on the quantised values themselves. In both, weights are int8 with a scale
for each output channel, a tensor is rounded once, all its readers share the result, and logits are never rounded.

Layers are convolutions and products with a constant matrix, which give float values in both forms. What no runtime has
in integers stays in float32 (`_integer_layers.reason`): products of two computed matrices, as in attention, among it.

Integers have no NaN: QuantizeLinear makes it the smallest value of its grid in ONNX Runtime and OpenVINO.
"""

import dataclasses
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InvalidRequestError
from segdeploy.graphs.graph import (
    CARRIERS,
    CONVOLUTIONS,
    WEIGHT,
    Graph,
    attribute,
    largest_rectified,
    layer_work,
    rectifies,
)
from segdeploy.low_precision import Budget
from segdeploy.precision._base import Layers, Range, Tolerance
from segdeploy.precision._integer_layers import eligible, reason
from segdeploy.spec import Precision

if TYPE_CHECKING:
    import onnx

PRECISION = Precision.INT8
FORMS = ("signed", "unsigned")
BUDGET = Budget(min_agreement=0.98, max_drop=0.5)
METHOD = "percentile"  # the one that agreed best over the four networks, on nuclei and on CamVid
TOLERANCE = Tolerance(layer=0.15, between=0.15)
LEAST_COMPUTE_CAPABILITY = None
LARGEST = 127  # of a weight, and of an activation that may be negative
STEPS = 255  # of an activation that may not
MIDDLE = 128
LOPSIDED = 0.25  # of the largest value: what reaches no lower than that has no middle at 0
LARGEST_BIAS = 2**30  # in steps of its scale: half of what int32 holds
BIAS = 2  # input of a convolution
PADDING = 2  # input of Pad: the value


def layers(model: "onnx.ModelProto", ranges: Mapping[str, Range]) -> Layers:  # noqa: ARG001 - no range is too wide
    """Every layer; in float32 stays what has no integer form."""
    graph = Graph(model)
    found = {node.name: reason(graph, node) for node in graph.layers()}
    return Layers(work=layer_work(graph), in_float={name: why for name, why in found.items() if why is not None})


def executable(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """As it is: ONNX Runtime computes both forms as they are written."""
    return model


def convert(
    model: "onnx.ModelProto", ranges: Mapping[str, Range], *, form: str | None, in_float: Collection[str] = ()
) -> "onnx.ModelProto":
    """The float32 graph with its layers in int8, but for those that `in_float` names.

    `ranges` says what every tensor of `tensors(model)` is clipped to.
    """
    if form is None or form not in FORMS:
        raise InvalidRequestError(f"there is no int8 form {form!r}.", f"Choose one of {', '.join(FORMS)}.")
    graph = Graph(model)
    if form == "unsigned":
        ranges = {**ranges, **_transposed_as_pointwise(graph, ranges)}
    chosen = {node.name for node in eligible(graph) if node.name not in in_float}
    placement = _placed(graph, chosen, form, ranges)
    _Writer(graph, placement, chosen, form).write()
    return graph.model


def tensors(model: "onnx.ModelProto") -> list[str]:
    """What either form may quantize: inputs of layers, outputs of convolutions, and what is only moved between them."""
    graph = Graph(model)
    found: set[str] = set()
    layers = eligible(graph)
    pending = [node.input[0] for node in layers]
    pending += [_after_relu(graph, node.output[0]) for node in layers if node.op_type in CONVOLUTIONS]
    while pending:
        name = pending.pop()
        producer = graph.producer[name]
        if name not in found and producer.op_type in CARRIERS:
            pending += graph.activations_read(producer)
        found.add(name)
    return [name for node in graph.nodes for name in node.output if name in found]


@dataclasses.dataclass(frozen=True, slots=True)
class _Grid:
    """The 256 values that a tensor may have: scale * (q - zero_point)."""

    scale: np.float32
    zero_point: np.int8 | np.uint8

    @classmethod
    def over(cls, clipped: Range, form: str) -> "_Grid":
        low, high = clipped
        below = max(-low, 0.0)
        if form == "unsigned" and below <= high * LOPSIDED:  # as behind ReLU, hard-swish, SiLU and GELU
            scale = _positive((high + below) / STEPS)
            return cls(scale, np.uint8(round(below / float(scale))))
        scale = _positive(max(-low, high) / LARGEST)
        return cls(scale, np.int8(0) if form == "signed" else np.uint8(MIDDLE))

    def clips_at_zero(self) -> bool:
        return isinstance(self.zero_point, np.uint8) and self.zero_point == 0

    def rounded(self, value: NDArray[Any]) -> NDArray[Any]:
        limits = np.iinfo(self.zero_point.dtype)
        steps = np.round(value / self.scale) + self.zero_point
        return np.clip(steps, limits.min, limits.max).astype(self.zero_point.dtype)


class _Placement:
    """Which tensors are rounded, which nodes carry rounded values on, and which tensors share a grid for it."""

    def __init__(self, ranges: Mapping[str, Range], form: str) -> None:
        self.rounded: set[str] = set()
        self.carriers: set[str] = set()
        self._ranges = dict(ranges)
        self._form = form
        self._tied: dict[str, str] = {}

    def tie(self, one: str, other: str) -> None:
        """Let two tensors share a grid, over the union of their ranges."""
        (low, high), (other_low, other_high) = self.range_of(one), self.range_of(other)
        self._ranges[self._root(other)] = min(low, other_low), max(high, other_high)
        if self._root(one) != self._root(other):
            self._tied[self._root(one)] = self._root(other)

    def range_of(self, name: str) -> Range:
        return self._ranges[self._root(name)]

    def grid(self, name: str) -> _Grid:
        return _Grid.over(self.range_of(name), self._form)

    def are_tied(self, *names: str) -> bool:
        return len({self._root(name) for name in names}) == 1

    def _root(self, name: str) -> str:
        while name in self._tied:
            name = self._tied[name]
        return name


def _placed(graph: Graph, chosen: AbstractSet[str], form: str, ranges: Mapping[str, Range]) -> _Placement:
    placement = _Placement(ranges, form)
    layers = [node for node in graph.layers() if node.name in chosen]
    if form == "signed":
        placement.rounded = {node.input[0] for node in layers}
        return placement
    before_layers = graph.before_layers()
    seen: set[str] = set()
    for node in layers:
        _want(graph, node.input[0], placement, seen)
        if node.op_type in CONVOLUTIONS and node.output[0] in before_layers:
            placement.rounded.add(_after_relu(graph, node.output[0]))
    return placement


def _want(graph: Graph, name: str, placement: _Placement, seen: set[str]) -> None:
    """Quantize a tensor or, where its values were only moved, the tensors that they come from."""
    if name in seen:
        return
    seen.add(name)
    producer = graph.producer[name]
    sources = graph.activations_read(producer) if producer.op_type in CARRIERS else []
    for source in sources:
        _want(graph, source, placement, seen)
    # Values from 0 up next to values of both signs would lose half of their steps on a common grid.
    if len({placement.range_of(source)[0] >= 0 for source in sources}) != 1:
        placement.rounded.add(name)
        return
    placement.carriers.add(producer.name)
    for output in producer.output:
        seen.add(output)
        for source in sources:
            placement.tie(output, source)


def _after_relu(graph: Graph, name: str) -> str:
    """What stands behind the ReLU or ReLU6 that alone reads a tensor: runtimes fuse it into the convolution."""
    readers = graph.readers.get(name, [])
    return readers[0].output[0] if len(readers) == 1 and rectifies(graph, readers[0]) else name


class _Writer:
    """Writes the nodes anew, in their order, each reading rounded values where there are some."""

    def __init__(self, graph: Graph, placement: _Placement, chosen: AbstractSet[str], form: str) -> None:
        self.graph = graph
        self.placement = placement
        self.chosen = chosen
        self.form = form
        self.quantized: set[str] = set()
        self.never: set[str] = set()  # conditions that quantised values do not meet
        self.same: dict[str, str] = {}  # tensors that are another one where those conditions are not met
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        for node in list(self.graph.nodes):
            for index, source in enumerate(node.input):
                node.input[index] = self.same.get(source, source)
            if self._asks_for_nan(node):
                continue
            if node.name in self.placement.carriers:
                self._carry(node)
            elif node.op_type in {"Greater", "Less"} and self.quantized.issuperset(node.input):
                self._compare(node)
            elif self._is_clipped(node):
                source = node.input[0]
                self._round(node.output[0], source=self._dequantized(source) if source in self.quantized else source)
            else:
                self._compute(node)
        self.graph.replace_nodes(self.nodes)
        self.graph.drop_unread_constants()
        self.graph.describe_tensors()

    def _asks_for_nan(self, node: "onnx.NodeProto") -> bool:
        """Whether a node only tells NaN from numbers, and reads quantised values: they hold none, it is left out."""
        if node.op_type == "IsNaN" and node.input[0] in self.quantized and self._only_chooses(node.output[0]):
            self.never.add(node.output[0])
        elif node.op_type in {"Or", "Where"} and (asked := self.never.intersection(node.input)):
            left = [name for name in reversed(node.input) if name not in asked]
            if left:
                self.same[node.output[0]] = left[0]
            else:
                self.never.add(node.output[0])
        else:
            return False
        return True

    def _only_chooses(self, condition: str) -> bool:
        """Whether a condition is read by nothing but the choices that it makes, alone or beside another one."""
        return all(
            (node.op_type == "Where" and list(node.input).index(condition) == 0)
            or (node.op_type == "Or" and self._only_chooses(node.output[0]))
            for node in self.graph.readers.get(condition, [])
        )

    def _is_clipped(self, node: "onnx.NodeProto") -> bool:
        """Whether a node only takes away what its output's unsigned values, from 0 up, cannot hold: it is left out.

        ONNX Runtime sees that behind convolutions alone.
        """
        output = node.output[0]
        if not rectifies(self.graph, node) or output not in self.placement.rounded:
            return False
        grid = self.placement.grid(output)
        return grid.clips_at_zero() and STEPS * float(grid.scale) <= largest_rectified(self.graph, node) * (1 + 1e-6)

    def _compute(self, node: "onnx.NodeProto") -> None:
        """Let a node read dequantised values; where it is chosen, with int8 weights."""
        if node.name in self.chosen:
            self._quantize_weights(node)
        for index, source in enumerate(node.input):
            if source in self.quantized:
                node.input[index] = self._dequantized(source)
        self.nodes.append(node)
        for name in self.placement.rounded.intersection(node.output):
            self._round(name, source=name)

    def _carry(self, node: "onnx.NodeProto") -> None:
        """Let a node work on quantised values; a constant of its own is put on their grid."""
        grid = self.placement.grid(node.output[0])
        if node.op_type == "Pad":
            self._say_what_pads(node)
        for index, source in enumerate(node.input):
            if source in self.quantized:
                node.input[index] = f"{source}/quantized"
            elif source in self.graph.constants and self.graph.is_float(source):
                node.input[index] = f"{source}/{node.name}/quantized"
                self.graph.set_value(node.input[index], grid.rounded(self.graph.value(source)))
        for index, name in enumerate(node.output):
            self._set_grid(name, grid)
            node.output[index] = f"{name}/quantized"
        self.nodes.append(node)

    def _say_what_pads(self, node: "onnx.NodeProto") -> None:
        """Write the padding value out: left out, it is a zero of the integers, which need not stand for the float 0."""
        if len(node.input) <= PADDING:
            node.input.append("")
        if not node.input[PADDING]:
            node.input[PADDING] = f"{node.name}/padding"
            self.graph.set_value(node.input[PADDING], np.zeros((), np.float32))

    def _compare(self, node: "onnx.NodeProto") -> None:
        """Compare the integers where both tensors have one scale and zero point; else the float values."""
        tied = self.placement.are_tied(*node.input)
        for index, source in enumerate(node.input):
            node.input[index] = f"{source}/quantized" if tied else self._dequantized(source)
        self.nodes.append(node)

    def _round(self, name: str, *, source: str) -> None:
        from onnx import helper

        self._set_grid(name, self.placement.grid(name))
        inputs = [source, f"{name}/scale", f"{name}/zero_point"]
        outputs = [f"{name}/quantized"]
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, outputs, name=f"{name}/QuantizeLinear"))

    def _set_grid(self, name: str, grid: _Grid) -> None:
        self.graph.set_value(f"{name}/scale", np.array(grid.scale))
        self.graph.set_value(f"{name}/zero_point", np.array(grid.zero_point))
        self.quantized.add(name)

    def _dequantized(self, name: str) -> str:
        """The float values of a quantised tensor; their node is written once, when it is first asked for."""
        from onnx import helper

        given = f"{name}/dequantized"
        if given not in self.graph.producer:
            inputs = [f"{name}/{part}" for part in ("quantized", "scale", "zero_point")]
            node = helper.make_node("DequantizeLinear", inputs, [given], name=f"{name}/DequantizeLinear")
            self.graph.producer[given] = node
            self.nodes.append(node)
        return given

    def _quantize_weights(self, node: "onnx.NodeProto") -> None:
        """Round the weights by output channel and, in the unsigned form, the bias to int32.

        A channel whose bias would not fit gets coarser weights.
        """
        axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        weight = self.graph.value(node.input[WEIGHT]).astype(np.float64)
        scales = np.abs(weight).max(axis=tuple(other for other in range(weight.ndim) if other != axis)) / LARGEST
        step = self.placement.grid(node.input[0]).scale
        has_int32_bias = self.form == "unsigned" and len(node.input) > BIAS and bool(node.input[BIAS])
        if has_int32_bias:
            bias = self.graph.value(node.input[BIAS]).astype(np.float64)
            scales = np.maximum(scales, np.abs(bias) / (step * LARGEST_BIAS))
        scales = np.array([_positive(scale) for scale in scales])
        column = scales.reshape([-1 if other == axis else 1 for other in range(weight.ndim)])
        rounded = np.clip(np.round(weight / column), -LARGEST, LARGEST).astype(np.int8)
        self._put_constant(node, WEIGHT, rounded, scales, axis)
        if has_int32_bias:
            steps = scales * step
            self._put_constant(node, BIAS, np.round(bias / steps).astype(np.int32), steps, 0)

    def _put_constant(
        self, node: "onnx.NodeProto", index: int, rounded: NDArray[Any], scales: NDArray[np.float32], axis: int
    ) -> None:
        """Let a node read integers times scales, one for each slice along `axis`."""
        from onnx import helper

        name = node.input[index]
        if f"{name}/dequantized" in self.graph.producer:  # equal constants are one: each reader rounds its own
            name = f"{node.name}/{name}"
        node.input[index] = f"{name}/dequantized"
        values = {"quantized": rounded, "scale": scales, "zero_point": np.zeros(len(scales), rounded.dtype)}
        for part, value in values.items():
            self.graph.set_value(f"{name}/{part}", value)
        inputs, outputs = [f"{name}/{part}" for part in values], [node.input[index]]
        named: dict[str, Any] = {"name": f"{name}/DequantizeLinear", "axis": axis}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, outputs, **named))
        self.graph.producer[node.input[index]] = self.nodes[-1]


def _transposed_as_pointwise(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """2x2 transposed convolutions of stride 2 as 1x1 convolutions and DepthToSpace: ONNX Runtime has those in int8.

    Give the ranges of the tensors between the two.
    """
    from onnx import helper

    nodes: list[onnx.NodeProto] = []
    between = {}
    moved: set[str] = set()
    for node in graph.nodes:
        if node.name in moved:
            continue
        if not _doubles(graph, node):
            nodes.append(node)
            continue
        weight, bias = node.input[WEIGHT], node.input[BIAS]
        kernel = graph.value(weight)
        inputs, outputs = kernel.shape[:2]
        graph.set_value(f"{weight}/1x1", kernel.transpose(2, 3, 1, 0).reshape(4 * outputs, inputs, 1, 1))
        graph.set_value(f"{bias}/1x1", np.tile(graph.value(bias), 4))
        phases = f"{node.output[0]}/phases"
        sources = [node.input[0], f"{weight}/1x1", f"{bias}/1x1"]
        nodes.append(helper.make_node("Conv", sources, [phases], name=node.name))
        output = _after_relu(graph, node.output[0])
        if output != node.output[0]:  # the ReLU stays behind its convolution, where runtimes fuse it
            relu = graph.producer[output]
            moved.add(relu.name)
            nodes.append(helper.make_node("Relu", [phases], [f"{output}/phases"], name=relu.name))
            phases = f"{output}/phases"
        between[phases] = ranges[output]
        spread: dict[str, Any] = {"name": f"{node.name}/DepthToSpace", "blocksize": 2, "mode": "DCR"}
        nodes.append(helper.make_node("DepthToSpace", [phases], [output], **spread))
    graph.replace_nodes(nodes)
    graph.drop_unread_constants()
    graph.describe_tensors()
    return between


def _doubles(graph: Graph, node: "onnx.NodeProto") -> bool:
    return (
        node.op_type == "ConvTranspose"
        and len(node.input) > BIAS
        and graph.value(node.input[WEIGHT]).shape[2:] == (2, 2)
        and list(attribute(node, "strides", [])) == [2, 2]
        and not any(attribute(node, "pads", []))
        and attribute(node, "group", 1) == 1
    )


def _positive(scale: float) -> np.float32:
    """The scale, or any positive one in place of zero: a runtime divides by it, and the tensor is always zero."""
    return np.float32(scale) if scale > np.finfo(np.float32).tiny else np.float32(1 / STEPS)
