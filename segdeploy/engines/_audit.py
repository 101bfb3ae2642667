"""What a strongly typed network asks for, layer by layer, and what the compiled engine really does."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segdeploy.engines._plan_build import Trt
from segdeploy.interpolation import averages
from segdeploy.low_precision import Executed
from segdeploy.spec import Precision

TOLERATED = 0.1  # what ENOUGH leaves, which floating point would not give
QUANTIZED = {  # by TensorRT's name of the type
    "FP8": Precision.FP8,
    "INT8": Precision.INT8,
}
COPIES = {"Constant", "NoOp", "Reformat"}  # carry the marks of the layer they serve


@dataclasses.dataclass(frozen=True, slots=True)
class Typed:
    """The layers of a network that multiply: their multiply-adds for one image, and the type each computes in.

    As in `graphs.graph`: convolutions, and matrix products that do more than average.

    `layers`: how many layers of any kind give each type.
    """

    work: Mapping[str, int]
    types: Mapping[str, Precision]
    layers: Mapping[str, int]

    def shares(self) -> dict[str, float]:
        """The share of the work that each type has."""
        total = sum(self.work.values())
        by_type: Counter[str] = Counter()
        for layer, kind in self.types.items():
            by_type[kind.value] += self.work[layer]
        return {kind: work / total for kind, work in sorted(by_type.items())}

    def asked_for(self, precision: Precision) -> list[str]:
        return [layer for layer, kind in self.types.items() if kind is precision]


def typed(trt: Trt, network: Trt) -> Typed:
    """Read a parsed network: in a strongly typed one the builder may change no type that stands there."""
    images = network.get_input(0)
    batch, *sides = images.shape
    images.shape = (1, *sides)  # every shape is that of one image
    try:
        return _typed(trt, [network.get_layer(index) for index in range(network.num_layers)])
    finally:
        images.shape = (batch, *sides)


def _typed(trt: Trt, layers: Sequence[Trt]) -> Typed:
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    work: dict[str, int] = {}
    types: dict[str, Precision] = {}
    kind = {trt.LayerType.CONVOLUTION: trt.IConvolutionLayer, trt.LayerType.DECONVOLUTION: trt.IDeconvolutionLayer}
    for layer in layers:
        if layer.type in kind:
            transposed = layer.type == trt.LayerType.DECONVOLUTION
            layer.__class__ = kind[layer.type]  # how the binding gives a layer its own attributes
            work[layer.name] = _multiply_adds(layer, transposed=transposed)
        elif layer.type == trt.LayerType.MATRIX_MULTIPLY and not _averages(trt, layer, producers):
            layer.__class__ = trt.IMatrixMultiplyLayer
            common = -2 if layer.op0 == trt.MatrixOperation.TRANSPOSE else -1
            work[layer.name] = math.prod([*layer.get_output(0).shape, layer.get_input(0).shape[common]])
        else:
            continue
        types[layer.name] = _computes_in(trt, layer, producers)
    given = (layer.get_output(i) for layer in layers for i in range(layer.num_outputs))
    counted = Counter(_type_name(tensor.dtype) for tensor in given)
    return Typed(work, types, dict(sorted(counted.items())))


def _averages(trt: Trt, product: Trt, producers: Mapping[str, Any]) -> bool:
    """Whether one side of a matrix product is a constant that only averages, as pooling and up-sampling do."""
    found = []
    for index in range(2):
        maker = producers.get(product.get_input(index).name)
        while maker is not None and maker.type in {trt.LayerType.SHUFFLE, trt.LayerType.CAST}:
            maker = producers.get(maker.get_input(0).name)
        if maker is not None and maker.type == trt.LayerType.CONSTANT:
            maker.__class__ = trt.IConstantLayer
            found.append((index, np.asarray(maker.weights).reshape(tuple(maker.shape))))
    if len(found) != 1:
        return False
    index, matrix = found[0]
    return matrix.ndim == 2 and averages(matrix, axis=1 - index)  # noqa: PLR2004 - a matrix


def _computes_in(trt: Trt, layer: Trt, producers: Mapping[str, Any]) -> Precision:
    """A quantized type where every operand is what a DequantizeLinear makes of it; else the type of the input."""
    operands = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
    makers = [producers.get(operand.name) for operand in operands]
    quantized = {
        maker.get_input(0).dtype.name if maker is not None and maker.type == trt.LayerType.DEQUANTIZE else None
        for maker in makers
    }
    if len(quantized) == 1 and (name := quantized.pop()) in QUANTIZED:
        return QUANTIZED[name]
    return Precision.FP16 if operands[0].dtype == trt.DataType.HALF else Precision.FP32


def _multiply_adds(layer: Trt, *, transposed: bool) -> int:
    """Every weight of a convolution meets every place of its output (of a transposed one, of its input) once."""
    given, made = tuple(layer.get_input(0).shape), tuple(layer.get_output(0).shape)
    places = given[2:] if transposed else made[2:]
    weights = given[1] // layer.num_groups * made[1] * math.prod(layer.kernel_size_nd)
    return int(weights * math.prod(places))


def _type_name(dtype: Trt) -> str:
    names = {"FLOAT": "fp32", "HALF": "fp16"}
    return names.get(dtype.name, str(dtype.name).lower())


def inspected(text: str, asked: Collection[str]) -> dict[str, Precision | None]:
    """What the inspector's JSON (of TensorRT 10 or 11) says of the ONNX layers `asked`: the type its first input has.

    None where it does not say: several layers were fused into one, and one type does not speak for all of them.
    """
    found: dict[str, Precision | None] = {}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, Mapping) and layer.get("LayerType") not in COPIES:
            names = list(_onnx_names(layer))
            multiplying = [name for name in names if name in asked]
            kind = _input_type(layer) if len(multiplying) == 1 else None
            for name in multiplying:
                found[name] = kind if found.get(name, kind) is kind else None
    return found


def layers(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By layer of the engine, as the inspector's JSON has it: the kind, and the ONNX layers that it does or serves."""
    named = [layer for layer in json.loads(text).get("Layers", []) if isinstance(layer, Mapping) and "Name" in layer]
    return {layer["Name"]: (str(layer.get("LayerType", "Layer")), tuple(_onnx_names(layer))) for layer in named}


