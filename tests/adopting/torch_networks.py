"""Torch modules as other people write them, tiny: with attention, depthwise convolutions, squeeze-and-excite."""

import types

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


def built(kind: type[nn.Module]) -> nn.Module:
    """A module with random weights and random statistics of its norms, the same every time; it draws every class."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.get_buffer("running_mean").normal_(0, 0.3)
                layer.get_buffer("running_var").uniform_(0.5, 1.5)
        first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
        spread_logits(module, torch.randn(2, first.in_channels, 32, 48))
    return module


def spread_logits(module: nn.Module, images: Tensor) -> None:
    """Let every class have logits of mean 0 and deviation 1, by its last layer."""
    heads = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels == CLASSES]
    found: list[Tensor] = []
    handle = heads[-1].register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        module.eval()(images)
        handle.remove()
        module.train()
        deviation, mean = torch.std_mean(found[0], dim=(0, 2, 3))
        heads[-1].weight /= deviation[:, None, None, None]
        assert heads[-1].bias is not None
        heads[-1].bias.copy_((heads[-1].bias - mean) / deviation)


class Attention(nn.Module):
    """Keys and values of a map that a strided convolution makes smaller (SegFormer, arXiv:2105.15203, sec. 3.1)."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.heads = 2
        self.query, self.both = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.reduce, self.norm = nn.Conv2d(width, width, reduction, reduction), nn.LayerNorm(width)
        self.last = nn.Linear(width, width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        count, places, channels = tokens.shape
        query = self.query(tokens).reshape(count, places, self.heads, -1).transpose(1, 2)
        few = self.reduce(tokens.transpose(1, 2).reshape(count, channels, height, width))
        both = self.both(self.norm(few.flatten(2).transpose(1, 2))).reshape(count, -1, 2, self.heads, channels // 2)
        key, value = both.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.last(heads.transpose(1, 2).reshape(count, places, channels))
        return found


class Block(nn.Module):
    """Attention, then an MLP with a depthwise convolution in it."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, reduction)
        self.between, self.wide = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        tokens = tokens + self.attention(self.before(tokens), height, width)
        inner = self.wide(self.between(tokens))
        inner = inner.transpose(1, 2).reshape(inner.shape[0], -1, height, width)
        inner = F.gelu(self.depthwise(inner)).flatten(2).transpose(1, 2)
        found: Tensor = tokens + self.narrow(inner)
        return found


class SegFormerLike(nn.Module):
    """Two stages, an all-MLP head, and Hugging Face's output: `logits` at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList([nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 16, 3, 2, 1)])
        self.blocks = nn.ModuleList([Block(8, 4), Block(16, 2)])
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(16)])
        self.heads = nn.ModuleList([nn.Linear(8, 12), nn.Linear(16, 12)])
        self.drop, self.last = nn.Dropout(0.1), nn.Conv2d(24, CLASSES, 1)

    def forward(self, pixel_values: Tensor) -> types.SimpleNamespace:
        x, found = pixel_values, []
        for patch, block, norm, head in zip(self.patches, self.blocks, self.norms, self.heads, strict=True):
            x = patch(x)
            count, _, height, width = x.shape
            tokens = norm(block(x.flatten(2).transpose(1, 2), height, width))
            x = tokens.transpose(1, 2).reshape(count, -1, height, width)
            found.append(head(tokens).transpose(1, 2).reshape(count, -1, height, width))
        whole = [F.interpolate(each, size=found[0].shape[2:], mode="bilinear", align_corners=False) for each in found]
        return types.SimpleNamespace(loss=None, logits=self.last(self.drop(torch.cat(whole, 1))))


def conv(inputs: int, outputs: int, kernel: int = 1, *how: int) -> nn.Module:
    stride, groups, dilation = (*how, 1, 1, 1)[:3]
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """MobileNetV2, arXiv:1801.04381, sec. 3.3."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        inner = 2 * inputs
        self.is_residual = stride == 1 and inputs == outputs
        depthwise = conv(inner, inner, 3, stride, inner, dilation)
        linear = [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(conv(inputs, inner), depthwise, *linear)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.layers(x) if self.is_residual else self.layers(x)
        return found


class DeepLabV3Plus(nn.Module):
    """On MobileNetV2, with separable convolutions (arXiv:1802.02611, sec. 3); its output is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(conv(3, 8, 3, 2), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2))
        self.high = nn.Sequential(InvertedResidual(12, 16, 2), InvertedResidual(16, 16, 1, 2))
        self.branches = nn.ModuleList(
            [conv(16, 8), *(nn.Sequential(conv(16, 16, 3, 1, 16, d), conv(16, 8)) for d in (2, 4))]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(16, 8))
        self.join, self.skip = conv(32, 16), conv(12, 4)
        self.last = nn.Sequential(conv(20, 20, 3, 1, 20), nn.Conv2d(20, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        high = self.high(low)
        pooled = self.pooled(high).expand(-1, -1, *high.shape[2:])
        high = self.join(torch.cat([*(branch(high) for branch in self.branches), pooled], 1))
        high = F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=True)
        found = self.last(torch.cat([high, self.skip(low)], 1))
        return F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=True)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.wide(F.relu(self.narrow(F.adaptive_avg_pool2d(x, 1)))))


class LiteRASPP(nn.Module):
    """LR-ASPP on MobileNetV3 (arXiv:1905.02244, sec. 6.4), and torchvision's output: a dictionary with `out`."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.high = nn.Sequential(
            nn.Conv2d(8, 8, 5, 2, 2, groups=8), nn.Hardswish(), SqueezeExcite(8), nn.Conv2d(8, 16, 1), nn.Hardswish()
        )
        self.cbr = nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 12, 1, bias=False), nn.Sigmoid())
        self.low_classifier, self.high_classifier = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        high = self.high(low)
        high = self.cbr(high) * self.scale(high)
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        found = self.low_classifier(low) + self.high_classifier(high)
        return {"out": F.interpolate(found, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class Small(nn.Module):
    """A convolution, a norm, a classifier: tests of what goes around a module take this one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop, self.head = nn.Dropout(0.5), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.drop(self.body(x)))
        return found


# Planted faults


class Dropping(Small):
    """Dropout that no mode switches off."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.dropout(self.body(x), 0.5, training=True))
        return found


class Mixing(Small):
    """An image is drawn by the mean of those beside it."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        found: Tensor = self.head(features - 3 * features.mean(0, keepdim=True))
        return found


class Reordering(Small):
    """The masks of a batch come in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(0)


class NotANumber(Small):
    """The logarithm of what may be negative."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.log(self.body[0](x)))
        return found


class OnlyEights(Small):
    """Sides that are no multiple of 8 do not fit together again."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.interpolate(F.avg_pool2d(x[:, :1], 8), scale_factor=8)


class Deciding(Small):
    """What it computes depends on what the image shows."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if features.mean() > 1:
            features = -features
        found: Tensor = self.head(features)
        return found


class Inverting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.inv(x @ x.transpose(2, 3) + torch.eye(x.shape[2]))
        return inverse @ x


class WithoutOnnx(Small):
    """An operator that ONNX has none for, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inverse = Inverting()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.inverse(x))
