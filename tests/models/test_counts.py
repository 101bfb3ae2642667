"""Parameter counts against those that were computed from the papers' tables, layer by layer."""

from typing import Any

import pytest
import torch

from segdeploy import models

CLASSES = (11, 19, 21)
COUNTS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("segnet", {}, (29_449_355, 29_453_971, 29_455_125)),
    ("segnet", {"form": "basic"}, (1_416_587, 1_417_107, 1_417_237)),
    ("unet", {}, (31_038_283, 31_038_803, 31_038_933)),
    ("unet", {"form": "paper"}, (31_032_395, 31_032_915, 31_033_045)),
    ("pspnet", {"depth": 50}, (46_711_243, 46_715_347, 46_716_373)),
    ("pspnet", {"depth": 50, "auxiliary": True}, (49_073_878, 49_080_038, 49_081_578)),
    ("pspnet", {"depth": 101}, (65_703_371, 65_707_475, 65_708_501)),
    ("pspnet", {"depth": 101, "auxiliary": True}, (68_066_006, 68_072_166, 68_073_706)),
    ("deeplabv3", {"head": "torchvision"}, (39_636_299, 39_638_355, 39_638_869)),
    ("deeplabv3", {"head": "torchvision", "auxiliary": True}, (41_998_934, 42_003_046, 42_004_074)),
    ("deeplabv3", {"head": "torchvision", "depth": 101}, (58_628_427, 58_630_483, 58_630_997)),
    ("deeplabv3", {"head": "torchvision", "depth": 101, "auxiliary": True}, (60_991_062, 60_995_174, 60_996_202)),
    ("deeplabv3", {}, (39_045_963, 39_048_019, 39_048_533)),
    ("deeplabv3", {"depth": 101}, (58_038_091, 58_040_147, 58_040_661)),
    ("deeplabv3", {"depth": 101, "stem": "deep"}, (58_161_867, 58_163_923, 58_164_437)),
]


@pytest.mark.parametrize(
    "name, variant, expected", COUNTS, ids=[f"{name}-{'-'.join(map(str, v.values()))}" for name, v, _ in COUNTS]
)
def test_the_parameters_are_those_of_the_paper_to_the_unit(
    name: str, variant: dict[str, Any], expected: tuple[int, ...]
) -> None:
    """A bias too many, a stem of other width or a missing 3x3 shows here before any training does."""
    assert tuple(parameters(name, classes, **variant) for classes in CLASSES) == expected


def test_torchvisions_published_counts_are_met() -> None:
    """The `num_params` torchvision publishes for its two DeepLabv3 checkpoints: a source of its own."""
    counts = [parameters("deeplabv3", 21, head="torchvision", depth=depth, auxiliary=True) for depth in (50, 101)]
    assert counts == [42_004_074, 60_996_202]


def test_segnets_encoder_is_vgg16s() -> None:
    """VGG16's thirteen convolutions hold 14,714,688 weights and biases, so its weights fit."""
    with torch.device("meta"):
        network = models.build("segnet", 11)
    convolutions = [conv for conv in network.get_submodule("encoder").modules() if isinstance(conv, torch.nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(p.numel() for conv in convolutions for p in conv.parameters()) == 14_714_688


def parameters(name: str, classes: int, **variant: Any) -> int:  # noqa: ANN401 - what `build` takes
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in models.build(name, classes, **variant).parameters())
