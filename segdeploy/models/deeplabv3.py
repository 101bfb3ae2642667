"""DeepLabv3 (Chen, Papandreou, Schroff, Adam, arXiv:1706.05587): a ResNet with atrous convolution and ASPP.

`head="paper"`: multi-grid (1, 2, 4), a projection and the classifier, `align_corners` as the authors' TensorFlow code.
`head="torchvision"`: output stride 8, no multi-grid, one more 3x3, half-pixel interpolation, as torchvision's weights.
`head="mmsegmentation"`: as torchvision, but 512 channels wide, and the projection is the 3x3.
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from segdeploy.blocks import ConvNorm, Network, scaled
from segdeploy.errors import InvalidRequestError
from segdeploy.models._resnet import (
    BASIC_DEPTHS,
    BasicDilation,
    DilatedNetwork,
    FirstDilation,
    MultiGrid,
    ResNet,
    StrideIn,
    head_3x3,
    require_choice,
)

BASIC_WIDTHS = (128, 64)  # of mmsegmentation's heads on ResNet-18 and 34
RATES_AT_16 = (6, 12, 18)
BRANCHES = 5


@dataclasses.dataclass(frozen=True, slots=True)
class _Head:
    """What a head brings: its width, the kernel of its projection, and the conventions of the networks that have it."""

    width: int
    projection: int
    first_dilation: FirstDilation
    multi_grid: MultiGrid
    align_corners: bool
    has_refinement: bool = False
    auxiliary_width: int = 256
    output_stride: int = 0  # 0: as it is asked for


HEADS = {
    "paper": _Head(256, 1, "stage", (1, 2, 4), align_corners=True),
    "torchvision": _Head(256, 1, "previous", (1, 1, 1), align_corners=False, has_refinement=True, output_stride=8),
    "mmsegmentation": _Head(512, 3, "previous", (1, 1, 1), align_corners=False, output_stride=8),
}


def build(
    classes: int,
    *,
    head: Literal["paper", "torchvision", "mmsegmentation"] = "paper",
    depth: int = 50,
    output_stride: int = 16,
    stem: Literal["7x7", "deep", "v1c"] = "7x7",
    multiplier: float = 1.0,
    auxiliary: bool = False,
    first_dilation: Literal["of_head", "stage", "previous"] = "of_head",
    stride_in: StrideIn = "3x3",
    basic_dilation: BasicDilation = "both",
    corners: Literal["of_head", "aligned", "half_pixel"] = "of_head",
) -> Network:
    """`output_stride` 16 as the paper trains, 8 as it evaluates; every other head is always 8.

    `auxiliary` adds torchvision's head on layer3 that only training reads.
    """
    if head not in HEADS:
        raise InvalidRequestError(f"DeepLabv3 has no head {head!r}.", f"Choose head={', '.join(HEADS)}.")
    require_choice("corners", corners, ("of_head", "aligned", "half_pixel"))
    facts = HEADS[head]
    aligned = facts.align_corners if corners == "of_head" else corners == "aligned"
    facts = dataclasses.replace(facts, output_stride=facts.output_stride or output_stride, align_corners=aligned)
    trunk = ResNet(
        depth,
        stem=stem,
        output_stride=facts.output_stride,
        first_dilation=facts.first_dilation if first_dilation == "of_head" else first_dilation,
        stride_in=stride_in,
        basic_dilation=basic_dilation,
        multi_grid=facts.multi_grid,
        multiplier=multiplier,
    )
    if head == "mmsegmentation" and depth in BASIC_DEPTHS:
        facts = dataclasses.replace(facts, width=BASIC_WIDTHS[0], auxiliary_width=BASIC_WIDTHS[1])
    return DeepLabV3(classes, trunk, facts, multiplier=multiplier, auxiliary=auxiliary)


class AtrousSpatialPyramidPooling(nn.Module):
    """1x1, three 3x3 at growing rates, and the image's mean, side by side, projected to one width (sec. 3.3).

    (N, C, H, W) -> (N, L, H, W). `projection` is the kernel of the last convolution.
    """

    def __init__(self, channels: int, width: int, rates: tuple[int, ...], *, projection: int) -> None:
        super().__init__()
        self.point = ConvNorm(channels, width, 1)
        self.atrous = nn.ModuleList(ConvNorm(channels, width, 3, dilation=rate) for rate in rates)
        self.image = ConvNorm(channels, width, 1)
        self.project = ConvNorm(BRANCHES * width, width, projection)

    def forward(self, x: Tensor) -> Tensor:
        # Up-sampling one pixel is a broadcast, whatever align_corners says.
        mean = self.image(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, x.shape[2], x.shape[3])
        projected: Tensor = self.project(
            torch.cat([self.point(x), *(branch(x) for branch in self.atrous), mean], dim=1)
        )
        return projected


class DeepLabV3(DilatedNetwork):
    def __init__(self, classes: int, trunk: ResNet, facts: _Head, *, multiplier: float, auxiliary: bool) -> None:
        middle, channels = trunk.channels
        head = head_3x3(middle, scaled(facts.auxiliary_width, multiplier), classes) if auxiliary else None
        super().__init__(trunk, auxiliary=head, align_corners=facts.align_corners)
        width = scaled(facts.width, multiplier)
        rates = tuple(rate * 16 // facts.output_stride for rate in RATES_AT_16)
        self.aspp = AtrousSpatialPyramidPooling(channels, width, rates, projection=facts.projection)
        refined = facts.has_refinement
        self.refine = nn.Sequential(nn.Dropout(0.5), ConvNorm(width, width, 3)) if refined else nn.Identity()
        self.classifier = nn.Conv2d(width, classes, 1)

    def decode(self, deep: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.refine(self.aspp(deep)))
        return logits
