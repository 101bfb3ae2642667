"""The networks that other people train, built from their published layer lists; nothing of segdeploy is in them.

They are narrow: `WIDTH` is that of the first stage, 64 in the papers. Each gives (N, K, H, W) logits for what it was
trained on.
"""

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 8
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Style = Literal["3x3", "1x1"]


def with_statistics(network: nn.Module, seed: int = 0) -> Any:  # noqa: ANN401 - the network
    """Random statistics, gains and shifts in every norm, and weights that let the image through to the logits.

    Untrained norms hide one that is taken for another; the weights that PyTorch begins with hide the image.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.6, 1.4, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
            nn.init.normal_(module.running_mean, 0.0, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.6, 1.4, generator=generator)
    return network.eval()


class Block(nn.Module):
    """A residual block with torchvision's names; `second`: the dilation of a basic block's second convolution."""

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, *, basic: bool, style: Style, second: int
    ) -> None:
        super().__init__()
        self.basic = basic
        outputs = width if basic else 4 * width
        first, middle = (stride, 1) if style == "1x1" else (1, stride)
        if basic:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, second, second, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, middle, dilation, dilation, bias=False)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if not self.basic:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Stages(nn.Module):
    """layer1 to layer4. `dilations` of layer3 and layer4; `first`: "previous" halves that of their first block."""

    def __init__(
        self, depth: int, inputs: int, *, dilated: bool = True, first: str, style: Style = "3x3", second: str = "first"
    ) -> None:
        super().__init__()
        basic = depth < 50
        plan = zip((1, 2, 1, 1), (1, 1, 2, 4), strict=True) if dilated else zip((1, 2, 2, 2), (1, 1, 1, 1), strict=True)
        for stage, ((stride, dilation), blocks) in enumerate(zip(plan, BLOCKS[depth], strict=True)):
            width = WIDTH * 2**stage
            layers = []
            for index in range(blocks):
                rate = dilation // 2 if index == 0 and first == "previous" and dilation > 1 else dilation
                layers.append(
                    Block(
                        inputs,
                        width,
                        stride if index == 0 else 1,
                        rate,
                        basic=basic,
                        style=style,
                        second=rate if second == "both" else 1,
                    )
                )
                inputs = width if basic else 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.channels = (inputs // 2, inputs)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.get_submodule("layer3")(self.get_submodule("layer2")(self.get_submodule("layer1")(x)))
        return middle, self.get_submodule("layer4")(middle)


def stem_of(widths: tuple[int, int, int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for stride, width in zip((2, 1, 1), widths, strict=True):
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


def conv_bn(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


# torchvision


class TorchvisionResNet(Stages):
    def __init__(self, depth: int, *, dilated: bool = True, first: str = "previous", **more: Any) -> None:  # noqa: ANN401 - of Stages
        super().__init__(depth, WIDTH, dilated=dilated, first=first, **more)
        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.stages(F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1))


class _Aspp(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_bn(inputs, width, 1))]
        branches += [nn.Sequential(*conv_bn(inputs, width, 3, rate)) for rate in (12, 24, 36)]
        branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn(inputs, width, 1)))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*conv_bn(5 * width, width, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.convs]
        parts[-1] = F.interpolate(parts[-1], x.shape[2:], mode="bilinear", align_corners=False)
        projected: Tensor = self.project(torch.cat(parts, 1))
        return projected


class TorchvisionDeepLabV3(nn.Module):
    def __init__(
        self,
        classes: int,
        depth: int = 50,
        *,
        auxiliary: bool = True,
        corners: bool = False,
        **more: Any,  # noqa: ANN401 - of Stages
    ) -> None:
        super().__init__()
        self.corners = corners
        self.backbone = TorchvisionResNet(depth, **more)
        middle, deep = self.backbone.channels
        width = 4 * WIDTH
        self.classifier = nn.Sequential(_Aspp(deep, width), *conv_bn(width, width, 3), nn.Conv2d(width, classes, 1))
        if auxiliary:
            self.aux_classifier = nn.Sequential(
                *conv_bn(middle, width, 3), nn.Dropout(0.1), nn.Conv2d(width, classes, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        _, deep = self.backbone(x)
        return F.interpolate(self.classifier(deep), x.shape[2:], mode="bilinear", align_corners=self.corners)


class Classifier(nn.Module):
    """A torchvision ResNet as ImageNet classifiers are saved."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        trunk = TorchvisionResNet(depth, dilated=False)
        for name, module in trunk.named_children():
            self.add_module(name, module)
        self.fc = nn.Linear(trunk.channels[1], 10)


class Vgg16(nn.Module):
    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, count in enumerate((2, 2, 3, 3, 3)):
            for _ in range(count):
                outputs = WIDTH * min(2**stage, 8)
                layers.append(nn.Conv2d(inputs, outputs, 3, 1, 1))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(inputs, 10))


# semseg


