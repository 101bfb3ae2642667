"""DeepLabv3 (Chen, Papandreou, Schroff, Adam, arXiv:1706.05587): a ResNet with atrous convolution and ASPP.

`head="paper"`: multi-grid (1, 2, 4), a projection and the classifier, `align_corners` as the authors' TensorFlow code.
`head="torchvision"`: output stride 8, no multi-grid, one more 3x3, half-pixel interpolation, as torchvision's weights.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from segdeploy.blocks import ConvNorm, Network, scaled
from segdeploy.errors import InvalidRequestError
from segdeploy.models._resnet import DilatedNetwork, ResNet, head_3x3

ASPP_WIDTH = 256
AUXILIARY_WIDTH = 256
RATES_AT_16 = (6, 12, 18)
BRANCHES = 5


def build(
    classes: int,
    *,
    head: Literal["paper", "torchvision"] = "paper",
    depth: int = 50,
    output_stride: int = 16,
    stem: Literal["7x7", "deep"] = "7x7",
    multiplier: float = 1.0,
    auxiliary: bool = False,
) -> Network:
    """`output_stride` 16 as the paper trains, 8 as it evaluates; `head="torchvision"` is always 8.

    `auxiliary` adds torchvision's head on layer3 that only training reads.
    """
    if head not in {"paper", "torchvision"}:
        raise InvalidRequestError(f"DeepLabv3 has no head {head!r}.", "Choose head=paper or head=torchvision.")
    if stem not in {"7x7", "deep"}:
        raise InvalidRequestError(f"DeepLabv3 has no stem {stem!r}.", "Choose stem=7x7 or stem=deep.")
    as_torchvision = head == "torchvision"
    stride = 8 if as_torchvision else output_stride
    trunk = ResNet(
        depth,
        stem=stem,
        output_stride=stride,
        first_dilation="previous" if as_torchvision else "stage",
        multi_grid=(1, 1, 1) if as_torchvision else (1, 2, 4),
        multiplier=multiplier,
    )
    return DeepLabV3(
        classes,
        trunk,
        rates=tuple(rate * 16 // stride for rate in RATES_AT_16),
        torchvision=as_torchvision,
        multiplier=multiplier,
        auxiliary=auxiliary,
    )


class AtrousSpatialPyramidPooling(nn.Module):
    """1x1, three 3x3 at growing rates, and the image's mean, side by side, projected to one width (sec. 3.3).

    (N, C, H, W) -> (N, L, H, W).
    """

    def __init__(self, channels: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.point = ConvNorm(channels, width, 1)
        self.atrous = nn.ModuleList(ConvNorm(channels, width, 3, dilation=rate) for rate in rates)
        self.image = ConvNorm(channels, width, 1)
        self.project = ConvNorm(BRANCHES * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Up-sampling one pixel is a broadcast, whatever align_corners says.
        mean = self.image(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, x.shape[2], x.shape[3])
        projected: Tensor = self.project(
            torch.cat([self.point(x), *(branch(x) for branch in self.atrous), mean], dim=1)
        )
        return projected


class DeepLabV3(DilatedNetwork):
    def __init__(
        self,
        classes: int,
        trunk: ResNet,
        *,
        rates: tuple[int, ...],
        torchvision: bool,
        multiplier: float,
        auxiliary: bool,
    ) -> None:
        middle, channels = trunk.channels
        head = head_3x3(middle, scaled(AUXILIARY_WIDTH, multiplier), classes) if auxiliary else None
        super().__init__(trunk, auxiliary=head, align_corners=not torchvision)
        width = scaled(ASPP_WIDTH, multiplier)
        self.aspp = AtrousSpatialPyramidPooling(channels, width, rates)
        self.refine = nn.Sequential(nn.Dropout(0.5), ConvNorm(width, width, 3)) if torchvision else nn.Identity()
        self.classifier = nn.Conv2d(width, classes, 1)

    def decode(self, deep: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.refine(self.aspp(deep)))
        return logits
