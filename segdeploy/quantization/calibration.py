"""Ranges of activations over real images: what every tensor that is quantised may be clipped to.

Two passes over the images. The first takes each tensor's exact extremes, reduced inside the graph; the second fills a
histogram of magnitudes from every few rows and columns. Neither brings a whole activation to the host, so memory does
not grow with the number of images.
"""

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import extras
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.graphs.graph import Graph, sides_of_one_image
from segdeploy.precision import Range

if TYPE_CHECKING:
    import onnx

METHODS = ("minmax", "percentile", "entropy", "mse")
REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")
BINS = 2048
KEPT = 2**16  # values of one tensor and image that go into its histogram, about
PERCENTILE = 99.99
THRESHOLDS = 128  # that `mse` tries, evenly spaced up to the largest value
IMAGE_RANK = 4
END = 2**31 - 1  # of an axis, whatever its length
LEVELS = 127  # magnitudes of a signed eight-bit value
Batch = NDArray[np.uint8]
Counts = NDArray[np.int64]
Walk = Callable[[], Iterable[Batch]]


@dataclasses.dataclass(frozen=True, slots=True)
class Ranges:
    """Each tensor's extremes, low <= 0 <= high, and its histogram of magnitudes from 0 to the larger extreme."""

    extremes: Mapping[str, Range]
    histograms: Mapping[str, Counts]

    def by(self, method: str) -> dict[str, Range]:
        """What a method clips each tensor to."""
        if method not in METHODS:
            raise InvalidRequestError(f"there is no calibration {method!r}.", f"Choose one of {', '.join(METHODS)}.")
        return {name: self._clipped(name, method) for name in self.extremes}

    def _clipped(self, name: str, method: str) -> Range:
        low, high = self.extremes[name]
        largest = max(-low, high)
        if method == "minmax" or largest == 0:
            return low, high
        rule = {"percentile": by_percentile, "entropy": by_entropy, "mse": by_mse}[method]
        threshold = rule(self.histograms[name], largest)
        return max(low, -threshold), min(high, threshold)


def collect(
    model: "onnx.ModelProto", tensors: Sequence[str], batches: Walk, *, done: Callable[[], None] = lambda: None
) -> Ranges:
    """`batches()` gives uint8 (N, H, W, 3) and is walked twice; `done` is called after every batch of both walks."""
    found = extremes(model, tensors, batches, done=done)
    return Ranges(found, _histograms(model, found, batches, done))


def extremes(
    model: "onnx.ModelProto", tensors: Sequence[str], batches: Walk, *, done: Callable[[], None] = lambda: None
) -> dict[str, Range]:
    """The least and the largest value of each tensor, and zero; one walk."""
    lows = dict.fromkeys(tensors, 0.0)
    highs = dict.fromkeys(tensors, 0.0)
    if not tensors:
        return {}
    session = _session(_reduced(model, tensors))
    for batch in batches():
        found = session.run(None, {"images": batch})
        for name, low, high, total in zip(tensors, found[::3], found[1::3], found[2::3], strict=True):
            _require_numbers(name, float(low), float(high), float(total))
            lows[name], highs[name] = min(lows[name], float(low)), max(highs[name], float(high))
        done()
    return {name: (lows[name], highs[name]) for name in tensors}


def _histograms(
    model: "onnx.ModelProto",
    found: Mapping[str, Range],
    batches: Walk,
    done: Callable[[], None],
) -> dict[str, Counts]:
    histograms = {name: np.zeros(BINS, np.int64) for name in found}
    if not found:
        return {}
    session = _session(_thinned(model, list(found)))
    for batch in batches():
        for name, values in zip(found, session.run(None, {"images": batch}), strict=True):
            low, high = found[name]
            if high > low:
                histograms[name] += np.histogram(np.abs(values), BINS, (0.0, max(-low, high)))[0]
        done()
    return histograms


def by_percentile(counts: Counts, largest: float) -> float:
    """The magnitude below which `PERCENTILE` of the values lie."""
    shares = np.cumsum(counts) / counts.sum()
    return largest * (int(np.searchsorted(shares, PERCENTILE / 100)) + 1) / BINS


def by_mse(counts: Counts, largest: float) -> float:
    """The threshold with the least squared error of clipping and rounding together."""
    magnitudes = largest * (np.arange(BINS) + 0.5) / BINS
    thresholds = largest * (np.arange(THRESHOLDS) + 1.0) / THRESHOLDS

    def error(threshold: float) -> float:
        step = threshold / LEVELS
        rounded = np.minimum(np.round(magnitudes / step), LEVELS) * step
        return float(counts @ np.square(rounded - magnitudes))

    return float(min(thresholds, key=error))


