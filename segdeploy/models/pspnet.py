"""PSPNet (Zhao et al., arXiv:1612.01105): a dilated ResNet, a pyramid of poolings, one 3x3 head.

Deep stem, dilation in the first block too, concatenation [x, 1, 2, 3, 6] and `align_corners`: as the authors'
PyTorch code (semseg) has them. The options are what other people's networks of the same keys have otherwise.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from segdeploy.blocks import ConvNorm, Network, adaptive_average_pool, resize_bilinear, scaled
from segdeploy.models._resnet import (
    BasicDilation,
    DilatedNetwork,
    FirstDilation,
    ResNet,
    StrideIn,
    head_3x3,
    require_choice,
)

BINS = (1, 2, 3, 6)


def build(
    classes: int,
    *,
    depth: int = 50,
    multiplier: float = 1.0,
    auxiliary: bool = False,
    stem: Literal["deep", "v1c", "7x7"] = "deep",
    first_dilation: FirstDilation = "stage",
    stride_in: StrideIn = "3x3",
    basic_dilation: BasicDilation = "both",
    corners: Literal["aligned", "half_pixel"] = "aligned",
    head_width: int = 512,
) -> Network:
    """`auxiliary` adds the head on layer3 that only training reads (sec. 4.2), half as wide as the head.

    `stem="v1c"`, `first_dilation="previous"`, `basic_dilation="first"` and `corners="half_pixel"` is mmsegmentation's.
    """
    require_choice("corners", corners, ("aligned", "half_pixel"))
    trunk = ResNet(
        depth,
        stem=stem,
        output_stride=8,
        first_dilation=first_dilation,
        stride_in=stride_in,
        basic_dilation=basic_dilation,
        multiplier=multiplier,
    )
    width = scaled(head_width, multiplier)
    return PSPNet(classes, trunk, align_corners=corners == "aligned", width=width, auxiliary=auxiliary)


class PyramidPooling(nn.Module):
    """Average over 1x1, 2x2, 3x3 and 6x6 grids and append the results (sec. 3.2).

    (N, K, H, W) -> (N, K + 4 L, H, W), for any H and W: the grids are constant matrices, so the graph needs no
    AdaptivePool.
    """

    def __init__(self, channels: int, level: int, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.levels = nn.ModuleList(ConvNorm(channels, level, 1) for _ in BINS)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        pooled = [level(adaptive_average_pool(x, bins)) for bins, level in zip(BINS, self.levels, strict=True)]
        raised = [resize_bilinear(grid, size, align_corners=self.align_corners) for grid in pooled]
        return torch.cat([x, *raised], dim=1)


class PSPNet(DilatedNetwork):
    def __init__(self, classes: int, trunk: ResNet, *, align_corners: bool, width: int, auxiliary: bool) -> None:
        middle, channels = trunk.channels
        head = head_3x3(middle, width // 2, classes) if auxiliary else None
        super().__init__(trunk, auxiliary=head, align_corners=align_corners)
        level = channels // len(BINS)
        self.pyramid = PyramidPooling(channels, level, align_corners=align_corners)
        self.head = head_3x3(channels + len(BINS) * level, width, classes)

    def decode(self, deep: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pyramid(deep))
        return logits
