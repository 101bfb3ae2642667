"""What a file of weights is that no family takes, by the names of its tensors."""

import re
from collections.abc import Iterable

_KINDS = (
    (r"backbone\.0\.0\.weight|backbone\.low|classifier\.cbr\.", "a DeepLabv3 or LR-ASPP on MobileNetV3 (torchvision)"),
    (r"backbone\.layer4.*|classifier\.4\.weight", "an FCN on ResNet (torchvision)"),
    (r"(detail|segment|bga)\.|cp\.resnet\.|ffm\.conv", "a BiSeNet"),
    (r"segmentation_head\.0\.", "a network of segmentation_models.pytorch"),
    (r"segformer\.|decode_head\.linear_c|decode_head\.linear_fuse", "a SegFormer"),
    (r"decode_head\.(sep_bottleneck|c1_bottleneck)", "a DeepLabv3+ of mmsegmentation"),
    (r"decode_head\.\d+\.|decode_head\.(object_context|spatial_gather)", "an OCRNet of mmsegmentation"),
    (r"decode_head\.(fpn_convs|lateral_convs)", "a UPerNet of mmsegmentation"),
    (r"decode_head\.conv_seg\.", "another network of mmsegmentation"),
    (r"(stage2|transition1)\.0\.", "an HRNet"),
    (r"conv0_[1-4]\.", "a U-Net++"),
    (r"down[1-5]\.conv[1-3]\.cbr_unit\.", "a SegNet of pytorch-semseg, whose last layer has a norm and a ReLU"),
    (r"(blocks|layers|encoder\.layer)\.0\.(attn|blocks|attention)\.", "a transformer"),
    (r"(features|layers)\.\d+\.(conv|block|0)\.", "a mobile classifier (MobileNet, EfficientNet or alike)"),
    (r"features\.0\.weight", "a VGG of another depth than 16"),
    (r"(\d+|model\.\d+)\.(cv1|m\.0|conv)\.", "a YOLO"),
    (r"(fc|classifier|head)\.weight", "a classifier"),
)


def named(names: Iterable[str]) -> str:
    """What a network with tensors of these names is, in words."""
    known = list(names)
    return next(
        (kind for pattern, kind in _KINDS if any(re.match(pattern, name) for name in known)), "a network unknown here"
    )
