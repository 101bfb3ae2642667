"""What an output of a foreign graph is: an image of scores, of one channel, or a class map; or no mask at all."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InvalidRequestError
from segdeploy.graphs import foreign, reading
from segdeploy.graphs.foreign import IMAGE_RANK
from segdeploy.origin import GraphReading
from segdeploy.paths import shown
from segdeploy.spec import MAX_CLASSES

if TYPE_CHECKING:
    import onnx

PLANE_RANK, BARE_RANK = 3, 2
AXES = {
    IMAGE_RANK: ("NKHW", "NHWK", "KNHW", "KHWN", "HWKN", "HWNK"),
    PLANE_RANK: ("NHW", "KHW", "HWK", "HWN"),
    BARE_RANK: ("HW",),
}
COARSEST = 16  # image pixels a side to one of the output: what is coarser are features, not masks
COARSE = 4
LISTED = 12  # values in a sentence
PASSED = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Resize", "Upsample", "Slice", "Gather")
DECIDING = ("ArgMax", "ArgMin", "TopK", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Round", "Where")
INDEPENDENT = ("Sigmoid", "HardSigmoid")  # of several channels: none, one or all of them may be high
SQUASHING = ("Sigmoid", "HardSigmoid", "Softmax", "Clip")
LINEAR = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "BatchNormalization", "Concat")
Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What the user says of a graph; None leaves it to be found.

    `classes`: how many. `values`: of a class map, the value of each class. `threshold`: of one channel, in 0..1.
    """

    size: tuple[int, int] | None = None
    output: str | None = None
    threshold: float = 0.5
    classes: int | None = None
    values: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """An output that may be a mask: the names of its axes, its channels, and pixels of the image to one of its own."""

    name: str
    axes: str
    channels: int
    stride: float


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How the values of an output are read, and how many classes they tell apart; `notes`: what is worth saying."""

    reading: GraphReading
    classes: int
    notes: tuple[str, ...] = ()


def best(path: Path, outputs: Arrays, size: tuple[int, int], wish: Wish, *, prefer: str) -> Seen:
    """The output that is most likely the mask: the finest one, the first of equals."""
    if wish.output is not None and wish.output not in outputs:
        known = ", ".join(map(shown, outputs))
        raise InvalidRequestError(f"{shown(path)} has no output {shown(wish.output)}.", f"Choose one of {known}.")
    named = outputs if wish.output is None else {wish.output: outputs[wish.output]}
    masks = [seen for name, array in named.items() if (seen := _as_mask(name, array, size, wish, prefer)) is not None]
    shapes = ", ".join(f"{shown(name)} {list(array.shape)}" for name, array in list(named.items())[:4])
    if not masks:
        raise foreign.refused(path, f"is no segmentation: no output is an image of classes ({shapes})")
    finest = min(masks, key=lambda seen: seen.stride)
    if wish.output is None:
        _require_alone(path, outputs, masks, shapes)
    if finest.channels > MAX_CLASSES:
        raise foreign.refused(path, f"gives {finest.channels} values for a pixel: features, no classes")
    if finest.stride > COARSEST:
        raise foreign.refused(
            path, f"gives one value for {finest.stride:.0f}x{finest.stride:.0f} pixels: features, no masks"
        )
    return finest


def _require_alone(path: Path, outputs: Arrays, masks: Sequence[Seen], shapes: str) -> None:
    """Boxes beside masks, and grids of several widths, are another task; who names the output knows better."""
    anyway = "Give a segmentation network, or name the output that is its mask: --output-name NAME"
    others = [name for name, array in outputs.items() if array.ndim > 1 and name not in {each.name for each in masks}]
    if others:
        raise foreign.refused(path, f"also gives what is no mask (boxes, another task): {shapes}", anyway)
    strides = {round(seen.stride) for seen in masks}
    if len(strides) > 1 and min(strides) >= COARSE:
        raise foreign.refused(path, f"gives grids of several widths, as detectors do: {shapes}", anyway)


def _as_mask(name: str, array: NDArray[Any], size: tuple[int, int], wish: Wish, prefer: str) -> Seen | None:
    """An output as an image of classes; None where no order of its axes makes it one."""
    found = []
    for order, axes in enumerate(AXES.get(array.ndim, ())):
        height, width, channels, count = (_side(axes, array.shape, axis) for axis in "HWKN")
        is_bare = "K" in axes and "N" not in axes
        if count != 1 or not _is_image(height, width, size) or (is_bare and channels == 1):
            continue
        stride = max(size[0] / height, size[1] / width)
        unlike = axes.replace("K", "C") != prefer
        found.append(
            ((channels not in {wish.classes, 1}, stride, channels > MAX_CLASSES, unlike, order), axes, channels, stride)
        )
    if not found:
        return None
    _, axes, channels, stride = min(found)
    return Seen(name, axes, channels, stride)


def _side(axes: str, shape: Sequence[int], axis: str) -> int:
    return shape[axes.index(axis)] if axis in axes else 1


def _is_image(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether sides are those of the image, or in the same ratio and no larger than twice of it."""
    in_ratio = abs(height - size[0] * width / size[1]) <= 1 and abs(width - size[1] * height / size[0]) <= 1
    return in_ratio and 1 < height <= 2 * size[0] and 1 < width <= 2 * size[1]


