"""Checkpoints of other people: the same logits as their own networks, and every convention told apart or said."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_networks as theirs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import segdeploy
from segdeploy import ImportOptions, ImportReport
from segdeploy.checkpoints import checkpoint, families, foreign, opening
from segdeploy.errors import InvalidFileError

SIZES = ((65, 65), (49, 73))
CLASSES = 5
Save = Callable[[nn.Module, Path], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of a family, the wrapping it is customarily saved in, and what it is to us."""

    family: str
    build: Callable[[], Any]
    save: Save
    model: str
    variant: dict[str, Any]


def _torchvision(network: nn.Module, path: Path) -> None:
    """As torchvision's reference training saves."""
    state = network.state_dict()
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.02)}, path)


def _bare(network: nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path)


def _semseg(network: nn.Module, path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)


def _mmsegmentation(network: nn.Module, path: Path) -> None:
    meta = {
        "CLASSES": tuple(f"thing {index}" for index in range(CLASSES)),
        "PALETTE": [[index, 9, 8] for index in range(CLASSES)],
    }
    torch.save({"meta": {"mmseg_version": "0.30", **meta}, "state_dict": network.state_dict()}, path)


def _milesial(network: nn.Module, path: Path) -> None:
    torch.save({**network.state_dict(), "mask_values": list(range(CLASSES))}, path)


def _lightning(network: nn.Module, path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"lr": np.float64(0.1)}, "callbacks": {}}, path)


