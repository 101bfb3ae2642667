"""What the networks are built of: each block is exact in PyTorch and exports to operators every runtime takes.

Nothing here asks whether it is being traced: a graph and its network run the same arithmetic.
"""

import math
from collections import OrderedDict
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeploy.errors import InvalidRequestError
from segdeploy.interpolation import interpolation_matrix

CHANNEL_STEP = 8  # int8 and half-precision kernels want channels in eights


def scaled(channels: int, multiplier: float) -> int:
    """Channels of a network made narrower or wider, in steps of eight; `multiplier` 1 changes nothing."""
    if not 0 < multiplier < math.inf:
        raise InvalidRequestError(
            f"multiplier {multiplier} is not a number above 0.", "Give 1 for the network of the paper."
        )
    if multiplier == 1:
        return channels
    return max(CHANNEL_STEP, round(channels * multiplier / CHANNEL_STEP) * CHANNEL_STEP)


class Network(nn.Module):
    """Normalised float (N, 3, H, W) -> logits (N, K, H - 2 margin, W - 2 margin)."""

    margin = 0  # pixels that valid convolutions consume on each side

    def check_size(self, height: int, width: int) -> None:
        """Raise InvalidRequestError for an input this network cannot take."""
        self._require_at_least(1, height, width)

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the logits and, where the network was built with an auxiliary head, that head's logits."""
        return self(x), None

    def pooling_reaches(self) -> tuple[int, ...]:
        """For each `MaxPoolWithIndices` in order: how far, in pixels of the image, a moved maximum is felt."""
        return ()

    def _require_at_least(self, side: int, height: int, width: int) -> None:
        if min(height, width) < side:
            raise InvalidRequestError(
                f"{type(self).__name__} takes at least {side}x{side} pixels, not {height}x{width}.",
                f"Give --size {max(side, height)}x{max(side, width)} or more.",
            )


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation and, unless told otherwise, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)
        layers = OrderedDict[str, nn.Module](conv=conv, norm=nn.BatchNorm2d(outputs))
        if relu:
            layers["relu"] = nn.ReLU()
        super().__init__(layers)

    def fold(self) -> Self:
        """Put the trained normalisation into the convolution, in float64 (W' = W s, b' = (b - mean) s + beta)."""
        conv, norm = self.get_submodule("conv"), self.get_submodule("norm")
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
            scale, shift = _scale_and_shift(norm)
            bias = torch.zeros_like(shift) if conv.bias is None else conv.bias.detach().double()
            weight = conv.weight.detach().double() * scale[:, None, None, None]
            conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
            conv.bias = nn.Parameter((bias * scale + shift).to(conv.weight.dtype))
            self.set_submodule("norm", nn.Identity())
        return self


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - for the type checker
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def fold_normalisation(network: nn.Module) -> None:
    """Fold every batch normalisation into its convolution, in place."""
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fold()


