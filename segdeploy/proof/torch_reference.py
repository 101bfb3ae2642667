"""The network in PyTorch: the masks that are right by definition, and which of their pixels it cannot decide."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segdeploy import metrics, models
from segdeploy.blocks import MaxPoolWithIndices, Network, space_to_depth
from segdeploy.errors import GateFailedError
from segdeploy.proof.reference import Drawn, Mask, near_ties
from segdeploy.spec import Spec


class TorchReference:
    """The network in PyTorch, in float32 as it was trained and in float64 to know what float32 cannot decide."""

    kind: Final = "PyTorch"

    def __init__(self, network: Network, spec: Spec) -> None:
        logits = dataclasses.replace(spec, output="logits")
        self.spec = spec
        self.network = network
        self._known = Drawn()
        self.single = models.deployed(network, logits).eval()
        self.double = models.deployed(copy.deepcopy(network), logits).double().eval()

    def class_map(self, image: NDArray[np.uint8]) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) -> the class map and which of its pixels are near-ties; kept, for a budget asks again."""
        return self._known.of(image, self._drawn)

    def _drawn(self, image: NDArray[np.uint8]) -> tuple[metrics.ClassMap, Mask]:
        logits, exact = self._logits(image)
        if not (torch.isfinite(logits).all() and torch.isfinite(exact).all()):
            raise self._not_finite(image)
        return logits.argmax(dim=0).to(torch.uint8).numpy(), near_ties(logits.numpy(), exact.numpy())

    def pool_ties(self, image: NDArray[np.uint8]) -> Mask:
        """(H', W'): pixels within reach of a pooling window whose maximum float32 cannot decide."""
        with _pooled_maps(self.single) as single, _pooled_maps(self.double) as double:
            logits, _ = self._logits(image)
        reached = torch.zeros(logits.shape[1:], dtype=torch.bool)
        for level, (x, exact, reach) in enumerate(zip(single, double, self.network.pooling_reaches(), strict=True)):
            tied = _enlarged(_tied_windows(x, exact).float(), 2 ** (level + 1), reached.shape)
            reached |= _widened(tied, reach)[0, 0].bool()
        return reached.numpy()

    def _not_finite(self, image: NDArray[np.uint8]) -> GateFailedError:
        where = first_not_finite(self.single, torch.tensor(image[None]))
        return GateFailedError(
            f"PyTorch's own logits are not finite (NaN or infinite), from the layer {where!r} on.",
            "The weights are damaged, or too large for float32: take another checkpoint, or train again.",
        )

    def _logits(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        batch = torch.tensor(image[None])
        with torch.inference_mode():
            return self.single(batch)[0], self.double(batch)[0]


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


def _widened(pixels: Tensor, reach: int) -> Tensor:
    """(1, 1, H, W): every pixel becomes the largest in the square of `reach` around it; columns, then rows."""
    columns = F.max_pool2d(pixels, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(columns, (1, 2 * reach + 1), stride=1, padding=(0, reach))


def first_not_finite(module: torch.nn.Module, batch: Tensor) -> str:
    """The name of the first layer whose output is not finite for `batch`, as it runs."""
    found: list[str] = []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
            found.append(name)

    layers = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(lambda _, __, out, name=name: look(name, out)) for name, layer in layers]
    try:
        with torch.inference_mode():
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0].removeprefix("network.") if found else "logits"
