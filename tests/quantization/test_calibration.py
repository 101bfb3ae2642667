"""Ranges of activations: exact extremes, honest histograms, four methods, and TensorRT's old caches."""

import math
import struct
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.precision import int8
from segdeploy.quantization import calibration
from segdeploy.quantization.calibration import BINS, Ranges, by_entropy, by_mse, by_percentile

SIZE = (202, 302)
FILLED = st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 10**9), min_size=1)  # bins and their counts
LARGEST = st.floats(1e-6, 1e6)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Two convolutions with pooling and a concatenation of both signs before the second."""
    found = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (uint8[N, {SIZE[0]}, {SIZE[1]}, 3] images) => (int64[N, H, W] class_map) {{
            cast = Cast<to = 1>(images)
            x = Transpose<perm = [0, 3, 1, 2]>(cast)
            c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
            r = Relu(c)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            s = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
            t = Concat<axis = 1>(p, s)
            y = Conv(t, v)
            class_map = ArgMax<axis = 1, keepdims = 0>(y)
        }}
    """)
    values = np.random.default_rng(1)
    for name, shape in {"w": (4, 3, 3, 3), "v": (2, 8, 1, 1)}.items():
        found.graph.initializer.append(numpy_helper.from_array(values.normal(size=shape).astype(np.float32), name))
    for node in found.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(found, strict_mode=True)


def batches() -> list[NDArray[np.uint8]]:
    """Three, of one to three images, the later ones brighter."""
    values = np.random.default_rng(0)
    return [values.integers(0, 80 * count, (count, *SIZE, 3), dtype=np.uint8) for count in (1, 2, 3)]


def activations(model: onnx.ModelProto, names: list[str]) -> dict[str, NDArray[np.float32]]:
    """Whole tensors, as a session gives them."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(value for value in model.graph.value_info if value.name in names)
    session = onnxruntime.InferenceSession(shown.SerializeToString())
    found = [session.run(names, {"images": batch}) for batch in batches()]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}


NAMES = ["x", "c", "r", "p", "s", "t", "y"]


def test_extremes_are_those_of_every_value_and_zero(model: onnx.ModelProto) -> None:
    """Reduced inside the graph, over all images of all batches; padding and ReLU make zero a value of every tensor."""
    found = calibration.extremes(model, NAMES, batches)
    for name, values in activations(model, NAMES).items():
        low, high = found[name]
        assert low <= 0 <= high
        assert (low, high) == pytest.approx((min(0, values.min()), max(0, values.max())), rel=1e-5)


def test_histograms_count_every_value_or_every_few_rows_and_columns(model: onnx.ModelProto) -> None:
    """Odd steps: even ones would meet only one corner of every pooling window."""
    found = calibration.collect(model, NAMES, batches)
    for name, values in activations(model, NAMES).items():
        stride = math.ceil(math.sqrt(values[0].size / calibration.KEPT)) | 1
        kept = np.abs(values[:, :, ::stride, ::stride])
        low, high = found.extremes[name]
        expected = np.histogram(kept, BINS, (0, max(-low, high)))[0]
        assert found.histograms[name].sum() == pytest.approx(kept.size, abs=2)
        assert np.abs(np.cumsum(found.histograms[name]) - np.cumsum(expected)).max() <= 1e-3 * kept.size
    strides = dict.fromkeys("xcr", SIZE[0])
    assert found.histograms["x"].sum() < 6 * 3 * SIZE[0] * SIZE[1] / 2, strides
    assert found.histograms["y"].sum() == pytest.approx(6 * 2 * SIZE[0] * SIZE[1] / 4, abs=2)


def test_both_walks_report_every_batch(model: onnx.ModelProto) -> None:
    """A progress bar of twice the batches ends full."""
    done: list[None] = []
    calibration.collect(model, ["x"], batches, done=lambda: done.append(None))
    assert len(done) == 2 * len(batches())


def test_no_method_widens_a_range(model: onnx.ModelProto) -> None:
    """A value that no image had needs no steps; a tensor from 0 up stays so."""
    found = calibration.collect(model, ["r", "t"], batches)
    for method in calibration.METHODS:
        for name, (low, high) in found.by(method).items():
            exact_low, exact_high = found.extremes[name]
            assert exact_low <= low <= 0 < high <= exact_high
            assert (low == 0) == (name == "r")
    assert found.by("minmax") == found.extremes


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidRequestError, match="'kl'") as refused:
        Ranges({}, {}).by("kl")
    assert all(method in str(refused.value) for method in calibration.METHODS)


@pytest.mark.parametrize("method", calibration.METHODS)
def test_what_is_always_zero_has_a_range_of_nothing(method: str) -> None:
    """Its histogram is empty, and no method divides by it."""
    assert Ranges({"x": (0.0, 0.0)}, {"x": np.zeros(BINS, np.int64)}).by(method) == {"x": (0.0, 0.0)}


@given(filled=FILLED, largest=LARGEST)
def test_percentile_keeps_its_share_of_the_values_and_little_more(filled: dict[int, int], largest: float) -> None:
    """The bin at the threshold is the first with which the share is reached."""
    counts = np.zeros(BINS, np.int64)
    counts[list(filled)] = list(filled.values())
    threshold = by_percentile(counts, largest)
    assert 0 < threshold <= largest
    bins = round(threshold / largest * BINS)
    wanted = calibration.PERCENTILE / 100
    assert counts[:bins].sum() >= wanted * counts.sum() * (1 - 1e-12) > counts[: bins - 1].sum() * (1 - 1e-9)


@given(largest=LARGEST, power=st.integers(-8, 8))
def test_methods_follow_the_unit_of_the_values(largest: float, power: int) -> None:
    """The same histogram over a range twice as large has thresholds twice as large."""
    counts = np.histogram(np.random.default_rng(0).exponential(size=10_000), BINS)[0]
    for rule in (by_percentile, by_mse):
        assert rule(counts, largest * 2.0**power) == pytest.approx(rule(counts, largest) * 2.0**power)


def test_mse_clips_a_lone_outlier_and_keeps_a_full_range() -> None:
    """One value in a million is worth less than the steps of all others."""
    even = np.full(BINS, 1000)
    assert by_mse(even, 1.0) > 0.95
    lonely = np.where(np.arange(BINS) < BINS // 16, 10_000, 0)
    lonely[-1] = 1
    assert by_mse(lonely, 1.0) < 0.15
    assert by_percentile(lonely, 1.0) <= 1 / 16


def test_entropy_clips_a_long_tail_and_stays_in_range() -> None:
    """ONNX Runtime's own calibrator; a warning of its arithmetic would be an error here."""
    tail = np.histogram(np.random.default_rng(0).exponential(size=100_000), BINS)[0]
    assert 0 < by_entropy(tail, 3.0) < 3.0


