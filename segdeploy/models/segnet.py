"""SegNet and SegNet-Basic (Badrinarayanan, Kendall, Cipolla, arXiv:1511.00561).

An encoder that is VGG16's, a decoder that mirrors it and un-pools with the encoder's own indices.
"""

from typing import Literal

from torch import Tensor, nn

from segdeploy.blocks import ConvNorm, MaxPoolWithIndices, Network, max_unpool, scaled
from segdeploy.errors import InvalidRequestError

ENCODER = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))
BASIC_STAGES = 4
BASIC_CHANNELS = 64


def build(
    classes: int,
    *,
    form: Literal["full", "basic"] = "full",
    multiplier: float = 1.0,
    ceil_mode: bool = True,
) -> Network:
    """`ceil_mode` is Caffe's pooling and the paper's (360x480 -> 12x15); most PyTorch ports round down instead."""
    if form == "full":
        return SegNet(classes, multiplier=multiplier, ceil_mode=ceil_mode)
    if form == "basic":
        return SegNetBasic(classes, multiplier=multiplier, ceil_mode=ceil_mode)
    raise InvalidRequestError(f"SegNet has no form {form!r}.", "Choose form=full or form=basic.")


class _Unpooling(Network):
    """The walk both share: each encoder stage pools, each decoder stage un-pools with the matching indices."""

    encoder: nn.ModuleList
    decoder: nn.ModuleList
    pool: MaxPoolWithIndices
    classifier: nn.Conv2d

    def check_size(self, height: int, width: int) -> None:
        self._require_at_least(1 if self.pool.ceil_mode else 2 ** len(self.encoder), height, width)

    def pooling_reaches(self) -> tuple[int, ...]:
        reach, reaches = _radius(self.classifier), []
        for level, stage in enumerate(reversed(self.decoder)):
            reach += (_radius(stage) + 1) * 2**level
            reaches.append(reach)
        return tuple(reaches)

    def encode_decode(self, x: Tensor) -> Tensor:
        pooled = []
        for stage in self.encoder:
            before = stage(x)
            x, winners = self.pool(before)
            pooled.append((winners, (before.shape[2], before.shape[3])))
        for stage, (winners, size) in zip(self.decoder, reversed(pooled), strict=True):
            x = stage(max_unpool(x, winners, size))
        return x


class SegNet(_Unpooling):
    """13 + 13 convolutions with biases, as the authors' prototxt has them; the paper's text leaves biases out."""

    def __init__(self, classes: int, *, multiplier: float, ceil_mode: bool) -> None:
        super().__init__()
        self.encoder, channels = _stages(3, ENCODER, multiplier)
        self.decoder, channels = _stages(channels, DECODER, multiplier)
        self.classifier = nn.Conv2d(channels, classes, 3, padding=1)
        self.pool = MaxPoolWithIndices(ceil_mode=ceil_mode)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encode_decode(x))
        return logits


class SegNetBasic(_Unpooling):
    """Four 7x7 stages and a decoder without ReLU (sec. 3.1)."""

    def __init__(self, classes: int, *, multiplier: float, ceil_mode: bool) -> None:
        super().__init__()
        C = scaled(BASIC_CHANNELS, multiplier)
        self.encoder = nn.ModuleList(ConvNorm(C if i else 3, C, 7, bias=True) for i in range(BASIC_STAGES))
        self.decoder = nn.ModuleList(ConvNorm(C, C, 7, bias=True, relu=False) for _ in range(BASIC_STAGES))
        self.classifier = nn.Conv2d(C, classes, 1)
        self.pool = MaxPoolWithIndices(ceil_mode=ceil_mode)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encode_decode(local_response_norm(x)))
        return logits


def local_response_norm(x: Tensor) -> Tensor:
    """`nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)` of three channels: a window of five covers all of them."""
    return x / (1.0 + 1e-4 / 5 * (x * x).sum(dim=1, keepdim=True)) ** 0.75


def _stages(inputs: int, widths: tuple[tuple[int, ...], ...], multiplier: float) -> tuple[nn.ModuleList, int]:
    stages = nn.ModuleList()
    for stage in widths:
        layers = nn.Sequential()
        for channels in stage:
            outputs = scaled(channels, multiplier)
            layers.append(ConvNorm(inputs, outputs, 3, bias=True))
            inputs = outputs
        stages.append(layers)
    return stages, inputs


def _radius(stage: nn.Module) -> int:
    """How far the convolutions of a stage see to each side, in pixels of that stage."""
    return sum(conv.kernel_size[0] // 2 for conv in stage.modules() if isinstance(conv, nn.Conv2d))


def _initialise(network: nn.Module) -> None:
    """He et al. by fan-in, biases zero (sec. 3.2; Caffe's `msra`)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
