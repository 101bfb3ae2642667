"""What masks are compared with."""

import hashlib
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy import metrics
from segdeploy.spec import Spec

Mask = NDArray[np.bool_]
LARGEST_TIE = 1e-3  # of the logits' range: however rough the arithmetic, a wider margin is no tie
KEPT_BYTES = 2**28  # of class maps and near-ties


class Reference(Protocol):
    """What a proof needs to know of the network that is right by definition; `spec` is its contract.

    `kind` is what a certificate calls it.
    """

    @property
    def kind(self) -> Literal["PyTorch", "ONNX Runtime", "proof kit"]: ...

    @property
    def spec(self) -> Spec: ...

    def class_map(self, image: NDArray[np.uint8], /) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) at network size -> the class map (H', W') and which of its pixels are near-ties."""

    def pool_ties(self, image: NDArray[np.uint8], /) -> Mask:
        """(H, W, 3) -> (H', W'): pixels within reach of a pooling window whose maximum float32 cannot decide."""


class Drawn:
    """Masks and their near-ties by the images they are of, as far as memory goes: a budget asks again."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[metrics.ClassMap, Mask]] = {}

    def of(
        self, image: NDArray[np.uint8], draw: Callable[[NDArray[np.uint8]], tuple[metrics.ClassMap, Mask]]
    ) -> tuple[metrics.ClassMap, Mask]:
        key = hashlib.sha256(image.tobytes()).digest()
        if key not in self._seen:
            seen = draw(image)
            if len(self._seen) * 2 * seen[0].size > KEPT_BYTES:
                return seen
            self._seen[key] = seen
        return self._seen[key]


def near_ties(scores: NDArray[np.floating], others: NDArray[np.floating], *, axis: int = 0) -> Mask:
    """Scores in two arithmetics -> where the two best along `axis` differ by less than the arithmetic does.

    The margin is twice the largest difference between the two, and never above a thousandth of the scores' range.
    """
    if scores.shape[axis] == 1:
        return np.zeros(np.delete(scores.shape, axis), bool)
    error = float(np.abs(scores.astype(np.float64) - others).max(initial=0))
    margin = min(2 * error, LARGEST_TIE * float(scores.max() - scores.min()))
    best = np.sort(np.partition(scores, -2, axis=axis).take([-2, -1], axis=axis), axis=axis)
    tied: Mask = (best.take(1, axis=axis) - best.take(0, axis=axis)) < margin
    return tied
