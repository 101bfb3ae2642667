"""U-Net (Ronneberger, Fischer, Brox, arXiv:1505.04597).

Default: padded convolutions with batch normalisation, as most trained checkpoints have them. `form="paper"`: valid
convolutions, whose class map is 92 pixels smaller on each side than the image. `up` and `decoder` are of the padded
form.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdeploy.blocks import ConvNorm, Network, resize_bilinear, scaled
from segdeploy.errors import InvalidRequestError

WIDTHS = (64, 128, 256, 512, 1024)
UPS = ("transposed", "bilinear")
WIDTHS_UP = {  # of the two convolutions of each stage of the decoder, from the bottom up
    "mirrored": ((512, 512), (256, 256), (128, 128), (64, 64)),
    "tapered": ((512, 256), (256, 128), (128, 64), (64, 64)),
    "narrow": ((256, 256), (128, 128), (64, 64), (64, 64)),
}
PAPER_MARGIN = 92
PAPER_STEP, PAPER_OFFSET, PAPER_LEAST = 16, 60, 188  # sides 16k + 60: every pooled map is even


def build(
    classes: int,
    *,
    form: Literal["padded", "paper"] = "padded",
    multiplier: float = 1.0,
    up: Literal["transposed", "bilinear"] = "transposed",
    decoder: Literal["mirrored", "tapered", "narrow"] = "mirrored",
) -> Network:
    """`up`: transposed convolutions, or bilinear with aligned corners. `decoder`: how wide it is, see `WIDTHS_UP`.

    "tapered" and "narrow" end the encoder at half the width, as the bilinear networks of milesial/Pytorch-UNet do.
    """
    if up not in UPS or decoder not in WIDTHS_UP:
        raise InvalidRequestError(
            f"U-Net has no up={up!r} with decoder={decoder!r}.",
            f"Choose up={', '.join(UPS)} and decoder={', '.join(WIDTHS_UP)}.",
        )
    if form == "padded":
        return UNet(classes, multiplier=multiplier, up=up, decoder=decoder)
    if form == "paper":
        return PaperUNet(classes, multiplier=multiplier)
    raise InvalidRequestError(f"U-Net has no form {form!r}.", "Choose form=padded or form=paper.")


class UNet(Network):
    """Padded 3x3 convolutions with batch norm, up-sampling by two, concatenation (skip, upsampled)."""

    def __init__(self, classes: int, *, multiplier: float, up: str, decoder: str) -> None:
        super().__init__()
        widths = [scaled(width, multiplier) for width in WIDTHS]
        if decoder != "mirrored":
            widths[-1] = widths[-2]
        up_widths = [(scaled(middle, multiplier), scaled(last, multiplier)) for middle, last in WIDTHS_UP[decoder]]
        below = [widths[-1], *(last for _, last in up_widths[:-1])]
        skips = widths[-2::-1]
        pairs = list(zip([3, *widths], widths, strict=False))
        self.down = nn.ModuleList(_padded_pair(inputs, outputs, outputs) for inputs, outputs in pairs)
        self.rise = nn.ModuleList(_rise(up, *sizes) for sizes in zip(below, skips, strict=True))
        raised = skips if up == "transposed" else below
        inputs = [channels + skip for channels, skip in zip(raised, skips, strict=True)]
        self.up = nn.ModuleList(_padded_pair(each, *pair) for each, pair in zip(inputs, up_widths, strict=True))
        self.classifier = nn.Conv2d(up_widths[-1][1], classes, 1)

    def check_size(self, height: int, width: int) -> None:
        self._require_at_least(2 ** (len(WIDTHS) - 1), height, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down[0](x)
        skips = [x]
        for stage in self.down[1:]:
            x = stage(F.max_pool2d(x, 2))
            skips.append(x)
        for rise, stage, skip in zip(self.rise, self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat([skip, _padded_to(rise(x), skip)], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


class PaperUNet(Network):
    """Valid convolutions with biases and no normalisation (Fig. 1); concatenation (upsampled, cropped skip)."""

    margin = PAPER_MARGIN

    def __init__(self, classes: int, *, multiplier: float) -> None:
        super().__init__()
        widths = [scaled(width, multiplier) for width in WIDTHS]
        pairs = list(zip([3, *widths], widths, strict=False))
        self.down = nn.ModuleList(_valid_pair(inputs, outputs) for inputs, outputs in pairs)
        self.rise = nn.ModuleList(nn.ConvTranspose2d(wide, w, 2, 2) for wide, w in _descending(widths))
        self.up = nn.ModuleList(_valid_pair(2 * w, w) for _, w in _descending(widths))
        self.classifier = nn.Conv2d(widths[0], classes, 1)
        self.dropout = nn.Dropout(0.5)  # at the end of the contracting path (sec. 3.1)
        _initialise(self)

    def check_size(self, height: int, width: int) -> None:
        if all(side >= PAPER_LEAST and (side - PAPER_OFFSET) % PAPER_STEP == 0 for side in (height, width)):
            return
        raise InvalidRequestError(
            f"the U-Net of the paper takes sides of 16k + 60, at least {PAPER_LEAST}, not {height}x{width}.",
            f"Give --size {_next_valid(height)}x{_next_valid(width)}.",
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down[0](x)
        skips = [x]
        for level, stage in enumerate(self.down[1:], start=1):
            x = stage(F.max_pool2d(x, 2))
            x = self.dropout(x) if level >= len(self.rise) - 1 else x
            skips.append(x)
        for rise, stage, skip in zip(self.rise, self.up, skips[-2::-1], strict=True):
            raised = F.relu(rise(x))
            x = stage(torch.cat([raised, _cropped_to(skip, raised)], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


def _descending(widths: list[int]) -> list[tuple[int, int]]:
    """Neighbouring widths from the bottom up: (1024, 512), (512, 256), ..."""
    return list(zip(widths[:0:-1], widths[-2::-1], strict=True))


def _padded_pair(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConvNorm(inputs, middle, 3), ConvNorm(middle, outputs, 3))


class _Doubled(nn.Module):
    """(N, C, h, w) -> (N, C, 2h, 2w), bilinear, its corners on those of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return resize_bilinear(x, (2 * x.shape[2], 2 * x.shape[3]), align_corners=True)


def _rise(up: str, inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 2, 2) if up == "transposed" else _Doubled()


def _valid_pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, outputs, 3), nn.ReLU())


def _padded_to(x: Tensor, skip: Tensor) -> Tensor:
    down, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
    if down == right == 0:
        return x
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


def _cropped_to(skip: Tensor, x: Tensor) -> Tensor:
    H, W = x.shape[-2:]
    top, left = (skip.shape[2] - H) // 2, (skip.shape[3] - W) // 2
    return skip[..., top : top + H, left : left + W]


def _next_valid(side: int) -> int:
    steps = -(-(side - PAPER_OFFSET) // PAPER_STEP)
    return max(PAPER_LEAST, steps * PAPER_STEP + PAPER_OFFSET)


def _initialise(network: nn.Module) -> None:
    """Gaussian of deviation sqrt(2 / N), N the fan-in (sec. 3)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
