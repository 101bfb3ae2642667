"""What a file in `precision/` defines: how a float32 graph becomes one of another type."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from segdeploy.low_precision import Budget
from segdeploy.spec import Precision

if TYPE_CHECKING:
    import onnx

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """The relative RMS errors that rounding explains: of what a layer computes, and of what stands between two."""

    layer: float
    between: float


@dataclasses.dataclass(frozen=True, slots=True)
class Layers:
    """The layers that may be of low precision, by the name of their node.

    `work`: multiply-adds of one image. `in_float`: those that stay in float32 whatever it costs, and why.
    """

    work: Mapping[str, int]
    in_float: Mapping[str, str]


class PrecisionModule(Protocol):
    """`FORMS`: how a graph may be spelled, by which runtimes differ; empty where all take the same one.

    `METHOD`: how the ranges of activations are clipped by default; None where only their extremes are asked for.
    `TOLERANCE`: what `parity --bisect` allows. `LEAST_COMPUTE_CAPABILITY`: of the GPUs that compute in it, such as 8.9;
    None where all that TensorRT knows do.
    """

    PRECISION: Precision
    FORMS: tuple[str, ...]
    BUDGET: Budget
    METHOD: str | None
    TOLERANCE: Tolerance
    LEAST_COMPUTE_CAPABILITY: str | None

    def tensors(self, model: "onnx.ModelProto") -> list[str]:
        """The activations whose ranges `convert` needs."""

    def layers(self, model: "onnx.ModelProto", ranges: Mapping[str, Range]) -> Layers:
        """What may be of low precision in a float32 graph, and what may not."""

    def convert(
        self,
        model: "onnx.ModelProto",
        ranges: Mapping[str, Range],
        *,
        form: str | None,
        in_float: Collection[str] = (),
    ) -> "onnx.ModelProto":
        """The float32 graph in this precision, but for the layers that `in_float` names."""

    def executable(self, model: "onnx.ModelProto") -> "onnx.ModelProto":
        """A converted graph, spelled so that ONNX Runtime on a CPU rounds exactly where the graph says so."""
