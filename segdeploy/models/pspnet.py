"""PSPNet (Zhao et al., arXiv:1612.01105): a dilated ResNet, a pyramid of poolings, one 3x3 head.

Deep stem, dilation in the first block too, concatenation [x, 1, 2, 3, 6] and `align_corners`: as the authors'
PyTorch code (semseg) has them.
"""

import torch
from torch import Tensor, nn

from segdeploy.blocks import ConvNorm, Network, adaptive_average_pool, resize_bilinear, scaled
from segdeploy.models._resnet import DilatedNetwork, ResNet, head_3x3

BINS = (1, 2, 3, 6)
HEAD_WIDTH = 512
AUXILIARY_WIDTH = 256


def build(classes: int, *, depth: int = 50, multiplier: float = 1.0, auxiliary: bool = False) -> Network:
    """`auxiliary` adds the head on layer3 that only training reads (sec. 4.2)."""
    return PSPNet(classes, depth=depth, multiplier=multiplier, auxiliary=auxiliary)


class PyramidPooling(nn.Module):
    """Average over 1x1, 2x2, 3x3 and 6x6 grids and append the results (sec. 3.2).

    (N, K, H, W) -> (N, K + 4 L, H, W), for any H and W: the grids are constant matrices, so the graph needs no
    AdaptivePool.
    """

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ConvNorm(channels, level, 1) for _ in BINS)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        pooled = [level(adaptive_average_pool(x, bins)) for bins, level in zip(BINS, self.levels, strict=True)]
        return torch.cat([x, *(resize_bilinear(grid, size, align_corners=True) for grid in pooled)], dim=1)


class PSPNet(DilatedNetwork):
    def __init__(self, classes: int, *, depth: int, multiplier: float, auxiliary: bool) -> None:
        trunk = ResNet(depth, stem="deep", output_stride=8, multiplier=multiplier)
        middle, channels = trunk.channels
        head = head_3x3(middle, scaled(AUXILIARY_WIDTH, multiplier), classes) if auxiliary else None
        super().__init__(trunk, auxiliary=head, align_corners=True)
        level = channels // len(BINS)
        self.pyramid = PyramidPooling(channels, level)
        self.head = head_3x3(channels + len(BINS) * level, scaled(HEAD_WIDTH, multiplier), classes)

    def decode(self, deep: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pyramid(deep))
        return logits
