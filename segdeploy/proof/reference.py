"""What masks are compared with."""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy import metrics
from segdeploy.spec import Spec

Mask = NDArray[np.bool_]


class Reference(Protocol):
    """What a proof needs to know of the network that is right by definition; `spec` is its contract.

    `kind` is what a certificate calls it.
    """

    @property
    def kind(self) -> Literal["PyTorch", "proof kit"]: ...

    @property
    def spec(self) -> Spec: ...

    def class_map(self, image: NDArray[np.uint8], /) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) at network size -> the class map (H', W') and which of its pixels are near-ties."""

    def pool_ties(self, image: NDArray[np.uint8], /) -> Mask:
        """(H, W, 3) -> (H', W'): pixels within reach of a pooling window whose maximum float32 cannot decide."""
