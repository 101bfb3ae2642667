"""A graph that somebody else trained, in ONNX Runtime: the masks that are right by definition."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from segdeploy import metrics
from segdeploy.errors import GateFailedError
from segdeploy.graphs import foreign, original, outputs, reading
from segdeploy.graphs.graph import attribute
from segdeploy.graphs.original import Original
from segdeploy.origin import GraphReading
from segdeploy.proof.reference import Drawn, Mask, near_ties
from segdeploy.spec import Spec

COMPARING = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
Array = NDArray[Any]


class OnnxReference:
    """The original file, its input prepared and its output read by NumPy; `reading` says how.

    It runs twice, with all of ONNX Runtime's optimisations and with none: what these two cannot agree on is no fault of
    a graph made from it.
    """

    kind: Final = "ONNX Runtime"

    def __init__(self, path: Path, spec: Spec, how: GraphReading) -> None:
        self.spec = spec
        self.reading = how
        self._path = path
        self._known = Drawn()
        model, self._deciding = _with_scores(path, how)
        self._plain, self._optimised = Original(model, optimised=False), Original(model)

    def class_map(self, image: NDArray[np.uint8], /) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) -> the class map (H, W) and which of its pixels are near-ties; kept, for a budget asks again."""
        return self._known.of(image, self._drawn)

    def pool_ties(self, image: NDArray[np.uint8], /) -> Mask:
        """(H, W, 3) -> (H, W): none; where a foreign graph pools, nobody knows."""
        return np.zeros(image.shape[:2], bool)

    def _drawn(self, image: NDArray[np.uint8]) -> tuple[metrics.ClassMap, Mask]:
        plain = self._outputs(self._plain, reading.as_given(image, self.reading))
        optimised = self._outputs(self._optimised, reading.as_rounded(image, self.reading))
        if self.reading.kind == "class map":
            return self._of_values(plain, optimised)
        height, width = self.spec.height, self.spec.width
        scores, others = (reading.scores_of(found[0], self.reading, height, width) for found in (plain, optimised))
        return scores.argmax(axis=0).astype(np.uint8), near_ties(scores, others)

    def _outputs(self, network: Original, given: Array) -> list[Array]:
        """The planes (K, h, w), and the scores that a class map was decided by, where those are known."""
        name = self.reading.output
        found = network.run(self.reading.input, given, [name, *self._deciding.tensors])
        planes = reading.planes(found[name], self.reading)
        if planes.dtype.kind == "f" and not np.isfinite(planes).all():
            where = original.first_not_finite(self._path, self.reading.input, given)
            raise GateFailedError(
                f"the output of {self._path} is not finite (NaN or infinite), from the node {where!r} on.",
                "Check the preprocessing, or take another file: the network computes no numbers.",
            )
        return [planes, *(found[tensor] for tensor in self._deciding.tensors)]

    def _of_values(self, plain: list[Array], optimised: list[Array]) -> tuple[metrics.ClassMap, Mask]:
        """A class map shows no margin; the scores in front of it do, else what the two runs draw otherwise is a tie."""
        drawn, other = (reading.from_values(found[0][0], self.reading.values) for found in (plain, optimised))
        tied = drawn != other
        if len(plain) > 1:
            scores, others = (self._deciding.scores(found[1:]) for found in (plain, optimised))
            found = near_ties(scores, others, axis=self._deciding.axis)
            tied |= found.reshape(tied.shape) if found.size == tied.size else False
        rows, columns = reading.nearest(len(drawn), self.spec.height), reading.nearest(drawn.shape[1], self.spec.width)
        return drawn[rows][:, columns], tied[rows][:, columns]


@dataclasses.dataclass(frozen=True, slots=True)
class _Deciding:
    """The tensors that the classes of a class map are decided by: scores along `axis`, or two to be compared."""

    tensors: tuple[str, ...] = ()
    axis: int = 0

    def scores(self, found: Sequence[Array]) -> Array:
        return found[0] if len(found) == 1 else np.stack(np.broadcast_arrays(*found))


def _with_scores(path: Path, how: GraphReading) -> tuple[onnx.ModelProto, _Deciding]:
    """The original, the scores behind its class map as further outputs."""
    model = foreign.read(path)
    node = outputs.maker_of(model, how.output) if how.kind == "class map" else None
    made = {name for each in model.graph.node for name in each.output} | {each.name for each in model.graph.initializer}
    if node is None or not (node.op_type == "ArgMax" or node.op_type in COMPARING):
        return model, _Deciding()
    deciding = _Deciding(tuple(node.input), attribute(node, "axis", 0) if node.op_type == "ArgMax" else 0)
    known = {value.name for value in model.graph.output}
    if not made.issuperset(deciding.tensors):
        return model, _Deciding()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in deciding.tensors if name not in known)
    return model, deciding
