"""PSPNet of hszhao/semseg, the authors' PyTorch code: ResNet-50 or 101 with its deep stem."""

from collections.abc import Mapping

from segdeploy.checkpoints.families import _resnet_keys
from segdeploy.checkpoints.families._base import Reading, conv_norm
from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights

TITLE = "semseg's PSPNet"
BINS = 4
CITYSCAPES, CITYSCAPES_SIDE, SIDE = 19, 713, 473  # what the authors train at


def recognises(tensors: Mapping[str, Stored]) -> bool:
    return all(name in tensors for name in ("layer0.0.weight", "ppm.features.0.1.weight", "cls.4.weight"))


def read(weights: Weights) -> Reading:
    tensors = weights.tensors
    has_auxiliary = "aux.4.weight" in tensors
    modules = {
        **_resnet_keys.stem(*((f"layer0.{conv}", f"layer0.{conv + 1}") for conv in (0, 3, 6))),
        **_resnet_keys.stages(tensors, ""),
        **conv_norm("head.0", "cls.0", "cls.1"),
        "head.2": "cls.4",
    }
    for grid in range(BINS):
        modules |= conv_norm(f"pyramid.levels.{grid}", f"ppm.features.{grid}.1", f"ppm.features.{grid}.2")
    if has_auxiliary:
        modules |= {**conv_norm("auxiliary.0", "aux.0", "aux.1"), "auxiliary.2": "aux.4"}
    count = tensors["cls.4.weight"].shape[0]
    side = CITYSCAPES_SIDE if count == CITYSCAPES else SIDE
    return Reading(
        fits=("pspnet",),
        variant={
            "depth": _resnet_keys.depth(tensors, ""),
            **_resnet_keys.multiplier(tensors, ""),
            **({"auxiliary": True} if has_auxiliary else {}),
        },
        modules=modules,
        count=count,
        assumed={"first_dilation": "stage", "stride_in": "3x3", "corners": "aligned"},
        size=(side, side),
    )