class SemsegPspNet(Stages):
    def __init__(
        self,
        classes: int,
        depth: int = 50,
        *,
        first: str = "stage",
        corners: bool = True,
        **more: Any,  # noqa: ANN401 - of Stages
    ) -> None:
        super().__init__(depth, 2 * WIDTH, first=first, **more)
        self.corners = corners
        self.layer0 = nn.Sequential(*stem_of((WIDTH, WIDTH, 2 * WIDTH)), nn.MaxPool2d(3, 2, 1))
        middle, deep = self.channels
        self.ppm = nn.Module()
        self.ppm.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *conv_bn(deep, deep // 4, 1)) for bins in (1, 2, 3, 6)
        )
        self.cls = nn.Sequential(*conv_bn(2 * deep, 8 * WIDTH, 3), nn.Dropout2d(0.1), nn.Conv2d(8 * WIDTH, classes, 1))
        self.aux = nn.Sequential(*conv_bn(middle, 4 * WIDTH, 3), nn.Dropout2d(0.1), nn.Conv2d(4 * WIDTH, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        assert (H - 1) % 8 == 0
        assert (W - 1) % 8 == 0
        _, deep = self.stages(self.layer0(x))
        features: Any = self.ppm.features
        grids = [F.interpolate(f(deep), deep.shape[2:], mode="bilinear", align_corners=self.corners) for f in features]
        return F.interpolate(
            self.cls(torch.cat([deep, *grids], 1)), (H, W), mode="bilinear", align_corners=self.corners
        )


# mmsegmentation


def conv_module(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    conv, norm, relu = conv_bn(inputs, outputs, kernel, dilation)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm, activate=relu))


class MmBackbone(Stages):
    def __init__(self, depth: int, *, stem: str = "v1c", first: str = "previous", **more: Any) -> None:  # noqa: ANN401 - of Stages
        super().__init__(depth, WIDTH if stem != "deep" else 2 * WIDTH, first=first, **more)
        if stem == "7x7":
            self.conv1, self.bn1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTH)
        else:
            self.stem = stem_of((WIDTH, WIDTH, WIDTH) if stem == "v1c" else (WIDTH, WIDTH, 2 * WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x) if hasattr(self, "stem") else F.relu(self.bn1(self.conv1(x)))
        return self.stages(F.max_pool2d(x, 3, 2, 1))


class MmSegmentor(nn.Module):
    """`head`: PSPHead or ASPPHead, of 512 channels, or 128 on basic blocks; an FCNHead on layer3 of half the width."""

    def __init__(self, classes: int, depth: int, head: str, *, corners: bool = False, **more: Any) -> None:  # noqa: ANN401 - of MmBackbone
        super().__init__()
        self.corners = corners
        self.backbone = MmBackbone(depth, **more)
        middle, deep = self.backbone.channels
        width = (2 if depth < 50 else 8) * WIDTH
        self.decode_head, self.auxiliary_head = nn.Module(), nn.Module()
        if head == "psp":
            branches: list[nn.Module] = [
                nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv_module(deep, width, 1)) for bins in (1, 2, 3, 6)
            ]
            self.decode_head.psp_modules = nn.ModuleList(branches)
            inputs = deep + 4 * width
        else:
            self.decode_head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_module(deep, width, 1))
            rates = [conv_module(deep, width, 1), *(conv_module(deep, width, 3, rate) for rate in (12, 24, 36))]
            self.decode_head.aspp_modules = nn.ModuleList(rates)
            inputs = 5 * width
        self.decode_head.bottleneck = conv_module(inputs, width, 3)
        self.decode_head.conv_seg = nn.Conv2d(width, classes, 1)
        self.auxiliary_head.convs = nn.Sequential(conv_module(middle, width // 2, 3))
        self.auxiliary_head.conv_seg = nn.Conv2d(width // 2, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, deep = self.backbone(x)
        head: Any = self.decode_head
        if hasattr(head, "psp_modules"):
            parts = [deep, *(self._resized(branch(deep), deep) for branch in head.psp_modules)]
        else:
            parts = [self._resized(head.image_pool(deep), deep), *(branch(deep) for branch in head.aspp_modules)]
        return self._resized(head.conv_seg(head.bottleneck(torch.cat(parts, 1))), x)

    def _resized(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=self.corners)


# milesial


class _Double(nn.Module):
    def __init__(self, name: str, inputs: int, middle: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        layers = [nn.Conv2d(inputs, middle, 3, 1, 1, bias=bias), nn.BatchNorm2d(middle), nn.ReLU()]
        layers += [nn.Conv2d(middle, outputs, 3, 1, 1, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        (pair,) = self.children()
        found: Tensor = pair(x)
        return found


class MilesialUNet(nn.Module):
    """`generation` 1: names of before 2019-10; 2: biases of before 2021-12; 3: today."""

    def __init__(self, classes: int, generation: int, *, bilinear: bool) -> None:
        super().__init__()
        self.old = generation == 1
        name, bias = ("conv" if self.old else "double_conv"), generation < 3
        w = [WIDTH * 2**level for level in range(5)]
        if self.old or bilinear:
            w[4] = w[3]
        first = _Double(name, 3, w[0], w[0], bias=bias)
        self.inc: Any = nn.Sequential(OrderedDict(conv=first)) if self.old else first
        for level in range(1, 5):
            pair = _Double(name, w[level - 1], w[level], w[level], bias=bias)
            down = nn.Module()
            down.add_module("mpconv" if self.old else "maxpool_conv", nn.Sequential(nn.MaxPool2d(2), pair))
            self.add_module(f"down{level}", down)
        below = w[4]
        for level in range(1, 5):
            skip = w[4 - level]
            outputs = max(skip // 2, WIDTH) if self.old or bilinear else skip
            raised = below if bilinear or self.old else skip
            middle = (raised + skip) // 2 if bilinear and not self.old else outputs
            up = nn.Module()
            if bilinear:
                up.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            else:
                up.up = nn.ConvTranspose2d(below, raised, 2, 2)
            up.conv = _Double(name, raised + skip, middle, outputs, bias=bias)
            self.add_module(f"up{level}", up)
            below = outputs
        self.outc: Any = nn.Module()
        self.outc.conv = nn.Conv2d(below, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.inc(x)]
        for level in range(1, 5):
            (stage,) = self.get_submodule(f"down{level}").children()
            maps.append(stage(maps[-1]))
        y = maps[4]
        for level in range(1, 5):
            up: Any = self.get_submodule(f"up{level}")
            skip, y = maps[4 - level], up.up(y)
            down, right = skip.shape[2] - y.shape[2], skip.shape[3] - y.shape[3]
            y = F.pad(y, [right // 2, right - right // 2, down // 2, down - down // 2])
            y = up.conv(torch.cat([skip, y], 1))
        logits: Tensor = self.outc.conv(y)
        return logits


# Caffe SegNet


class CaffeSegNet(nn.Module):
    """Blobs by layer, as `.caffemodel` holds them; takes BGR of 0..255. `basic`: SegNet-Basic with its local norm."""

    def __init__(self, classes: int, *, basic: bool, ceil_mode: bool = True) -> None:
        super().__init__()
        self.basic, self.ceil_mode = basic, ceil_mode
        self.blobs: dict[str, tuple[Tensor, Tensor]] = {}
        counts = (1,) * 4 if basic else (2, 2, 3, 3, 3)
        widths = [WIDTH if basic else WIDTH * min(2**stage, 8) for stage in range(len(counts))]
        self.encoder: list[list[str]] = []
        self.decoder: list[list[str]] = []
        inputs = 3
        for stage, (count, width) in enumerate(zip(counts, widths, strict=True), start=1):
            names = [f"conv{stage}"] if basic else [f"conv{stage}_{place + 1}" for place in range(count)]
            for name in names:
                self._layer(name, inputs, width)
                inputs = width
            self.encoder.append(names)
        for stage in range(len(counts), 0, -1):
            last = widths[stage - 2] if stage > 1 else WIDTH
            count = counts[stage - 1]
            names = [f"conv_decode{stage}"] if basic else [f"conv{stage}_{place}_D" for place in range(count, 0, -1)]
            for name in names if basic or stage > 1 else names[:-1]:
                outputs = last if name == names[-1] else widths[stage - 1]
                self._layer(name, inputs, outputs)
                inputs = outputs
            self.decoder.append(names)
        self.classifier = "conv_classifier" if basic else "conv1_1_D"
        kernel = 1 if basic else 3
        self.blobs[self.classifier] = (0.3 * torch.randn(classes, inputs, kernel, kernel), 0.1 * torch.randn(classes))

    def _layer(self, name: str, inputs: int, outputs: int) -> None:
        kernel = 7 if self.basic else 3
        gain = (2 / (inputs * kernel**2)) ** 0.5
        self.blobs[name] = (gain * torch.randn(outputs, inputs, kernel, kernel), 0.1 * torch.randn(1, 1, 1, outputs))
        scale, shift = 0.6 + 0.8 * torch.rand(1, outputs, 1, 1), 0.2 * torch.randn(1, outputs, 1, 1)
        self.blobs[f"{name}_bn"] = (scale, shift)

    def _conv(self, x: Tensor, name: str, *, relu: bool) -> Tensor:
        (weight, bias), (scale, shift) = self.blobs[name], self.blobs[f"{name}_bn"]
        y = F.conv2d(x, weight, bias.flatten(), padding=weight.shape[2] // 2) * scale + shift
        return F.relu(y) if relu else y

    def forward(self, x: Tensor) -> Tensor:
        if self.basic:
            x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0)
        pooled = []
        for names in self.encoder:
            for name in names:
                x = self._conv(x, name, relu=True)
            size = x.shape[2:]
            x, places = F.max_pool2d(x, 2, 2, ceil_mode=self.ceil_mode, return_indices=True)
            pooled.append((places, size))
        for names, (places, size) in zip(self.decoder, reversed(pooled), strict=True):
            x = F.max_unpool2d(x, places, [2, 2], [2, 2], output_size=size)
            for name in names:
                if name != self.classifier:
                    x = self._conv(x, name, relu=not self.basic)
        weight, bias = self.blobs[self.classifier]
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
