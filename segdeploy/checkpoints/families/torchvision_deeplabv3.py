"""torchvision's `deeplabv3_resnet50` and `deeplabv3_resnet101`, with or without the auxiliary classifier."""

from collections.abc import Mapping

from segdeploy.checkpoints.families import _resnet_keys
from segdeploy.checkpoints.families._base import Reading, conv_norm
from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights

TITLE = "torchvision's DeepLabv3"
RATES = 3


def recognises(tensors: Mapping[str, Stored]) -> bool:
    needed = ("backbone.conv1.weight", "backbone.layer4.0.conv1.weight", "classifier.0.convs.4.1.weight")
    return all(name in tensors for name in (*needed, "classifier.4.weight"))


def read(weights: Weights) -> Reading:
    tensors = weights.tensors
    has_auxiliary = "aux_classifier.4.weight" in tensors
    modules = {
        **_resnet_keys.stem(("backbone.conv1", "backbone.bn1")),
        **_resnet_keys.stages(tensors, "backbone."),
        **conv_norm("aspp.point", "classifier.0.convs.0.0", "classifier.0.convs.0.1"),
        **conv_norm("aspp.image", "classifier.0.convs.4.1", "classifier.0.convs.4.2"),
        **conv_norm("aspp.project", "classifier.0.project.0", "classifier.0.project.1"),
        **conv_norm("refine.1", "classifier.1", "classifier.2"),
        "classifier": "classifier.4",
    }
    for rate in range(RATES):
        theirs = f"classifier.0.convs.{rate + 1}"
        modules |= conv_norm(f"aspp.atrous.{rate}", f"{theirs}.0", f"{theirs}.1")
    if has_auxiliary:
        modules |= {
            **conv_norm("auxiliary.0", "aux_classifier.0", "aux_classifier.1"),
            "auxiliary.2": "aux_classifier.4",
        }
    return Reading(
        fits=("deeplabv3",),
        variant={
            "head": "torchvision",
            "depth": _resnet_keys.depth(tensors, "backbone."),
            **_resnet_keys.multiplier(tensors, "backbone."),
            **({"auxiliary": True} if has_auxiliary else {}),
        },
        modules=modules,
        count=tensors["classifier.4.weight"].shape[0],
        assumed={"first_dilation": "previous", "stride_in": "3x3", "corners": "half_pixel"},
        size=(520, 520),
    )
