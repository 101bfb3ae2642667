"""torchvision's classifiers ResNet-18, 34, 50, 101, VGG-16 and VGG-16-BN, and semseg's deep-stem ResNets: encoders."""

from collections.abc import Mapping

import numpy as np

from segdeploy.checkpoints.families import _resnet_keys
from segdeploy.checkpoints.families._base import Change, Reading, conv_norm
from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights

TITLE = "an ImageNet classifier"
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # convolutions in `features`
VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
STAGES = (2, 2, 3, 3, 3)
NARROWEST = 64
EPSILON = 1e-5  # of PyTorch's norm: with a variance of 1 - EPSILON it divides by one


def recognises(tensors: Mapping[str, Stored]) -> bool:
    is_resnet = "conv1.weight" in tensors and "layer4.0.conv1.weight" in tensors
    return is_resnet or any(_convolutions(tensors) == known for known in (VGG16, VGG16_BN))


def read(weights: Weights) -> Reading:
    return _resnet(weights.tensors) if "conv1.weight" in weights.tensors else _vgg(weights.tensors)


def _resnet(tensors: Mapping[str, Stored]) -> Reading:
    is_deep = "conv3.weight" in tensors
    stem = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")] if is_deep else [("conv1", "bn1")]
    return Reading(
        fits=("deeplabv3", "pspnet"),
        is_encoder=True,
        variant={
            "depth": _resnet_keys.depth(tensors, ""),
            "stem": "deep" if is_deep else "7x7",
            **_resnet_keys.multiplier(tensors, ""),
        },
        modules={**_resnet_keys.stem(*stem), **_resnet_keys.stages(tensors, "")},
        assumed={"stride_in": "3x3"},
        unused=("fc.",),
    )


def _convolutions(tensors: Mapping[str, Stored]) -> tuple[int, ...]:
    """The places in `features` that hold convolutions."""
    parts = [name.split(".") for name, stored in tensors.items() if len(stored.shape) == 4]  # noqa: PLR2004 - N, C, H, W
    is_feature = [each for each in parts if each[0] == "features" and len(each) == 3 and each[1].isdecimal()]  # noqa: PLR2004 - features.N.weight
    return tuple(sorted(int(each[1]) for each in is_feature))


def _vgg(tensors: Mapping[str, Stored]) -> Reading:
    places = _convolutions(tensors)
    modules: dict[str, str] = {}
    changes: dict[str, Change] = {}
    ours = [f"encoder.{stage}.{place}" for stage, count in enumerate(STAGES) for place in range(count)]
    for name, place in zip(ours, places, strict=True):
        conv = f"features.{place}"
        if places == VGG16_BN:
            modules |= conv_norm(name, conv, f"features.{place + 1}")
        else:
            modules[f"{name}.conv"] = conv
            changes |= _no_norm(f"{name}.norm", f"{conv}.bias")
    width = tensors["features.0.weight"].shape[0]
    return Reading(
        fits=("segnet",),
        is_encoder=True,
        variant={} if width == NARROWEST else {"multiplier": width / NARROWEST},
        modules=modules,
        changes=changes,
        unused=("classifier.",),
    )


def _no_norm(ours: str, bias: str) -> dict[str, Change]:
    """A norm that changes nothing: VGG-16 has none."""
    values = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1 - EPSILON}
    return {
        f"{ours}.{name}": Change((bias,), lambda each, value=value: np.full(each.size, value))
        for name, value in values.items()
    }
