"""ResNet trunks with atrous convolution (arXiv:1512.03385; stem and dilation as PSPNet and DeepLabv3 use them)."""

import functools
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from segdeploy.blocks import ConvNorm, Network, resize_bilinear, scaled
from segdeploy.errors import InvalidRequestError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
BASIC_DEPTHS = (18, 34)
STRIDES = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 32: (1, 2, 2, 2)}

STEMS = ("deep", "v1c", "7x7")

MultiGrid = tuple[int, ...]
FirstDilation = Literal["stage", "previous"]
StrideIn = Literal["3x3", "1x1"]
BasicDilation = Literal["both", "first"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; of a dilated stage, "both" or only the "first" have its rate."""

    expansion = 1

    def __init__(self, inputs: int, width: int, *, stride: int, dilation: int, dilated: BasicDilation) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, width, 3, stride=stride, dilation=dilation)
        self.conv2 = ConvNorm(width, width, 3, dilation=dilation if dilated == "both" else 1, relu=False)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the stride stands in the 3x3 (torchvision, semseg), or in the first 1x1 (Caffe)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, *, stride: int, dilation: int, stride_in: StrideIn) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = ConvNorm(inputs, width, 1, stride=first)
        self.conv2 = ConvNorm(width, width, 3, stride=second, dilation=dilation)
        self.conv3 = ConvNorm(width, width * self.expansion, 1, relu=False)
        self.shortcut = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """(N, 3, H, W) -> the maps of layer3 and layer4, layer4 at `output_stride`.

    `first_dilation`: the first block of a dilated stage takes the "stage"'s rate (semseg, TensorFlow) or the
    "previous" stage's (torchvision, mmsegmentation). `stride_in`: where a bottleneck has its stride. `basic_dilation`:
    which convolutions of a basic block are dilated. Each pair differs in its numbers, not in its keys.
    """

    def __init__(
        self,
        depth: int,
        *,
        stem: Literal["deep", "v1c", "7x7"],
        output_stride: int,
        first_dilation: FirstDilation = "stage",
        stride_in: StrideIn = "3x3",
        basic_dilation: BasicDilation = "both",
        multi_grid: MultiGrid = (1, 1, 1),
        multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        _check(depth, output_stride)
        require_choice("stem", stem, STEMS)
        require_choice("first_dilation", first_dilation, ("stage", "previous"))
        self.stem, channels = _stem(stem, multiplier)
        block, expansion = _block(depth, stride_in, basic_dilation)
        dilation = 1
        stages, widths = [], []
        for index, (blocks, width, stride) in enumerate(
            zip(BLOCKS[depth], WIDTHS, STRIDES[output_stride], strict=True)
        ):
            previous = dilation
            dilation *= 2 if index and stride == 1 else 1
            grid = multi_grid if index == len(WIDTHS) - 1 else (1,)
            rates = [dilation * grid[i % len(grid)] for i in range(blocks)]
            if first_dilation == "previous":
                rates[0] = previous
            outputs = scaled(width, multiplier) * expansion
            stages.append(_stage(block, (channels, scaled(width, multiplier), outputs), stride=stride, rates=rates))
            channels = outputs
            widths.append(channels)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = (widths[2], widths[3])
        _initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.stem(x), 3, stride=2, padding=1)
        middle = self.layer3(self.layer2(self.layer1(x)))
        return middle, self.layer4(middle)


class DilatedNetwork(Network):
    """A trunk, what a subclass makes of its last map, and bilinear up-sampling to the size of the image."""

    def __init__(self, trunk: ResNet, *, auxiliary: nn.Module | None, align_corners: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.auxiliary = auxiliary
        self.align_corners = align_corners

    def decode(self, deep: Tensor) -> Tensor:
        """(N, C, h, w) of layer4 -> logits (N, K, h, w)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        _, deep = self.trunk(x)
        return self._to_size(self.decode(deep), x)

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        middle, deep = self.trunk(x)
        auxiliary = None if self.auxiliary is None else self._to_size(self.auxiliary(middle), x)
        return self._to_size(self.decode(deep), x), auxiliary

    def _to_size(self, logits: Tensor, x: Tensor) -> Tensor:
        return resize_bilinear(logits, (x.shape[2], x.shape[3]), align_corners=self.align_corners)


def head_3x3(inputs: int, width: int, classes: int) -> nn.Sequential:
    """3x3, batch norm, ReLU, dropout 0.1, 1x1: PSPNet's head, and the auxiliary head of both."""
    return nn.Sequential(ConvNorm(inputs, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))


def require_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InvalidRequestError for an option that has none of its values."""
    if value not in known:
        raise InvalidRequestError(f"{option}={value!r} is unknown.", f"Choose {option}={', '.join(known)}.")


def _check(depth: int, output_stride: int) -> None:
    if depth not in BLOCKS:
        raise InvalidRequestError(
            f"there is no ResNet-{depth} here.", f"Choose depth={', '.join(str(known) for known in BLOCKS)}."
        )
    if output_stride not in STRIDES:
        raise InvalidRequestError(f"output stride {output_stride} is unknown.", "Choose output_stride=8, 16 or 32.")


def _stem(kind: str, multiplier: float) -> tuple[nn.Sequential, int]:
    half, full = scaled(64, multiplier), scaled(128, multiplier)
    if kind == "deep":
        layers = [ConvNorm(3, half, 3, stride=2), ConvNorm(half, half, 3), ConvNorm(half, full, 3)]
        return nn.Sequential(*layers), full
    if kind == "v1c":
        quarter = scaled(32, multiplier)
        layers = [ConvNorm(3, quarter, 3, stride=2), ConvNorm(quarter, quarter, 3), ConvNorm(quarter, half, 3)]
        return nn.Sequential(*layers), half
    return nn.Sequential(ConvNorm(3, half, 7, stride=2)), half


def _block(depth: int, stride_in: StrideIn, basic_dilation: BasicDilation) -> tuple[Callable[..., nn.Module], int]:
    """How a block is made, and its expansion."""
    require_choice("stride_in", stride_in, ("3x3", "1x1"))
    require_choice("basic_dilation", basic_dilation, ("both", "first"))
    if depth in BASIC_DEPTHS:
        return functools.partial(BasicBlock, dilated=basic_dilation), BasicBlock.expansion
    return functools.partial(Bottleneck, stride_in=stride_in), Bottleneck.expansion


def _stage(
    block: Callable[..., nn.Module], channels: tuple[int, int, int], *, stride: int, rates: list[int]
) -> nn.Sequential:
    inputs, width, outputs = channels
    blocks = [block(inputs, width, stride=stride, dilation=rates[0])]
    blocks += [block(outputs, width, stride=1, dilation=rate) for rate in rates[1:]]
    return nn.Sequential(*blocks)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return ConvNorm(inputs, outputs, 1, stride=stride, relu=False)


def _initialise(network: nn.Module) -> None:
    """He et al. by fan-out, as the ResNet paper's reference code has it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