def _legacy(network: nn.Module, path: Path) -> None:
    """The format of before PyTorch 1.6, without the counters that came with 0.4.1."""
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _safetensors(network: nn.Module, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def _npz(network: nn.Module, path: Path) -> None:
    blobs: Any = network.blobs
    arrays = {f"{layer}.{place}": blob.numpy() for layer, pair in blobs.items() for place, blob in enumerate(pair)}
    with path.open("wb") as file:
        np.savez(file, **arrays)


NARROW = {"multiplier": 0.125}
MM = {"multiplier": 0.125, "auxiliary": True, "first_dilation": "previous"}
CASES = {
    "torchvision-50": Case(
        "torchvision's DeepLabv3",
        lambda: theirs.TorchvisionDeepLabV3(CLASSES, 50),
        _torchvision,
        "deeplabv3",
        {"head": "torchvision", "depth": 50, "auxiliary": True},
    ),
    "torchvision-101-bare": Case(
        "torchvision's DeepLabv3",
        lambda: theirs.TorchvisionDeepLabV3(CLASSES, 101, auxiliary=False),
        _bare,
        "deeplabv3",
        {"head": "torchvision", "depth": 101},
    ),
    "torchvision-50-lightning": Case(
        "torchvision's DeepLabv3", lambda: theirs.TorchvisionDeepLabV3(CLASSES, 50), _lightning, "deeplabv3", {}
    ),
    "torchvision-50-safetensors": Case(
        "torchvision's DeepLabv3", lambda: theirs.TorchvisionDeepLabV3(CLASSES, 50), _safetensors, "deeplabv3", {}
    ),
    "semseg-50": Case(
        "semseg's PSPNet", lambda: theirs.SemsegPspNet(CLASSES, 50), _semseg, "pspnet", {"auxiliary": True}
    ),
    "semseg-101": Case("semseg's PSPNet", lambda: theirs.SemsegPspNet(CLASSES, 101), _semseg, "pspnet", {"depth": 101}),
    **{
        f"mmsegmentation-{head}-{depth}": Case(
            "mmsegmentation's",
            lambda head=head, depth=depth: theirs.MmSegmentor(CLASSES, depth, head),  # type: ignore[misc]
            _mmsegmentation,
            "pspnet" if head == "psp" else "deeplabv3",
            {"stem": "v1c", "auxiliary": True},
        )
        for head in ("psp", "aspp")
        for depth in (18, 50, 101)
    },
    "mmsegmentation-7x7": Case(
        "mmsegmentation's",
        lambda: theirs.MmSegmentor(CLASSES, 50, "psp", stem="7x7"),
        _mmsegmentation,
        "pspnet",
        {"stem": "7x7"},
    ),
    **{
        f"milesial-{generation}-{'bilinear' if bilinear else 'transposed'}": Case(
            "milesial's U-Net",
            lambda generation=generation, bilinear=bilinear: theirs.MilesialUNet(
                CLASSES, generation, bilinear=bilinear
            ),  # type: ignore[misc]
            _milesial if generation == 3 else _legacy,
            "unet",
            {},
        )
        for generation in (1, 2, 3)
        for bilinear in (False, True)
    },
    "caffe-segnet": Case("Caffe's SegNet", lambda: theirs.CaffeSegNet(CLASSES, basic=False), _npz, "segnet", {}),
    "caffe-segnet-basic": Case(
        "Caffe's SegNet", lambda: theirs.CaffeSegNet(CLASSES, basic=True), _npz, "segnet", {"form": "basic"}
    ),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def built(build: Callable[[], Any]) -> Any:  # noqa: ANN401 - a network of theirs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return theirs.with_statistics(build())


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def difference(network: nn.Module, path: Path, *, is_bgr: bool = False) -> float:
    """The largest difference of the logits in units of the largest logit, or of one; infinite where a class differs."""
    ours, worst = segdeploy.network(path), 0.0
    for height, width in SIZES:
        x = image(height, width) * (64 if is_bgr else 1) + (128 if is_bgr else 0)
        with torch.inference_mode():
            expected, found = network(x.flip(1) if is_bgr else x), ours(x)
        assert found.shape == expected.shape
        if not torch.equal(expected.argmax(1), found.argmax(1)):
            return float("inf")
        worst = max(worst, float((expected - found).abs().max() / max(1.0, float(expected.abs().max()))))
    return worst


def imported(network: nn.Module, save: Save, **options: Any) -> ImportReport:  # noqa: ANN401 - of ImportOptions
    save(network, Path("theirs.pth"))
    return segdeploy.import_checkpoint("theirs.pth", name="own", options=ImportOptions(**options), overwrite=True)


@pytest.mark.parametrize("name", CASES)
def test_the_logits_are_those_of_their_own_network(name: str) -> None:
    case = CASES[name]
    network = built(case.build)
    report = imported(network, case.save)
    assert report.keys.family == case.family
    assert report.spec.name == "own"
    assert report.spec.model == case.model
    assert len(report.spec.classes) == CLASSES
    assert {**NARROW, **case.variant}.items() <= {"depth": 50, **report.spec.variant}.items()
    assert report.keys.left_over == ()
    assert all(each.endswith("num_batches_tracked") for each in report.keys.missing)
    assert difference(network, report.checkpoint, is_bgr=case.save is _npz) <= 1e-5
    counts = checkpoint.read(report.checkpoint).origin.imported
    assert counts is not None
    assert (counts.family, counts.file) == (case.family, "theirs.pth")
    assert counts.taken + counts.renamed > 0


def test_every_family_has_its_networks_here() -> None:
    titles = {families.family(name).TITLE for name in families.names()}
    assert titles == {case.family for case in CASES.values()} | {"an ImageNet classifier"}


CONVENTIONS: dict[str, tuple[Callable[[], Any], Save, dict[str, Any]]] = {
    "torchvision, stride in the 1x1": (
        lambda: theirs.TorchvisionDeepLabV3(CLASSES, style="1x1"),
        _torchvision,
        {"stride_in": "1x1"},
    ),
    "torchvision, first block dilated": (
        lambda: theirs.TorchvisionDeepLabV3(CLASSES, first="stage"),
        _torchvision,
        {"first_dilation": "stage"},
    ),
    "torchvision, aligned corners": (
        lambda: theirs.TorchvisionDeepLabV3(CLASSES, corners=True),
        _torchvision,
        {"corners": "aligned"},
    ),
    "semseg, stride in the 1x1": (
        lambda: theirs.SemsegPspNet(CLASSES, style="1x1"),
        _semseg,
        {"stride_in": "1x1"},
    ),
    "semseg, first block as torchvision": (
        lambda: theirs.SemsegPspNet(CLASSES, first="previous"),
        _semseg,
        {"first_dilation": "previous"},
    ),
    "semseg, half pixels": (lambda: theirs.SemsegPspNet(CLASSES, corners=False), _semseg, {"corners": "half_pixel"}),
    "mmsegmentation, first block dilated": (
        lambda: theirs.MmSegmentor(CLASSES, 50, "aspp", first="stage"),
        _mmsegmentation,
        {"first_dilation": "stage"},
    ),
    "mmsegmentation, basic blocks dilated twice": (
        lambda: theirs.MmSegmentor(CLASSES, 18, "psp", second="both"),
        _mmsegmentation,
        {"basic_dilation": "both"},
    ),
    "mmsegmentation, aligned corners": (
        lambda: theirs.MmSegmentor(CLASSES, 18, "psp", corners=True),
        _mmsegmentation,
        {"corners": "aligned"},
    ),
    "Caffe, floor": (lambda: theirs.CaffeSegNet(CLASSES, basic=True, ceil_mode=False), _npz, {"ceil_mode": False}),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_that_keys_do_not_tell_is_said_and_can_be_given(name: str) -> None:
    """The keys and shapes are the same, and the logits are others: a file that is taken in silence would be wrong."""
    build, save, option = CONVENTIONS[name]
    network = built(build)
    (convention,) = option
    silent = imported(network, save)
    assert convention in silent.keys.assumed
    assert difference(network, silent.checkpoint, is_bgr=save is _npz) > 1e-3
    told = imported(network, save, variant=option)
    assert convention not in told.keys.assumed
    assert difference(network, told.checkpoint, is_bgr=save is _npz) <= 1e-5


def test_conventions_that_the_configuration_states_are_taken_from_it() -> None:
    """OpenMMLab's files carry their configuration as text; it is searched, and never run."""
    network = built(lambda: theirs.MmSegmentor(CLASSES, 50, "psp", corners=True, first="stage", style="1x1"))
    config = (
        "norm = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 4.0], to_rgb=False)\n"
        "model = dict(backbone=dict(contract_dilation=False, style='caffe'), decode_head=dict(align_corners=True))\n"
        "crop_size = (256, 512)\n"
    )
    torch.save({"meta": {"config": config}, "state_dict": network.state_dict()}, "theirs.pth")
    report = segdeploy.import_checkpoint("theirs.pth", name="own")
    assert report.keys.assumed == {}
    assert (report.spec.height, report.spec.width) == (256, 512)
    assert report.spec.mean == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))
    assert report.spec.std == pytest.approx((4 / 255, 2 / 255, 1 / 255))
    x = image(65, 65)
    with torch.inference_mode():
        expected = network(x.flip(1))
        found = segdeploy.network(report.checkpoint)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["mmsegmentation, first block dilated", "semseg, half pixels", "Caffe, floor"])
