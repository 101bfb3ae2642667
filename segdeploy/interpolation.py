"""Bilinear interpolation along one axis, as a matrix: what enlarges logits in a graph and in what it is proven by."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

AVERAGES = 2e-3  # how far from 1 the weights of an average may sum up to: half precision rounds each of them


def interpolation_matrix(inputs: int, outputs: int, *, align_corners: bool) -> NDArray[np.float64]:
    """(outputs, inputs): bilinear interpolation along one axis, as `nn.functional.interpolate` defines it."""
    position = np.arange(outputs, dtype=np.float64)
    if align_corners:
        source = position * ((inputs - 1) / (outputs - 1) if outputs > 1 else 0.0)
    else:
        source = np.maximum((position + 0.5) * inputs / outputs - 0.5, 0.0)
    lower = np.minimum(np.floor(source).astype(np.int64), inputs - 1)
    upper = np.minimum(lower + 1, inputs - 1)
    weight = source - lower
    matrix = np.zeros((outputs, inputs))
    rows = np.arange(outputs)
    np.add.at(matrix, (rows, lower), 1.0 - weight)
    np.add.at(matrix, (rows, upper), weight)
    return matrix


def averages(matrix: NDArray[Any], axis: int) -> bool:
    """Whether a constant matrix only averages: its weights, none below 0, sum up to 1 along the axis that is summed."""
    return bool((matrix >= 0).all() and (abs(matrix.sum(axis=axis, dtype=np.float64) - 1) < AVERAGES).all())
