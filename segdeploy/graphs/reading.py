"""What a foreign graph is given for an image, and what its output says: in NumPy, as graphs are held to it.

Scores that are smaller than the image are enlarged bilinearly (half-pixel centres) before the largest wins; a class map
that is smaller is enlarged by nearest neighbour.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.interpolation import interpolation_matrix
from segdeploy.origin import GraphReading, Preprocessing
from segdeploy.spec import MAX_CLASSES

GREY = (19595, 38470, 7471)  # of 65536, for R, G, B: what Pillow's `L` is; exact in float32
GREY_TOTAL = 65536
LARGEST = 255
SMALLEST_SPAN = 1.0  # of an image's values: one of a single value is not divided by zero
MOST_VALUE = 65535  # that a class map may hold
Array = NDArray[Any]


def as_given(image: NDArray[np.uint8], reading: GraphReading) -> Array:
    """(H, W, 3) RGB -> the input of the graph, one image: float64 arithmetic, then the input's type."""
    how = reading.preprocessing
    pixels = spread(channels_of(image, how.channels).astype(np.float64), how)
    return _placed((pixels * how.scale - np.array(how.mean)) / np.array(how.deviation), reading)


def as_rounded(image: NDArray[np.uint8], reading: GraphReading) -> Array:
    """The same in float32 all along, as a graph computes it: what the two differ by is rounding."""
    how = reading.preprocessing
    pixels = spread(channels_of(image, how.channels).astype(np.float32), how)
    mean, gain = (np.array(values, np.float32) for values in (centre(how), gains(how)))
    return _placed((pixels - mean) * gain, reading)


def centre(how: Preprocessing) -> NDArray[np.float64]:
    """(C,): the pixel that becomes zero."""
    return np.array(how.mean) / how.scale


def gains(how: Preprocessing) -> NDArray[np.float64]:
    """(C,): what a step of one pixel value becomes."""
    return how.scale / np.array(how.deviation)


def spread(pixels: Array, how: Preprocessing) -> Array:
    """An image's own values over 0 to 255, where that is how it is given."""
    if not how.stretched:
        return pixels
    low, high = pixels.min(), pixels.max()
    found: Array = (pixels - low) / max(high - low, pixels.dtype.type(SMALLEST_SPAN)) * pixels.dtype.type(LARGEST)
    return found


def _placed(pixels: Array, reading: GraphReading) -> Array:
    placed = pixels[None].transpose(["NHWC".index(axis) for axis in reading.layout])
    if reading.dtype == "uint8":
        return np.ascontiguousarray(np.round(placed).clip(0, LARGEST).astype(np.uint8))
    return np.ascontiguousarray(placed.astype(np.float32).astype(reading.dtype))


def channels_of(image: NDArray[np.uint8], channels: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB -> (H, W, C) in that order."""
    if channels == "grey":
        total = image.astype(np.int64) @ np.array(GREY) + GREY_TOTAL // 2
        grey: NDArray[np.uint8] = np.asarray(total // GREY_TOTAL, np.uint8)[..., None]
        return grey
    turned: NDArray[np.uint8] = image[..., ::-1]
    return turned if channels == "bgr" else image


def planes(output: Array, reading: GraphReading) -> Array:
    """The output for one image -> (K, h, w): scores, or one plane."""
    full = "".join(axis for axis in "NKHW" if axis not in reading.axes) + reading.axes
    whole = output.reshape((1,) * (len(full) - len(reading.axes)) + output.shape)
    found: Array = whole.transpose([full.index(axis) for axis in "NKHW"])[0]
    return found


def class_map(output: Array, reading: GraphReading, height: int, width: int) -> NDArray[np.uint8]:
    """The output for one image -> its class indices (height, width)."""
    found = planes(output, reading)
    if reading.kind == "class map":
        rows, columns = nearest(found.shape[1], height), nearest(found.shape[2], width)
        drawn: NDArray[np.uint8] = from_values(found[0], reading.values)[rows][:, columns]
        return drawn
    return np.asarray(scores_of(found, reading, height, width).argmax(axis=0), np.uint8)


def scores_of(found: Array, reading: GraphReading, height: int, width: int) -> NDArray[np.float64]:
    """(K, h, w) -> (K, height, width): what the largest of wins; the threshold as class 0 where there is one."""
    scores = enlarged(found, height, width)
    return scores if reading.threshold is None else with_background(scores, reading.threshold)


def enlarged(scores: Array, height: int, width: int) -> NDArray[np.float64]:
    """(K, h, w) -> (K, height, width) in float64."""
    found = scores.astype(np.float64)
    if found.shape[1:] == (height, width):
        return found
    rows = interpolation_matrix(found.shape[1], height, align_corners=False)
    columns = interpolation_matrix(found.shape[2], width, align_corners=False)
    return rows @ found @ columns.T


def nearest(inputs: int, outputs: int) -> NDArray[np.int64]:
    """(outputs,): which row or column of a smaller map each pixel takes; centre on centre, as Pillow does."""
    return ((2 * np.arange(outputs, dtype=np.int64) + 1) * inputs // (2 * outputs)).clip(0, inputs - 1)


def with_background(scores: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """(K, H, W) -> (K + 1, H, W): class 0 wins where none is above the threshold."""
    return np.concatenate([np.full_like(scores[:1], threshold), scores])


def from_values(found: Array, values: tuple[int, ...]) -> NDArray[np.uint8]:
    """(h, w) values of a class map -> class indices; what is no value of a class is that of the next lower one."""
    table = table_of(values)
    indices: NDArray[np.uint8] = table[np.clip(found, 0, MOST_VALUE).astype(np.int64).clip(0, table.size - 1)]
    return indices


def table_of(values: tuple[int, ...]) -> NDArray[np.uint8]:
    """The class index of every value from 0 to the largest of a class."""
    if not values:
        return np.arange(MAX_CLASSES, dtype=np.uint8)
    every = np.arange(max(values) + 1)
    order = np.argsort(values)
    places = np.searchsorted(np.array(values)[order], every, side="right") - 1
    table: NDArray[np.uint8] = order[places.clip(0)].astype(np.uint8)
    return table


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
