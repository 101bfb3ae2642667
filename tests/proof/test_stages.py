"""The proof must hold for the same network and break for every way in which another network gets deployed."""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import known
from numpy.typing import NDArray

from segdeploy import blocks, models, workspace
from segdeploy.blocks import Network
from segdeploy.certificate import Certificate, Stage
from segdeploy.checkpoints import checkpoint
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, pytorch
from segdeploy.progress import silent
from segdeploy.proof import stages
from segdeploy.proof.limits import GivenLimits
from segdeploy.proof.samples import FileSamples
from segdeploy.proof.stages import StageRun
from segdeploy.proof.torch_reference import TorchReference
from segdeploy.spec import Spec

EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei"


class Candidate(pytorch.TorchEngine):
    """A network held in memory, to plant faults in."""

    def __init__(self, network: Network, spec: Spec) -> None:
        super().__init__(models.deployed(network, spec).eval(), spec, device="cpu")


def make(name: str) -> tuple[Network, Spec]:
    """The packaged network: an untrained one may draw one class everywhere, whatever is done to it."""
    return checkpoint.load(workspace.PACKAGED / f"{name}.safetensors")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Three small real pictures with their truths."""
    names = (EXAMPLES / "val.txt").read_text(encoding="utf-8").split()[:3]
    return [Picture(EXAMPLES / "images" / name, EXAMPLES / "masks" / name) for name in names]


@functools.cache
def reference(name: str, spec: str) -> TorchReference:
    """It keeps the masks it drew: all tests of a network look at the same pictures."""
    return TorchReference(make(name)[0], Spec.from_json(spec))


def certified(spec: Spec, run: StageRun, pictures: list[Picture]) -> Certificate:
    about = dataclasses.replace(checkpoint.read(workspace.PACKAGED / f"{spec.model}.safetensors"), spec=spec)
    return stages.certify(
        about, reference(spec.model, spec.to_json()), [run], FileSamples(pictures, spec), progress=silent
    )


def prove(spec: Spec, engine: Engine | None, pictures: list[Picture]) -> Certificate:
    run = StageRun("engine", engine, reason=None if engine else "no GPU here")
    return certified(spec, run, pictures)


@pytest.mark.parametrize("name", models.names())
def test_the_same_network_is_proven(name: str, pictures: list[Picture]) -> None:
    network, spec = make(name)
    report = prove(spec, Candidate(copy.deepcopy(network), spec), pictures)
    stage = report.stages[0]
    assert report.passed
    assert stage.agreement == 1.0
    assert stage.miou_change == 0.0
    assert known(stage.near_ties) < 0.001


def bgr(network: Network) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight = torch.nn.Parameter(module.weight.flip(1))
            return


def twice_the_scale(network: Network) -> None:
    layers = [module for module in network.modules() if isinstance(module, blocks.ConvNorm)]
    layer = layers[len(layers) // 2]  # the last one's scale is the scale of the logits: it hardly moves a mask
    layer.fold()
    for parameter in layer.get_submodule("conv").parameters():
        parameter.data.mul_(2)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("fault", [bgr, twice_the_scale])
def test_another_network_is_not_proven(name: str, fault: Any, pictures: list[Picture]) -> None:  # noqa: ANN401
    """Faults that export tools ship: swapped channels, a wrong scale."""
    network, spec = make(name)
    broken = copy.deepcopy(network)
    fault(broken)
    report = prove(spec, Candidate(broken, spec), pictures)
    assert not report.passed
    assert report.first_failing_stage == "engine"
    assert "no near-tie" in known(report.stages[0].reason)


@pytest.mark.parametrize("name", models.names())
def test_a_wrong_mean_is_not_proven(name: str, pictures: list[Picture]) -> None:
    network, spec = make(name)
    shifted = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5))
    assert not prove(spec, Candidate(copy.deepcopy(network), shifted), pictures).passed


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3"])
def test_the_other_align_corners_is_not_proven(name: str, pictures: list[Picture]) -> None:
    network, spec = make(name)
    other = copy.deepcopy(network)
    other.align_corners = not network.align_corners  # type: ignore[assignment]
    assert not prove(spec, Candidate(other, spec), pictures).passed


def test_an_equality_mask_in_place_of_unpooling_is_not_proven(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`x == upsample(max)` repeats a value wherever it ties; quantised pictures tie a lot."""
    network, spec = make("segnet")
    quantised = copy.deepcopy(network)
    expected = prove(spec, Candidate(quantised, spec), pictures)
    assert expected.passed

    def everywhere(x: torch.Tensor, _winners: object, size: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, size=size)

    class Unpooled(Candidate):
        def _submit(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            with monkeypatch.context() as patch:
                patch.setattr("segdeploy.models.segnet.max_unpool", everywhere)
                class_maps: NDArray[np.uint8] = super()._submit(batch)
                return class_maps

    assert not prove(spec, Unpooled(quantised, spec), pictures).passed


def test_a_stage_that_cannot_run_here_is_null_with_its_reason(pictures: list[Picture]) -> None:
    """`passed` speaks of the stages that ran."""
    _, spec = make("unet")
    report = prove(spec, None, pictures)
    assert report.stages[0].agreement is None
    assert report.stages[0].reason == "no GPU here"
    assert report.passed


def test_without_truth_the_change_of_miou_is_null(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    unlabelled = [Picture(picture.image, None) for picture in pictures]
    report = prove(spec, Candidate(copy.deepcopy(network), spec), unlabelled)
    assert report.stages[0].miou_change is None


def test_agreement_is_said_for_the_boundary_and_for_the_interior(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    broken = copy.deepcopy(network)
    twice_the_scale(broken)
    stage = prove(spec, Candidate(broken, spec), pictures).stages[0]
    differing = 1 - known(stage.agreement)
    assert stage.differing_pixels == pytest.approx(differing * known(stage.pixels))
    assert 0 <= known(stage.boundary_agreement) <= 1
    assert 0 <= known(stage.interior_agreement) <= 1


# The certificate


def faulty_stage(pictures: list[Picture], name: str = "unet") -> Stage:
    network, spec = make(name)
    broken = copy.deepcopy(network)
    twice_the_scale(broken)
    return prove(spec, Candidate(broken, spec), pictures).stages[0]


def test_the_worst_images_are_named_with_what_differs(pictures: list[Picture]) -> None:
    """The most differing pixels first; they add up, for there are fewer images than are named at most."""
    stage = faulty_stage(pictures)
    worst = stage.worst_images
    assert {each.image for each in worst} == {picture.image.name for picture in pictures}
    counts = [each.differing_pixels for each in worst]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == stage.differing_pixels
    assert all(0 <= each.boundary_share <= 1 for each in worst)
    assert worst[0].boundary_share > 0
    for each in worst:
        assert each.agreement == pytest.approx(1 - each.differing_pixels * len(pictures) / known(stage.pixels))


def test_at_most_ten_images_are_named_and_none_that_agrees(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    assert prove(spec, Candidate(copy.deepcopy(network), spec), pictures).stages[0].worst_images == ()
    assert len(faulty_stage(pictures * 5).worst_images) == stages.MOST_WORST


def test_every_class_has_its_agreement_with_pytorch(pictures: list[Picture]) -> None:
    """IoU of the stage's masks with PyTorch's, truth or none; null for a class that neither draws."""
    network, spec = make("unet")
    same = prove(spec, Candidate(copy.deepcopy(network), spec), pictures).stages[0]
    assert same.class_agreement == {"background": 1.0, "nucleus": 1.0}
    assert same.boundary_f1 == 1.0
    shifted = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5))
    other = prove(spec, Candidate(copy.deepcopy(network), shifted), pictures).stages[0]
    agreement = {name: known(iou) for name, iou in known(other.class_agreement).items()}
    assert 0 < agreement["nucleus"] < agreement["background"] < 1
    assert 0 < known(other.boundary_f1) < 1
    wide = dataclasses.replace(spec, classes=(*spec.classes, "third"), colours=(*spec.colours, (1, 2, 3)))
    report = prove(wide, Candidate(copy.deepcopy(network), wide), pictures[:1])
    assert known(report.stages[0].class_agreement)["third"] is None


def test_limits_that_were_given_decide_and_stand_in_the_certificate(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    broken = copy.deepcopy(network)
    twice_the_scale(broken)
    given = GivenLimits(min_agreement=0, max_drop=100, max_unexplained=1)
    own = prove(spec, Candidate(broken, spec), pictures)
    report = stages.limited(own, given)
    assert not own.passed
    assert report.passed
    assert report.first_failing_stage is None
    assert (report.schema, report.limits.max_unexplained, report.limits.min_agreement) == (4, 1, 0)