@pytest.mark.parametrize("operator", ["Reciprocal", "Log"])
def test_infinite_activations_are_refused(operator: str) -> None:
    """The tensor is named: an engine would clip it and say nothing."""
    dead = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        dead (uint8[N, 1, 4, 4] images) => (float[N, 1, 4, 4] y) {{
            x = Cast<to = 1>(images)
            y = {operator}(x)
        }}
    """)
    batch = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)[..., ::-1]
    with pytest.raises(InvalidFileError, match=r"y: .*inf"):
        calibration.extremes(dead, ["x", "y"], lambda: [batch])


def test_a_nan_is_refused_wherever_it_stands() -> None:
    dead = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        dead (uint8[N, 1, 4, 4] images) => (float[N, 1, 4, 4] y) {
            x = Cast<to = 1>(images)
            l = Log(x)
            y = Sub(l, l)
        }
    """)
    batch = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)[..., ::-1]
    with pytest.raises(InvalidFileError):
        calibration.extremes(dead, ["y"], lambda: [batch])


HEADER = "TRT-8601-EntropyCalibration2"


def cache(scales: Mapping[str, float]) -> str:
    """As TensorRT writes it: the scale's bits as a big-endian float32."""
    lines = [f"{name}: {struct.pack('!f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join([HEADER, *lines, ""])


def test_a_cache_of_tensorrt_gives_the_ranges(model: onnx.ModelProto) -> None:
    """127 scales to each side; from 0 up behind a ReLU, and after pooling."""
    tensors = int8.tensors(model)
    scales = {name: 2.0**-index for index, name in enumerate(tensors)}
    found = calibration.from_cache(cache(scales), model, tensors)
    for name, scale in scales.items():
        assert found[name] == (0.0 if name in "rp" else -127 * scale, 127 * scale)
    (scale,) = struct.unpack("!f", bytes.fromhex("3c010a14"))
    assert calibration.from_cache(f"{HEADER}\nx: 3c010a14\n", model, ["x"])["x"] == (-127 * scale, 127 * scale)


def test_a_tensor_the_cache_lacks_takes_the_range_of_what_was_carried_to_it(model: onnx.ModelProto) -> None:
    """TensorRT fuses a Concat or a pooling away and has no line for it."""
    tensors = int8.tensors(model)
    scales = dict.fromkeys((name for name in tensors if name not in "pst"), 1.0) | {"r": 3.0, "c": 2.0}
    found = calibration.from_cache(cache(scales), model, tensors)
    assert (found["p"], found["s"], found["t"]) == ((0, 381), (-254, 254), (-254, 381))


def test_the_cache_of_another_network_is_refused_with_the_tensors_it_lacks(model: onnx.ModelProto) -> None:
    tensors = int8.tensors(model)
    with pytest.raises(InvalidFileError, match=rf"lacks {len(tensors)} of {len(tensors)} tensors: x, ") as refused:
        calibration.from_cache(cache({"input_0": 0.1}), model, tensors)
    assert "--calibrate" in str(refused.value)


@pytest.mark.parametrize(
    "line", ["x 3c010a14", "x: 3c010a", "x: 3c010a1414", "x: 0.0078", "x: scale", "x: 7fc00000", "x: 7f800000", "x:"]
)
def test_a_line_that_is_no_line_of_a_cache_is_refused(model: onnx.ModelProto, line: str) -> None:
    """Cut short, of another format, or no finite number; the line is shown."""
    with pytest.raises(InvalidFileError, match="x"):
        calibration.from_cache(f"{HEADER}\n{line}\n", model, ["x"])
