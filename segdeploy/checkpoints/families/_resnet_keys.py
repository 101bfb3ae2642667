"""The ResNet trunk as torchvision names it, which semseg and mmsegmentation do too."""

import re
from collections.abc import Mapping

from segdeploy.checkpoints.families._base import conv_norm
from segdeploy.checkpoints.reading import Stored
from segdeploy.errors import InvalidFileError

DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
}
NARROWEST = 64  # channels of layer1 in the paper
OTHER = "Take one of ResNet-18, 34, 50 or 101."


def blocks(tensors: Mapping[str, Stored], prefix: str) -> tuple[int, ...]:
    """How many blocks each of the four stages has."""
    found = [re.match(rf"{re.escape(prefix)}layer([1-4])\.(\d+)\.conv1\.weight$", name) for name in tensors]
    stages = [(int(each[1]), int(each[2])) for each in found if each is not None and len(each[2]) < 4]  # noqa: PLR2004 - digits
    return tuple(1 + max((block for stage, block in stages if stage == level), default=-1) for level in (1, 2, 3, 4))


def depth(tensors: Mapping[str, Stored], prefix: str) -> int:
    """18, 34, 50 or 101. Raise InvalidFileError for another."""
    counts = blocks(tensors, prefix)
    kind = "bottleneck" if f"{prefix}layer1.0.conv3.weight" in tensors else "basic"
    if (kind, counts) not in DEPTHS:
        raise InvalidFileError(f"its trunk has {counts} {kind} blocks, which no network of ours has.", OTHER)
    return DEPTHS[kind, counts]


def multiplier(tensors: Mapping[str, Stored], prefix: str) -> dict[str, float]:
    """The option that builds a trunk so wide; none for the widths of the paper."""
    width = tensors[f"{prefix}layer1.0.conv1.weight"].shape[0]
    return {} if width == NARROWEST else {"multiplier": width / NARROWEST}


def stages(tensors: Mapping[str, Stored], prefix: str) -> dict[str, str]:
    """Our modules of layer1 to layer4."""
    found: dict[str, str] = {}
    convolutions = (1, 2, 3) if f"{prefix}layer1.0.conv3.weight" in tensors else (1, 2)
    for stage, count in enumerate(blocks(tensors, prefix), start=1):
        for block in range(count):
            ours, theirs = f"trunk.layer{stage}.{block}", f"{prefix}layer{stage}.{block}"
            for number in convolutions:
                found |= conv_norm(f"{ours}.conv{number}", f"{theirs}.conv{number}", f"{theirs}.bn{number}")
            if f"{theirs}.downsample.0.weight" in tensors:
                found |= conv_norm(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return found


def stem(*pairs: tuple[str, str]) -> dict[str, str]:
    """Our modules of the stem, from the names of each convolution and its norm."""
    found: dict[str, str] = {}
    for index, (conv, norm) in enumerate(pairs):
        found |= conv_norm(f"trunk.stem.{index}", conv, norm)
    return found
