"""mmsegmentation's PSPNet and DeepLabV3 on ResNet-18, 50 and 101 (`-D8`), with the stem of ResNetV1c or of ResNet."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.checkpoints.families import _meta, _resnet_keys
from segdeploy.checkpoints.families._base import Change, Reading, Triple, conv_norm
from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights
from segdeploy.errors import InvalidFileError
from segdeploy.spec import IMAGENET_MEAN, IMAGENET_STD

TITLE = "mmsegmentation's"
PSPNET, DEEPLABV3 = "decode_head.psp_modules.0.1.conv.weight", "decode_head.aspp_modules.0.conv.weight"
BRANCHES, BASIC = 4, (18, 34)
WIDE_HEAD = 512
BRIGHTEST = 255


def recognises(tensors: Mapping[str, Stored]) -> bool:
    has_head = PSPNET in tensors or DEEPLABV3 in tensors
    return has_head and "backbone.layer1.0.conv1.weight" in tensors and "decode_head.conv_seg.weight" in tensors


def read(weights: Weights) -> Reading:
    tensors, config = weights.tensors, _meta.config_text(weights.facts)
    if "backbone.layer2.0.downsample.2.weight" in tensors:
        raise InvalidFileError(
            "its trunk is a ResNetV1d, which pools in its shortcuts; no network of ours does.",
            "Take the ResNetV1c or ResNet variant of the same network.",
        )
    is_pspnet = PSPNET in tensors
    variant = _variant(tensors, is_pspnet=is_pspnet)
    stated = _stated(config, is_basic=variant["depth"] in BASIC)
    head = _pspnet_head() if is_pspnet else _deeplabv3_head()
    auxiliary = {
        **conv_norm("auxiliary.0", "auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn"),
        "auxiliary.2": "auxiliary_head.conv_seg",
    }
    mean, std, is_bgr = _normalisation(config)
    classes, colours = _meta.classes(weights.facts)
    changes = {} if is_pspnet else _concatenation(tensors)
    if is_bgr:
        changes |= _flipped(variant["stem"])
    return Reading(
        fits=("pspnet" if is_pspnet else "deeplabv3",),
        variant={**variant, **stated},
        modules={**_stem(tensors), **_resnet_keys.stages(tensors, "backbone."), **head}
        | (auxiliary if "auxiliary" in variant else {}),
        count=tensors["decode_head.conv_seg.weight"].shape[0],
        changes=changes,
        assumed={
            key: value for key, value in _published(is_basic=variant["depth"] in BASIC).items() if key not in stated
        },
        mean=mean,
        std=std,
        size=_meta.size(config) or (512, 512),
        classes=classes,
        colours=colours,
    )


def _variant(tensors: Mapping[str, Stored], *, is_pspnet: bool) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {
        "depth": _resnet_keys.depth(tensors, "backbone."),
        "stem": _stem_kind(tensors),
        **_resnet_keys.multiplier(tensors, "backbone."),
    }
    if "auxiliary_head.conv_seg.weight" in tensors:
        found["auxiliary"] = True
    if not is_pspnet:
        return {**found, "head": "mmsegmentation"}
    width = round(tensors["decode_head.conv_seg.weight"].shape[1] / float(found.get("multiplier", 1)))
    return found if width == WIDE_HEAD else {**found, "head_width": width}


def _stem_kind(tensors: Mapping[str, Stored]) -> str:
    if "backbone.conv1.weight" in tensors:
        return "7x7"
    if "backbone.stem.6.weight" not in tensors:
        raise InvalidFileError("its trunk has no stem that is known here.", "Take a ResNetV1c or ResNet variant.")
    width = tensors["backbone.layer1.0.conv1.weight"].shape[0]
    return "v1c" if tensors["backbone.stem.6.weight"].shape[0] == width else "deep"


def _stem(tensors: Mapping[str, Stored]) -> dict[str, str]:
    if "backbone.conv1.weight" in tensors:
        return _resnet_keys.stem(("backbone.conv1", "backbone.bn1"))
    return _resnet_keys.stem(*((f"backbone.stem.{conv}", f"backbone.stem.{conv + 1}") for conv in (0, 3, 6)))


def _flipped(stem: str | float) -> dict[str, Change]:
    first = "backbone.conv1.weight" if stem == "7x7" else "backbone.stem.0.weight"
    return {"trunk.stem.0.conv.weight": Change((first,), lambda weight: weight[:, ::-1])}


def _pspnet_head() -> dict[str, str]:
    modules = {**_both("head.0", "decode_head.bottleneck"), "head.2": "decode_head.conv_seg"}
    for grid in range(BRANCHES):
        modules |= _both(f"pyramid.levels.{grid}", f"decode_head.psp_modules.{grid}.1")
    return modules


def _deeplabv3_head() -> dict[str, str]:
    modules = {
        **_both("aspp.image", "decode_head.image_pool.1"),
        **_both("aspp.point", "decode_head.aspp_modules.0"),
        **_both("aspp.project", "decode_head.bottleneck"),
        "classifier": "decode_head.conv_seg",
    }
    for rate in range(1, BRANCHES):
        modules |= _both(f"aspp.atrous.{rate - 1}", f"decode_head.aspp_modules.{rate}")
    return modules


def _both(ours: str, theirs: str) -> dict[str, str]:
    return conv_norm(ours, f"{theirs}.conv", f"{theirs}.bn")


def _concatenation(tensors: Mapping[str, Stored]) -> dict[str, Change]:
    """The image's mean stands first there, and last in ours."""
    source = "decode_head.bottleneck.conv.weight"
    width = tensors[DEEPLABV3].shape[0]

    def reordered(weight: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([weight[:, width:], weight[:, :width]], axis=1)

    return {"aspp.project.conv.weight": Change((source,), reordered)}


def _published(*, is_basic: bool) -> dict[str, str]:
    blocks = {"basic_dilation": "first"} if is_basic else {"stride_in": "3x3"}
    return {"first_dilation": "previous", "corners": "half_pixel", **blocks}


def _stated(config: str, *, is_basic: bool) -> dict[str, str]:
    """The conventions that the configuration inside the file states."""
    found = {}
    if (contracted := re.search(r"contract_dilation\W{1,4}(True|False)", config)) is not None:
        found["first_dilation"] = "previous" if contracted[1] == "True" else "stage"
    if (aligned := re.search(r"align_corners\W{1,4}(True|False)", config)) is not None:
        found["corners"] = "aligned" if aligned[1] == "True" else "half_pixel"
    if not is_basic and (style := re.search(r"style\W{1,4}(pytorch|caffe)", config)) is not None:
        found["stride_in"] = "3x3" if style[1] == "pytorch" else "1x1"
    return found


def _normalisation(config: str) -> tuple[Triple, Triple, bool]:
    """Mean and deviation of RGB in 0..1, and whether the network takes BGR; of ImageNet where nothing is said."""
    mean, std = _meta.three(config, "mean"), _meta.three(config, "std")
    if mean is None or std is None:
        return IMAGENET_MEAN, IMAGENET_STD, False
    is_bgr = re.search(r"(to_rgb|bgr_to_rgb)\W{1,4}False", config) is not None
    return _scaled(mean, is_bgr=is_bgr), _scaled(std, is_bgr=is_bgr), is_bgr


def _scaled(values: Triple, *, is_bgr: bool) -> Triple:
    """Of 0..255 in the file's order, as RGB in 0..1."""
    first, second, third = (value / BRIGHTEST for value in values)
    return (third, second, first) if is_bgr else (first, second, third)
