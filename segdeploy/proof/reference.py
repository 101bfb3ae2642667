"""What masks are compared with, and which of its own pixels it cannot decide."""

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segdeploy import metrics, models
from segdeploy.blocks import MaxPoolWithIndices, Network, space_to_depth
from segdeploy.spec import Spec

LARGEST_TIE = 1e-3  # of the logits' range: however rough the arithmetic, a wider margin is no tie
KEPT_BYTES = 2**28  # of class maps and near-ties
Mask = NDArray[np.bool_]


class Reference(Protocol):
    """What a proof needs to know of the network that is right by definition; `spec` is its contract."""

    @property
    def spec(self) -> Spec: ...

    def class_map(self, image: NDArray[np.uint8], /) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) at network size -> the class map (H', W') and which of its pixels are near-ties."""

    def pool_ties(self, image: NDArray[np.uint8], /) -> Mask:
        """(H, W, 3) -> (H', W'): pixels within reach of a pooling window whose maximum float32 cannot decide."""


class TorchReference:
    """The network in PyTorch, in float32 as it was trained and in float64 to know what float32 cannot decide."""

    def __init__(self, network: Network, spec: Spec) -> None:
        logits = dataclasses.replace(spec, output="logits")
        self.spec = spec
        self.network = network
        self._seen: dict[bytes, tuple[metrics.ClassMap, Mask]] = {}
        self.single = models.deployed(network, logits).eval()
        self.double = models.deployed(copy.deepcopy(network), logits).double().eval()

    def class_map(self, image: NDArray[np.uint8]) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) -> the class map and which of its pixels are near-ties; kept, for a budget asks again."""
        key = hashlib.sha256(image.tobytes()).digest()
        if key not in self._seen:
            logits, exact = self._logits(image)
            seen = logits.argmax(dim=0).to(torch.uint8).numpy(), near_ties(logits, exact)
            if len(self._seen) * 2 * seen[0].size > KEPT_BYTES:
                return seen
            self._seen[key] = seen
        return self._seen[key]

    def pool_ties(self, image: NDArray[np.uint8]) -> Mask:
        """(H', W'): pixels within reach of a pooling window whose maximum float32 cannot decide."""
        with _pooled_maps(self.single) as single, _pooled_maps(self.double) as double:
            logits, _ = self._logits(image)
        reached = torch.zeros(logits.shape[1:], dtype=torch.bool)
        for level, (x, exact, reach) in enumerate(zip(single, double, self.network.pooling_reaches(), strict=True)):
            tied = _enlarged(_tied_windows(x, exact).float(), 2 ** (level + 1), reached.shape)
            reached |= F.max_pool2d(tied, 2 * reach + 1, stride=1, padding=reach)[0, 0].bool()
        return reached.numpy()

    def _logits(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        batch = torch.tensor(image[None])
        with torch.inference_mode():
            return self.single(batch)[0], self.double(batch)[0]


def near_ties(logits: Tensor, exact: Tensor) -> Mask:
    """(K, H, W) in float32 and float64 -> pixels whose two best logits differ by less than the arithmetic does.

    The margin is twice the largest difference between the two, and never above a thousandth of the logits' range.
    """
    if len(logits) == 1:
        return np.zeros(logits.shape[1:], bool)
    error = float((logits.double() - exact).abs().max())
    margin = min(2 * error, LARGEST_TIE * float(logits.max() - logits.min()))
    best = logits.topk(2, dim=0).values
    return ((best[0] - best[1]) < margin).numpy()


@contextlib.contextmanager
def _pooled_maps(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The input of every pooling with indices, in the order in which it runs."""
    maps: list[Tensor] = []
    pools = [child for child in module.modules() if isinstance(child, MaxPoolWithIndices)]
    handles = [pool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])) for pool in pools]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _tied_windows(x: Tensor, exact: Tensor) -> Tensor:
    """(1, C, H, W) twice -> (1, 1, h, w): windows in which two positions are closer than the arithmetic is exact."""
    error = float((x.double() - exact).abs().max())
    even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)  # what is not there ties with nothing
    windows = space_to_depth(even)
    best = torch.stack(windows.chunk(4, dim=1)).topk(2, dim=0).values
    tied = (best[0] - best[1] < 2 * error) & (best[0] != 0)  # a zero is a zero wherever it is put
    return tied.any(dim=1, keepdim=True)


def _enlarged(windows: Tensor, factor: int, size: torch.Size) -> Tensor:
    """(1, 1, h, w) -> (1, 1, *size): every window over the pixels it stands for."""
    full = windows.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    H, W = size
    return F.pad(full, (0, max(0, W - full.shape[3]), 0, max(0, H - full.shape[2])))[..., :H, :W]