def by_entropy(counts: Counts, largest: float) -> float:
    """The threshold with the least Kullback-Leibler divergence, by ONNX Runtime's own calibrator."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    both_sides = np.concatenate([counts[::-1], counts])
    edges = np.linspace(-largest, largest, 2 * BINS + 1)
    collector = HistogramCollector("entropy", True, 2 * BINS, LEVELS + 1, PERCENTILE, "same")  # noqa: FBT003
    _, high = collector.get_entropy_threshold((both_sides, edges, -largest, largest), LEVELS + 1)
    return float(high)


def _reduced(model: "onnx.ModelProto", tensors: Sequence[str]) -> "onnx.ModelProto":
    """The graph with three outputs a tensor: its least and its largest value, and the sum, which no NaN escapes."""
    from onnx import helper

    graph = Graph(model)
    nodes = list(graph.nodes)
    for name in tensors:
        reduced = [(reduce, f"{name}/{reduce}") for reduce in REDUCTIONS]
        nodes += [helper.make_node(reduce, [name], [given], keepdims=0) for reduce, given in reduced]
    return _with_outputs(graph, nodes, [node.output[0] for node in nodes[-len(REDUCTIONS) * len(tensors) :]])


def _thinned(model: "onnx.ModelProto", tensors: Sequence[str]) -> "onnx.ModelProto":
    """The graph with every s-th row and column of each tensor as outputs; s is odd, pooling windows are even.

    Of a tensor that is no image, such as a transformer's (N, tokens, C), every s-th of the last axis but one.
    """
    from onnx import helper

    graph = Graph(model)
    sides_of = sides_of_one_image(graph)
    nodes = list(graph.nodes)
    for name in tensors:
        sides = sides_of[name]
        axes = [2, 3] if len(sides) == IMAGE_RANK else [max(len(sides) - 2, 0)]
        too_many = math.prod(sides) / KEPT
        stride = math.ceil(math.sqrt(too_many) if len(axes) > 1 else too_many) | 1
        wanted = {"from": [0] * len(axes), "to": [END] * len(axes), "axes": axes, "by": [stride] * len(axes)}
        for key, value in wanted.items():
            graph.set_value(f"{name}/thinned/{key}", np.array(value, np.int64))
        inputs = [name, *(f"{name}/thinned/{key}" for key in ("from", "to", "axes", "by"))]
        nodes.append(helper.make_node("Slice", inputs, [f"{name}/thinned"]))
    return _with_outputs(graph, nodes, [f"{name}/thinned" for name in tensors])


def _with_outputs(graph: Graph, nodes: Iterable["onnx.NodeProto"], outputs: Sequence[str]) -> "onnx.ModelProto":
    from onnx import TensorProto, helper

    graph.replace_nodes(nodes)
    del graph.model.graph.output[:]
    graph.model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    return graph.model


@extras.named_where_missing()
def _session(model: "onnx.ModelProto") -> Any:  # noqa: ANN401 - the module is lazy
    import onnxruntime as ort

    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _require_numbers(name: str, low: float, high: float, total: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or math.isnan(total):
        raise InvalidFileError(
            f"the network computes values that are no numbers ({name}: {low} to {high}).",
            "Check the checkpoint: segdeploy parity shows whether PyTorch computes the same.",
        )


def from_cache(text: str, model: "onnx.ModelProto", tensors: Sequence[str]) -> dict[str, Range]:
    """Ranges from a calibration cache of TensorRT: a line `name: hex` for each tensor, the scale as a float32.

    A cache knows no signs: what a ReLU gave is taken from 0 up. Raise InvalidFileError, with names, for a cache of
    another network.
    """
    scales = dict(_cache_line(line) for line in text.splitlines()[1:] if line.strip())
    graph = Graph(model)
    ranges: dict[str, Range] = {}
    for name in tensors:
        sources = [ranges[source] for source in graph.producer[name].input if source in ranges]
        if name in scales:
            largest = scales[name] * LEVELS
            ranges[name] = (0.0 if graph.is_positive(name) else -largest, largest)
        elif graph.carries(name) and sources:
            ranges[name] = min(low for low, _ in sources), max(high for _, high in sources)
    absent = [name for name in tensors if name not in ranges]
    if absent:
        raise InvalidFileError(
            f"the calibration cache lacks {len(absent)} of {len(tensors)} tensors: {', '.join(absent[:5])}.",
            "Give the cache of this very network, or images: --calibrate DIR",
        )
    return ranges


def _cache_line(line: str) -> tuple[str, float]:
    name, _, digits = line.rpartition(":")
    try:
        (scale,) = struct.unpack("!f", bytes.fromhex(digits.strip()))
    except (ValueError, struct.error) as error:
        raise InvalidFileError(
            f"{line!r} is no line of a TensorRT calibration cache (name: hex of a float32).", "Give the whole file."
        ) from error
    if not 0 <= scale < math.inf:
        raise InvalidFileError(f"the calibration cache gives {name} the scale {scale}.", "Give a cache that is whole.")
    return name.strip(), scale
