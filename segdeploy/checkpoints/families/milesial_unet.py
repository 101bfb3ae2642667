"""U-Net of milesial/Pytorch-UNet, in its three generations.

That of today, that of before December 2021 with its biases, and that of before October 2019 with its names; each with
transposed convolutions or bilinear up-sampling. It takes RGB in 0..1; one class is a sigmoid at 0.5.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from segdeploy.checkpoints.families._base import Change, Reading, conv_norm
from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights

TITLE = "milesial's U-Net"
LEVELS = 4
NARROWEST = 64
FIRST, FIRST_OF_OLD = "inc.double_conv.0.weight", "inc.conv.conv.0.weight"


def recognises(tensors: Mapping[str, Stored]) -> bool:
    is_today = FIRST in tensors and "up4.conv.double_conv.3.weight" in tensors and "outc.conv.weight" in tensors
    return is_today or (FIRST_OF_OLD in tensors and "up4.conv.conv.3.weight" in tensors)


def read(weights: Weights) -> Reading:
    tensors = weights.tensors
    pairs = _pairs(is_old=FIRST_OF_OLD in tensors)
    modules, changes = {"classifier": "outc.conv"}, {}
    for ours, theirs in pairs.items():
        for place, (conv, norm) in enumerate(((0, 1), (3, 4))):
            modules |= conv_norm(f"{ours}.{place}", f"{theirs}.{conv}", f"{theirs}.{norm}")
            if f"{theirs}.{conv}.bias" in tensors:
                sources = (f"{theirs}.{norm}.running_mean", f"{theirs}.{conv}.bias")
                changes[f"{ours}.{place}.norm.running_mean"] = Change(sources, _without_bias)
    is_transposed = "up1.up.weight" in tensors
    if is_transposed:
        modules |= {f"rise.{level}": f"up{level + 1}.up" for level in range(LEVELS)}
    width = tensors[f"{pairs['down.0']}.0.weight"].shape[0]
    decoder = _decoder(tensors, pairs)
    return Reading(
        fits=("unet",),
        variant={
            **({} if is_transposed else {"up": "bilinear"}),
            **({} if decoder == "mirrored" else {"decoder": decoder}),
            **({} if width == NARROWEST else {"multiplier": width / NARROWEST}),
        },
        modules=modules,
        count=tensors["outc.conv.weight"].shape[0],
        changes=changes,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def _pairs(*, is_old: bool) -> dict[str, str]:
    """Where the two convolutions of each stage lie: ours to theirs."""
    pair = "conv" if is_old else "double_conv"
    pool = "mpconv.1.conv" if is_old else "maxpool_conv.1.double_conv"
    return {
        "down.0": f"inc.conv.{pair}" if is_old else f"inc.{pair}",
        **{f"down.{level}": f"down{level}.{pool}" for level in range(1, LEVELS + 1)},
        **{f"up.{level}": f"up{level + 1}.conv.{pair}" for level in range(LEVELS)},
    }


def _decoder(tensors: Mapping[str, Stored], pairs: Mapping[str, str]) -> str:
    """How the decoder narrows; the widths of its first stage tell."""
    bottom = tensors[f"{pairs['down.4']}.3.weight"].shape[0]
    above = tensors[f"{pairs['down.3']}.3.weight"].shape[0]
    middle, last = (tensors[f"{pairs['up.0']}.{conv}.weight"].shape[0] for conv in (0, 3))
    if bottom != above:
        return "mirrored"
    return "narrow" if middle == last else "tapered"


def _without_bias(mean: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
    """A convolution's bias before a norm moves its mean."""
    moved: NDArray[Any] = mean - bias
    return moved