# What the values of an output are


def kind_of(
    path: Path, model: "onnx.ModelProto", how: GraphReading, planes: Sequence[NDArray[Any]], wish: Wish
) -> Kind:
    """What the values (K, h, w) of an output say, of several images."""
    node = maker_of(model, how.output)
    maker, channels = "" if node is None else node.op_type, planes[0].shape[0]
    is_float = planes[0].dtype.kind == "f"
    if channels > 1:
        if not is_float:
            raise foreign.refused(path, f"gives {planes[0].dtype} in {channels} channels: neither scores nor classes")
        if maker in INDEPENDENT:
            return _independent(path, how, channels, wish)
        _require_count(path, wish.classes, channels)
        return Kind(how, channels)
    if not is_float or maker in DECIDING or _are_whole(planes, maker):
        classes, values = _values(path, planes, wish)
        return Kind(dataclasses.replace(how, kind="class map", values=values), classes)
    _require_count(path, wish.classes, 2)
    is_probability = maker in SQUASHING or (maker not in LINEAR and all(_are_shares(plane) for plane in planes))
    threshold = wish.threshold if is_probability else reading.logit(wish.threshold)
    note = f"one channel of {'probabilities' if is_probability else 'logits'}: class 1 above {threshold:g}"
    return Kind(dataclasses.replace(how, kind="one channel", threshold=threshold), 2, (note,))


def _independent(path: Path, how: GraphReading, channels: int, wish: Wish) -> Kind:
    """Several probabilities that do not add up to one: whether the background has a channel is for the user to say."""
    if wish.classes == channels:
        return Kind(how, channels, (f"{channels} probabilities of their own: the largest wins, however small it is",))
    if wish.classes == channels + 1:
        several = dataclasses.replace(how, kind="several channels", threshold=wish.threshold)
        note = f"{channels} probabilities of their own: class 0 where none is above {wish.threshold:g}"
        return Kind(several, channels + 1, (note,))
    raise InvalidRequestError(
        f"{shown(path)} gives {channels} probabilities of their own (a sigmoid), and not which is the background.",
        f"Give --classes {channels + 1} if it is what none of them is, --classes {channels} if it is one of them.",
    )


def maker_of(model: "onnx.ModelProto", tensor: str) -> "onnx.NodeProto | None":
    """The node that decides the values of an output, past those that only move or retype them."""
    producer = {name: node for node in model.graph.node for name in node.output}
    while tensor in producer and producer[tensor].op_type in PASSED:
        tensor = producer[tensor].input[0]
    return producer.get(tensor)


def _are_whole(found: Sequence[NDArray[Any]], maker: str) -> bool:
    """Whether all values are whole numbers; what squashes gives 0 and 1 too, where it is sure."""
    return maker not in SQUASHING and all(np.array_equal(plane, np.round(plane)) for plane in found)


def _are_shares(plane: NDArray[Any]) -> bool:
    return bool(plane.min() >= 0 and plane.max() <= 1)


def _require_count(path: Path, asked: int | None, own: int) -> None:
    if asked not in {None, own}:
        raise InvalidRequestError(f"{shown(path)} tells {own} classes apart, not {asked}.", f"Name {own}: --classes")


def _values(path: Path, found: Sequence[NDArray[Any]], wish: Wish) -> tuple[int, tuple[int, ...]]:
    """How many classes a class map has, and the value of each where those are no indices."""
    seen = sorted({int(value) for plane in found for value in np.unique(plane)})
    if seen[0] < 0 or seen[-1] > reading.MOST_VALUE:
        raise foreign.refused(path, f"gives values from {seen[0]} to {seen[-1]}: no class map")
    if wish.values:
        _require_count(path, wish.classes, len(wish.values))
        return len(wish.values), wish.values
    if wish.classes is None:
        raise InvalidRequestError(
            f"{shown(path)} gives a class map, and not how many classes there are (seen: {_listed(seen)}).",
            "Give --classes NAMES, FILE or COUNT; where the values are no indices, --class-values 0,255",
        )
    if seen[-1] < wish.classes:
        return wish.classes, ()
    if len(seen) == wish.classes:
        return wish.classes, tuple(seen)
    raise InvalidRequestError(
        f"{shown(path)} gives the values {_listed(seen)}, which are no indices of {wish.classes} classes.",
        "Say which value each class has: --class-values 0,255",
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:LISTED])) + (", ..." if len(values) > LISTED else "")