@torch.library.custom_op("segdeploy::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor) -> Tensor:
    """(N, C, 2h, 2w) -> (N, 4C, h, w), phases in row-major order, each with all its channels (ONNX DCR order)."""
    N, C, H, W = x.shape
    return x.reshape(N, C, H // 2, 2, W // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(N, 4 * C, H // 2, W // 2).clone()


@torch.library.custom_op("segdeploy::depth_to_space", mutates_args=())
def depth_to_space(x: Tensor) -> Tensor:
    """(N, 4C, h, w) -> (N, C, 2h, 2w), the inverse of `space_to_depth`."""
    N, C, h, w = x.shape
    return x.reshape(N, 2, 2, C // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(N, C // 4, 2 * h, 2 * w).clone()


@space_to_depth.register_fake
def _(x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    return x.new_empty(N, 4 * C, H // 2, W // 2)


@depth_to_space.register_fake
def _(x: Tensor) -> Tensor:
    N, C, h, w = x.shape
    return x.new_empty(N, C // 4, 2 * h, 2 * w)


space_to_depth.register_autograd(lambda _, gradient: depth_to_space(gradient))
depth_to_space.register_autograd(lambda _, gradient: space_to_depth(gradient))

Winners = tuple[Tensor, Tensor, Tensor]


class MaxPoolWithIndices(nn.Module):
    """2x2 max-pooling that remembers where each maximum stood (SegNet, arXiv:1511.00561, sec. 3).

    (N, C, H, W) -> pooled (N, C, h, w) and three boolean maps of that shape, for `max_unpool`. Bit-equal to
    `nn.MaxPool2d(2, ceil_mode=...)`: the first maximum in row-major order wins, ties included, and the last NaN wins
    over every number. A tournament names exactly one position whatever precision a fused kernel compares in, where
    `x == upsample(max)` names all of a tie and none of a NaN.
    """

    def __init__(self, *, ceil_mode: bool) -> None:
        super().__init__()
        self.ceil_mode = ceil_mode

    def forward(self, x: Tensor) -> tuple[Tensor, Winners]:
        a, b, c, d = space_to_depth(self._even(x)).chunk(4, dim=1)
        right_above, right_below = _wins(b, a), _wins(d, c)
        above, below = torch.where(right_above, b, a), torch.where(right_below, d, c)
        lower = _wins(below, above)
        return torch.where(lower, below, above), (right_above, right_below, lower)

    def _even(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        if not self.ceil_mode:
            return x[..., : H // 2 * 2, : W // 2 * 2]
        if W % 2:
            x = torch.cat([x, _never_winning(x[..., -1:])], dim=3)
        if H % 2:
            x = torch.cat([x, _never_winning(x[..., -1:, :])], dim=2)
        return x


def _wins(later: Tensor, earlier: Tensor) -> Tensor:
    """Whether the later of two values is the maximum by PyTorch's rule: it is larger, or no number.

    Written as "less": OpenVINO 2026.4 takes a NaN for greater than anything where the processor has AVX-512.
    """
    return (earlier < later) | later.isnan()


def _never_winning(edge: Tensor) -> Tensor:
    """A last row or column once more: it ties with the original, which comes first and wins; a zero beside a NaN."""
    return torch.where(edge.isnan(), edge.new_zeros(()), edge)


def max_unpool(x: Tensor, winners: Winners, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size): each value where its maximum stood, zeros elsewhere (`nn.MaxUnpool2d`)."""
    right_above, right_below, lower = winners
    zero = x.new_zeros(())
    above, below = torch.where(lower, zero, x), torch.where(lower, x, zero)
    a, b = torch.where(right_above, zero, above), torch.where(right_above, above, zero)
    c, d = torch.where(right_below, zero, below), torch.where(right_below, below, zero)
    full: Tensor = depth_to_space(torch.cat([a, b, c, d], dim=1))
    H, W = size
    short = (0, W - full.shape[3], 0, H - full.shape[2])
    if max(short) > 0:  # floor mode left the last row or column out
        return nn.functional.pad(full, short)
    return full[..., :H, :W]


def pooling_matrix(inputs: int, outputs: int) -> NDArray[np.float64]:
    """(outputs, inputs): the bins of `nn.functional.adaptive_avg_pool2d` along one axis, for any two sizes."""
    matrix = np.zeros((outputs, inputs))
    for row in range(outputs):
        start, end = row * inputs // outputs, math.ceil((row + 1) * inputs / outputs)
        matrix[row, start:end] = 1.0 / (end - start)
    return matrix


def _along_both_axes(x: Tensor, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Tensor:
    """(N, C, h, w) -> R X C^T for every map; the two matrices become constants of the graph."""
    left = torch.from_numpy(rows).to(x)
    right = torch.from_numpy(columns.T.copy()).to(x)
    return torch.matmul(left, torch.matmul(x, right))


def resize_bilinear(x: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """(N, C, h, w) -> (N, C, *size).

    Two constant matrix products: on CPUs faster than Resize, and without the 2e-5 error that ONNX Runtime's Resize
    has under `align_corners`. The one place to change if a GPU prefers Resize.
    """
    h, w = x.shape[-2:]
    rows = interpolation_matrix(h, size[0], align_corners=align_corners)
    return _along_both_axes(x, rows, interpolation_matrix(w, size[1], align_corners=align_corners))


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """(N, C, h, w) -> (N, C, bins, bins), for any h and w: no exporter takes bins that do not divide the map."""
    h, w = x.shape[-2:]
    return _along_both_axes(x, pooling_matrix(h, bins), pooling_matrix(w, bins))
