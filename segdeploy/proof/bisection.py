"""Where a graph departs from its network: the first layer whose result is wrong for what that layer was given.

It runs a copy of the graph that has the inputs and outputs of its convolutions as further outputs, never the graph or
engine that is certified. PyTorch walks through the folded network in float64 beside it, and goes on after every layer
with the copy's own values: each layer, and each piece between two, is judged alone. No error adds up, a pooling tie
moves the same value in both, and the first that is wrong is the one at fault.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeploy import blocks, models
from segdeploy.certificate import Departure
from segdeploy.graphs.cut import Cut
from segdeploy.graphs.graph import CONVOLUTIONS, Graph, logits_of, weighted_layers
from segdeploy.precision import Tolerance
from segdeploy.spec import Spec

# Relative RMS errors; what right graphs reach is measured in docs/decisions/0009-certificate.md.
FLOAT32 = Tolerance(layer=1e-4, between=1e-4)
CLIPPED = 0.25  # how much of what a grid clips counts: calibration clips outliers of a right graph too
WRONG_CLASSES = 1e-3  # of the pixels, where the argmax of the logits and the class map differ
MOST_NAMED = 5  # nodes in a sentence; the report holds all
FOLLOWED = {"Cast", "Relu"}  # a runtime fuses them into the convolution before them
ROUNDING = {"Cast", "QuantizeLinear"}

Images = NDArray[np.uint8]
ClassMap = NDArray[np.uint8]
Run = Callable[[bytes, Images], Mapping[str, NDArray[Any]]]
Kind = Literal["before a layer", "layer", "logits", "class map"]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that was judged alone: its error, the nodes it consists of, and whether it may round."""

    kind: Kind
    layer: str | None
    error: float
    nodes: Sequence[str]
    rounds: bool = False

    def tolerance(self, rounding: Tolerance) -> float:
        """The largest error that is none; `rounding` is the tolerance of the graph's precision."""
        if self.kind == "class map":
            return WRONG_CLASSES
        tolerance = rounding if self.rounds else FLOAT32
        return tolerance.between if self.kind == "before a layer" else tolerance.layer


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What was seen in one image (H, W, 3): every step, in the order they run in, and the copy's class map.

    `each_alone`: every layer was judged by what it makes of the values that the copy gave it.
    """

    steps: Sequence[Step]
    class_map: ClassMap
    beside: str = "PyTorch"
    each_alone: bool = True

    @property
    def layers(self) -> int:
        return sum(step.kind == "layer" for step in self.steps)

    def first(self, rounding: Tolerance) -> Step | None:
        """The first step that is wrong by more than the rounding of its type and the order of a sum explain."""
        return next((step for step in self.steps if step.error > step.tolerance(rounding)), None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Tap:
    """An output of the copy: the input of a layer, or its output behind all that runtimes fuse into it.

    `grid`: scale and zero point of its integers. `rectified`: negative values are gone. `rounded`: on the way to it.
    """

    tensor: str
    grid: tuple[NDArray[Any], NDArray[Any]] | None = None
    rectified: bool = False
    rounded: bool = False

    def value(self, seen: Mapping[str, NDArray[Any]]) -> Tensor:
        found = seen[self.tensor].astype(np.float64)
        if self.grid is not None:
            scale, zero_point = (part.astype(np.float64) for part in self.grid)
            found = (found - zero_point) * scale
        return torch.from_numpy(found)

    def judged(self, expected: Tensor) -> Tensor:
        """What PyTorch has, as far as this tensor can hold it: rectified, and most of what is clipped forgiven."""
        expected = expected.clamp(min=0) if self.rectified else expected
        if self.grid is None:
            return expected
        scale, zero_point = self.grid
        limits = np.iinfo(zero_point.dtype)
        low, high = (float((limit - zero_point.astype(np.float64)) * scale) for limit in (limits.min, limits.max))
        kept = expected.clamp(low, high)
        return kept + CLIPPED * (expected - kept)


class _Copy:
    """A copy of a graph with the tensors around its layers, and its logits, as further outputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Graph(model)
        self.layers = {node.name: node for node in weighted_layers(self.graph)}
        self.read = {name: self._read(node.input[0]) for name, node in self.layers.items()}
        self.given = {name: self._given(node) for name, node in self.layers.items()}
        self.output = self.graph.model.graph.output[0].name
        self.logits = _Tap(logits_of(model) or self.output)
        self._give_away(tap.tensor for tap in (*self.read.values(), *self.given.values(), self.logits))

    def _read(self, name: str) -> _Tap:
        producer = self.graph.producer.get(name)
        if producer is None or producer.op_type != "DequantizeLinear":
            return _Tap(name)
        if not self._is_integer(producer):
            return _Tap(name, rounded=True)
        return _Tap(producer.input[0], self._grid(producer), rounded=True)

    def _given(self, node: onnx.NodeProto) -> _Tap:
        name, behind = node.output[0], set[str]()
        while len(readers := self.graph.readers.get(name, [])) == 1 and readers[0].op_type in FOLLOWED:
            behind.add(readers[0].op_type)
            name = readers[0].output[0]
        rectified = "Relu" in behind
        if [reader.op_type for reader in readers] != ["QuantizeLinear"] or not self._is_integer(readers[0]):
            return _Tap(name, None, rectified, rounded="Cast" in behind or self._is_low_precision(node.input[1]))
        grid = self._grid(readers[0])
        clipped = grid[1].dtype == np.uint8 and not grid[1].any()
        return _Tap(readers[0].output[0], grid, rectified or clipped, rounded=True)

    def rounds(self, nodes: Sequence[onnx.NodeProto]) -> bool:
        """Whether something between two layers is held in low precision."""
        return any(node.op_type in ROUNDING or self.graph.is_half(node.output[0]) for node in nodes)

    def _is_low_precision(self, weight: str) -> bool:
        return weight in self.graph.producer or self.graph.is_half(weight)

    def _is_integer(self, node: onnx.NodeProto) -> bool:
        """Whether a node quantizes to integers, whose grid is a scale and a zero point; fp8 has no such grid."""
        return bool(np.issubdtype(self.graph.value(node.input[2]).dtype, np.integer))

    def _grid(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.graph.value(node.input[1]), self.graph.value(node.input[2])

    def _give_away(self, tensors: Iterator[str]) -> None:
        outputs = self.graph.model.graph.output
        for name in dict.fromkeys(tensors):
            if name != self.output:
                outputs.append(onnx.ValueInfoProto(name=name))  # its shape is what is being asked

    def nodes_before(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes between what earlier layers give and a tensor, in the order of the graph."""
        return nodes_between(self.graph, {tap.tensor for tap in self.given.values()}, tensor)


def nodes_between(graph: Graph, ends: Collection[str], tensor: str) -> list[onnx.NodeProto]:
    """The nodes between some tensors and one that is made of them, in the order of the graph."""
    wanted, found = {tensor}.difference(ends), list[onnx.NodeProto]()
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(set(node.input).difference(ends))
    return found[::-1]


class _Walk:
    """PyTorch's walk beside the copy: it looks at every convolution on the way, and puts the copy's values in."""

    def __init__(self, walked: _Copy, seen: Mapping[str, NDArray[Any]]) -> None:
        self.copy = walked
        self.seen = seen
        self.steps: list[Step] = []

    def into(self, name: str, expected: Tensor) -> Tensor:
        """Compare what a layer reads, and let PyTorch's read the copy's."""
        tap, node = self.copy.read[name], self.copy.layers[name]
        found = tap.value(self.seen)
        error = error_of(found, tap.judged(expected), expected)
        nodes = self.copy.nodes_before(node.input[0])
        rounds = tap.rounded or self.copy.rounds(nodes)
        self.steps.append(Step("before a layer", name, error, names_of(nodes), rounds))
        return found if found.shape == expected.shape else expected

    def out_of(self, name: str, expected: Tensor) -> Tensor:
        """Compare what a layer gives, and let PyTorch go on with the copy's."""
        tap = self.copy.given[name]
        found = self._found(tap, expected)
        self.steps.append(Step("layer", name, error_of(found, tap.judged(expected), expected), [name], tap.rounded))
        return self.continued(name, expected)

    def _found(self, tap: _Tap, expected: Tensor) -> Tensor:
        found = tap.value(self.seen)
        if found.ndim > 1 and found.shape[1] == 4 * expected.shape[1]:
            found = blocks.depth_to_space(found)  # a transposed convolution, spelled as a 1x1 and DepthToSpace
        return found

    def continued(self, name: str, expected: Tensor) -> Tensor:
        """What goes on behind a layer: the copy's values."""
        tap = self.copy.given[name]
        found = self._found(tap, expected)
        if found.shape != expected.shape:
            return expected
        # What the copy has rectified already keeps PyTorch's negative values: its own ReLU comes next, or is missed.
        return torch.where(found > 0, found, expected.clamp(max=0)) if tap.rectified else found

    def end(self, expected: Tensor) -> ClassMap:
        """Compare the logits, and the class map that was made of them; give that."""
        logits = self.copy.logits.value(self.seen)
        nodes = self.copy.nodes_before(self.copy.logits.tensor)
        error, rounds = error_of(logits, expected, expected), self.copy.rounds(nodes)
        self.steps.append(Step("logits", None, error, names_of(nodes), rounds))
        decided: ClassMap = logits[0].numpy().argmax(axis=0).astype(np.uint8)
        if self.copy.output == self.copy.logits.tensor:
            return decided
        class_map: ClassMap = self.seen[self.copy.output][0]
        nodes = self.copy.nodes_before(self.copy.output)[len(nodes) :]
        self.steps.append(Step("class map", None, float(np.mean(decided != class_map)), names_of(nodes)))
        return class_map


def look(network: blocks.Network, spec: Spec, model: onnx.ModelProto, image: Images, *, run: Run) -> Look:
    """Judge every layer of a graph on one image (H, W, 3), and every piece between two.

    `run` gives all outputs of a graph by name, in the arithmetic that is looked into.
    """
    walked = _Copy(model)
    walk = _Walk(walked, run(walked.graph.model.SerializeToString(), image[None]))
    exact = copy.deepcopy(network).double().eval()
    blocks.fold_normalisation(exact)
    for name, module in _convolutions(exact, walked.layers):
        module.register_forward_pre_hook(lambda _, inputs, name=name: (walk.into(name, inputs[0]),))
        module.register_forward_hook(lambda _, __, output, name=name: walk.out_of(name, output))
    deployed = models.deployed(exact, dataclasses.replace(spec, output="logits")).double().eval()
    with torch.inference_mode():
        class_map = walk.end(deployed(torch.tensor(image[None])))
    return Look(walk.steps, class_map)


def look_beside(exact: onnx.ModelProto, model: onnx.ModelProto, image: Images, *, run: Run) -> Look:
    """Judge every layer of a graph of low precision on one image, beside the float32 graph that it was made of.

    For a graph that was adopted: no network of ours is there to walk. `run` is as `look` has it.
    """
    walked = _Copy(model)
    walk = _Walk(walked, run(walked.graph.model.SerializeToString(), image[None]))
    cut = Cut(exact, walked.layers, walked.graph.model.graph.output[0].name)
    reads = {name: tap.value(walk.seen) for name, tap in walked.read.items()}
    made = {name: torch.from_numpy(value) for name, value in cut.made_of(_arrays(reads)).items()}
    judged = {name: made[name].clamp(max=cut.largest(name)) if walked.given[name].grid else made[name] for name in made}
    given = {name: walk.continued(name, judged[name]) for name in judged}
    between = cut.between(image, _arrays(given))
    for name, expected in judged.items():
        walk.into(name, torch.from_numpy(between.read[name]))
        walk.out_of(name, expected)
    class_map = walk.seen[walked.output][0]
    logits = walked.logits.value(walk.seen)
    nodes = walked.nodes_before(walked.logits.tensor)
    expected = torch.from_numpy(between.logits)
    walk.steps.append(Step("logits", None, error_of(logits, expected, expected), names_of(nodes), walked.rounds(nodes)))
    wrong = float(np.mean(cut.decided(logits.numpy()) != class_map))
    walk.steps.append(Step("class map", None, wrong, names_of(walked.nodes_before(walked.output)[len(nodes) :])))
    return Look(walk.steps, class_map, beside="the float32 graph")


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}


def departure(found: Look, *, stage: str, rounding: Tolerance, image: str, otherwise: str) -> Departure:
    """The first step of a stage that departs; `otherwise` is said where there is none."""
    step = found.first(rounding)
    return Departure(
        stage=stage,
        kind="none found" if step is None else step.kind,
        layer=None if step is None or step.layer is None else _module(step.layer),
        between=None if step is None or step.kind == "layer" else tuple(step.nodes),
        error=step.error if step is not None and math.isfinite(step.error) else None,
        tolerance=rounding.layer if step is None else step.tolerance(rounding),
        image=image,
        layers_compared=found.layers,
        text=otherwise if step is None else _said(step),
    )


def none_found(found: Look, drawn: ClassMap | None, expected: ClassMap, *, passed: bool) -> str:
    """What there is to say where every step agrees: of the copy, and of what the stage itself has drawn."""
    alone = ", each given what the copy gave it," if found.each_alone else ""
    text = f"All {found.layers} layers{alone} give what {found.beside} gives."
    if passed or drawn is None:
        return text
    by_copy, by_stage = (int(np.count_nonzero(each != expected)) for each in (found.class_map, drawn))
    if by_stage > 2 * by_copy:
        masks = f"The copy's mask differs from the reference's in {by_copy} pixels, the stage's own in {by_stage}"
        return f"{text} {masks}: what the stage runs is not its graph, but an older one or a fusion that goes wrong."
    return f"{text} What differs is rounding that adds up over the layers."


def _said(step: Step) -> str:
    """One sentence on what departs."""
    nodes = _shortened(step.nodes)
    by = f"off by {step.error:.2%}" if math.isfinite(step.error) else "of another shape, or no numbers"
    layer = _module(step.layer or "")
    if step.kind == "layer":
        return f"The first layer that departs is {layer}: what it reads is right, what it gives is {by}."
    if step.kind == "before a layer":
        between = f"Between them: {nodes}." if nodes else "Nothing stands between them: a node is missing."
        return f"What {layer} reads is {by}; every layer before it is right. {between}"
    if step.kind == "logits":
        return f"The logits are {by}; every layer is right. Behind the last one: {nodes}."
    wrong = f"the class map is not what follows from them in {step.error:.2%} of the pixels"
    return f"All layers are right; {wrong}. Behind the last one: {nodes}."


def names_of(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    return [node.name for node in nodes]


def _shortened(nodes: Sequence[str]) -> str:
    names = list(nodes)
    return ", ".join(names if len(names) <= MOST_NAMED else [*names[: MOST_NAMED - 1], f"... {names[-1]}"])


def _module(node: str) -> str:
    """The module that a node of ours stands for; a node of somebody else by its own name."""
    module, _, kind = node.rpartition("/")
    return module if module and re.fullmatch(r"(Conv|ConvTranspose)(_\d+)?", kind) else node


def _convolutions(network: nn.Module, named: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that stand as nodes in a graph, by the name of their node."""
    for path, module in network.named_modules():
        for kind in CONVOLUTIONS:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and f"{path}/{kind}" in named:
                yield f"{path}/{kind}", module


def error_of(found: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The RMS of the difference over that of `scale`; infinite for another shape or what is no number."""
    if found.shape != expected.shape:
        return math.inf
    largest = float(scale.square().mean().sqrt())
    difference = float((found - expected).square().mean().sqrt())
    error = difference / largest if largest else difference
    return error if math.isfinite(error) else math.inf
