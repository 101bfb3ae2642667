"""SegNet and SegNet-Basic of the authors' Caffe code, their blobs as arrays of an `.npz`.

An array is named `LAYER.0` and `LAYER.1` for the two blobs of a layer (also with `/`, `_` or `:` between). The
statistics of a norm are folded into its scale and shift, as the authors' inference networks have them. BGR, 0..255.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.checkpoints.families._base import Change, Reading
from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights

TITLE = "Caffe's SegNet"
ENCODER = (2, 2, 3, 3, 3)  # convolutions of each stage
BASIC_STAGES = 4
NARROWEST = 64
EPSILON = 1e-5  # of PyTorch's norm: with a variance of 1 - EPSILON it divides by one
_BLOB = re.compile(r"^(?P<layer>.+?)[./:_](?P<blob>[01])$")


def recognises(tensors: Mapping[str, Stored]) -> bool:
    layers = {layer for layer, _ in _blobs(tensors)}
    return {"conv1_1", "conv1_1_bn", "conv1_1_D"} <= layers or {"conv1", "conv1_bn", "conv_decode1"} <= layers


def read(weights: Weights) -> Reading:
    blobs = _blobs(weights.tensors)
    is_basic = ("conv_decode1", 0) in blobs
    layers = _basic_layers() if is_basic else _layers()
    first = "conv1" if is_basic else "conv1_1"
    classifier = "conv_classifier" if is_basic else "conv1_1_D"
    if is_basic and (classifier, 0) not in blobs:
        classifier = "dense_softmax_inner_prod"
    changes = _blobs_of("classifier", classifier, blobs)
    for ours, layer in layers.items():
        changes |= _blobs_of(f"{ours}.conv", layer, blobs) | _folded_norm(f"{ours}.norm", f"{layer}_bn", blobs)
    begin = changes["encoder.0.conv.weight" if is_basic else "encoder.0.0.conv.weight"]
    changes["encoder.0.conv.weight" if is_basic else "encoder.0.0.conv.weight"] = Change(begin.sources, _flipped)
    width = weights.tensors[blobs[first, 0]].shape[0]
    return Reading(
        fits=("segnet",),
        variant={
            **({"form": "basic"} if is_basic else {}),
            **({} if width == NARROWEST else {"multiplier": width / NARROWEST}),
        },
        modules={},
        count=weights.tensors[blobs[classifier, 0]].shape[0],
        changes=changes,
        assumed={"ceil_mode": True},
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        size=(360, 480),
    )


def _blobs(tensors: Mapping[str, Stored]) -> dict[tuple[str, int], str]:
    """The name of each blob in the file, by its layer and its place."""
    found = [(name, _BLOB.match(name)) for name in tensors]
    return {(match["layer"], int(match["blob"])): name for name, match in found if match is not None}


def _layers() -> dict[str, str]:
    """Our `ConvNorm` to the Caffe layer; the decoder is numbered downwards, and its last layer is the classifier."""
    encoder = {
        f"encoder.{stage}.{place}": f"conv{stage + 1}_{place + 1}"
        for stage, count in enumerate(ENCODER)
        for place in range(count)
    }
    decoder = {
        f"decoder.{len(ENCODER) - 1 - stage}.{count - 1 - place}": f"conv{stage + 1}_{place + 1}_D"
        for stage, count in enumerate(ENCODER)
        for place in range(count)
        if (stage, place) != (0, 0)
    }
    return {**encoder, **decoder}


def _basic_layers() -> dict[str, str]:
    encoder = {f"encoder.{stage}": f"conv{stage + 1}" for stage in range(BASIC_STAGES)}
    return {**encoder, **{f"decoder.{stage}": f"conv_decode{BASIC_STAGES - stage}" for stage in range(BASIC_STAGES)}}


def _blobs_of(ours: str, layer: str, blobs: Mapping[tuple[str, int], str]) -> dict[str, Change]:
    """Weight and bias of a convolution; the Basic network of the paper has no biases."""
    weight, bias = _source(layer, 0, blobs), blobs.get((layer, 1))
    bias_of = Change((weight,), _zeros) if bias is None else Change((bias,), np.ravel)
    return {f"{ours}.weight": Change((weight,), _same), f"{ours}.bias": bias_of}


def _folded_norm(ours: str, layer: str, blobs: Mapping[tuple[str, int], str]) -> dict[str, Change]:
    scale, shift = _source(layer, 0, blobs), _source(layer, 1, blobs)
    return {
        f"{ours}.weight": Change((scale,), np.ravel),
        f"{ours}.bias": Change((shift,), np.ravel),
        f"{ours}.running_mean": Change((scale,), lambda blob: np.zeros(blob.size)),
        f"{ours}.running_var": Change((scale,), lambda blob: np.full(blob.size, 1 - EPSILON)),
    }


def _source(layer: str, blob: int, blobs: Mapping[tuple[str, int], str]) -> str:
    return blobs.get((layer, blob), f"{layer}.{blob}")


def _same(blob: NDArray[Any]) -> NDArray[Any]:
    return blob


def _zeros(weight: NDArray[Any]) -> NDArray[Any]:
    return np.zeros(weight.shape[0])


def _flipped(weight: NDArray[Any]) -> NDArray[Any]:
    """BGR to RGB."""
    return weight[:, ::-1]