def test_a_file_is_taken_again_as_it_was_taken(name: str) -> None:
    """A convention that was given may be the network's own default: the family's must not come back for it."""
    build, save, option = CONVENTIONS[name]
    save(built(build), Path("theirs.pth"))
    first = foreign.read(Path("theirs.pth"), ImportOptions(variant=option))
    assert opening.read_again(Path("theirs.pth"), first.spec).spec == first.spec


RESNET_152: dict[str, tuple[int, ...]] = {
    f"layer{stage}.{block}.conv{conv}.weight": (8, 8, 1, 1)
    for stage, blocks in enumerate((3, 8, 36, 3), start=1)
    for block in range(blocks)
    for conv in (1, 2, 3)
}
RELATIVES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "ResNet-152": ({**RESNET_152, "conv1.weight": (8, 3, 7, 7)}, "(3, 8, 36, 3) bottleneck blocks"),
    "ResNetV1d": (
        {
            "decode_head.psp_modules.0.1.conv.weight": (8, 8, 1, 1),
            "decode_head.conv_seg.weight": (8, 8, 1, 1),
            "backbone.layer1.0.conv1.weight": (8, 8, 1, 1),
            "backbone.layer2.0.downsample.2.weight": (8,),
        },
        "ResNetV1d, which pools in its shortcuts",
    ),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_is_refused_with_what_it_is(name: str) -> None:
    shapes, says = RELATIVES[name]
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, "relative.pth")
    with pytest.raises(InvalidFileError) as refused:
        segdeploy.import_checkpoint("relative.pth", name="own")
    assert says in refused.value.what