def _onnx_names(layer: Mapping[str, Any]) -> Iterator[str]:
    marked = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", "")))
    yield from dict.fromkeys(marked or str(layer.get("Name", "")).split(" + "))


def _input_type(layer: Mapping[str, Any]) -> Precision | None:
    inputs = layer.get("Inputs") or [{}]
    first = inputs[0] if isinstance(inputs[0], Mapping) else {}
    # TensorRT 10 says both in one field ("Row major linear FP16 format"), 11 each in its own.
    said = str(first.get("Format/Datatype") or first.get("DataType") or first.get("Datatype") or "").lower()
    if not said or "dynamic shapes" in said:  # TensorRT 10, of every batch that is not fixed
        said = str((layer.get("Weights") or {}).get("Type", "")).lower()
    spellings = {
        **{kind: rf"\b{name.lower()}\b" for name, kind in QUANTIZED.items()},
        Precision.FP16: r"\b(fp16|float16|half)\b",
        Precision.FP32: r"\b(fp32|float32|float)\b",
    }
    return next((kind for kind, words in spellings.items() if re.search(words, said)), None)


def executed(asked: Typed, precision: Precision, found: Mapping[str, Precision | None] | None) -> Executed:
    """What an engine computes of the work that the network gives to a low precision.

    `found`: the type of each layer, None for a layer the inspector says nothing of; None where it could not be asked.
    """
    if precision is Precision.FP32:
        return Executed(delivered=Precision.FP32, delivered_share=1.0)
    nothing = Executed(delivered=None, delivered_share=None)
    if found is None:
        reason = "an engine is inspected on a GPU of its own kind, and there is none here"
        return dataclasses.replace(nothing, reason=reason)
    layers = asked.asked_for(precision)
    if not layers:
        return dataclasses.replace(nothing, reason=f"the graph has no layer in {precision}")
    total = sum(asked.work[layer] for layer in layers) or 1
    wider = [layer for layer in layers if found.get(layer) not in {None, precision}]
    unknown = [layer for layer in layers if found.get(layer) is None]
    wide_share, unknown_share = (sum(asked.work[layer] for layer in some) / total for some in (wider, unknown))
    wider.sort(key=lambda layer: -asked.work[layer])
    if wide_share <= TOLERATED < wide_share + unknown_share:
        reason = f"the inspector does not say it of {unknown_share:.1%} of the work"
        return dataclasses.replace(nothing, wider=tuple(wider), reason=reason)
    kind = precision if wide_share <= TOLERATED else Precision.FP32
    return Executed(delivered=kind, delivered_share=1 - wide_share - unknown_share, wider=tuple(wider))
