"""The proof must hold for the same network and break for every way in which another network gets deployed."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segdeploy import blocks, making, models
from segdeploy.blocks import Network
from segdeploy.checkpoints import checkpoint
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, pytorch
from segdeploy.proof import stages
from segdeploy.spec import Spec

EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei"


class Candidate(pytorch.TorchEngine):
    """A network held in memory, to plant faults in."""

    def __init__(self, network: Network, spec: Spec) -> None:
        super().__init__(models.deployed(network, spec).eval(), spec, device="cpu")


def make(name: str) -> tuple[Network, Spec]:
    """The packaged network: an untrained one may draw one class everywhere, whatever is done to it."""
    return checkpoint.load(making.PACKAGED / f"{name}.safetensors")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Three small real pictures with their truths."""
    names = (EXAMPLES / "val.txt").read_text(encoding="utf-8").split()[:3]
    return [Picture(EXAMPLES / "images" / name, EXAMPLES / "masks" / name) for name in names]


def prove(network: Network, spec: Spec, engine: Engine | None, pictures: list[Picture]) -> dict[str, Any]:
    chain = [stages.Stage("engine", engine, reason=None if engine else "no GPU here")]
    return stages.prove(stages.Reference(network, spec), chain, pictures, done=lambda: None)


@pytest.mark.parametrize("name", models.names())
def test_the_same_network_is_proven(name: str, pictures: list[Picture]) -> None:
    network, spec = make(name)
    report = prove(network, spec, Candidate(copy.deepcopy(network), spec), pictures)
    stage = report["stages"][0]
    assert report["passed"]
    assert stage["agreement"] == 1.0
    assert stage["miou_change"] == 0.0
    assert stage["near_ties"] < 0.001


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
    report = prove(network, spec, Candidate(broken, spec), pictures)
    assert not report["passed"]
    assert report["first_failing_stage"] == "engine"
    assert "no near-tie" in report["stages"][0]["reason"]


@pytest.mark.parametrize("name", models.names())
def test_a_wrong_mean_is_not_proven(name: str, pictures: list[Picture]) -> None:
    network, spec = make(name)
    shifted = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5))
    assert not prove(network, spec, Candidate(copy.deepcopy(network), shifted), pictures)["passed"]


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3"])
def test_the_other_align_corners_is_not_proven(name: str, pictures: list[Picture]) -> None:
    network, spec = make(name)
    other = copy.deepcopy(network)
    other.align_corners = not network.align_corners  # type: ignore[assignment]
    assert not prove(network, spec, Candidate(other, spec), pictures)["passed"]


def test_an_equality_mask_in_place_of_unpooling_is_not_proven(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`x == upsample(max)` repeats a value wherever it ties; quantised pictures tie a lot."""
    network, spec = make("segnet")
    quantised = copy.deepcopy(network)
    expected = prove(network, spec, Candidate(quantised, spec), pictures)
    assert expected["passed"]

    def everywhere(x: torch.Tensor, _winners: object, size: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, size=size)

    class Unpooled(Candidate):
        def _submit(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            with monkeypatch.context() as patch:
                patch.setattr("segdeploy.models.segnet.max_unpool", everywhere)
                class_maps: NDArray[np.uint8] = super()._submit(batch)
                return class_maps

    assert not prove(network, spec, Unpooled(quantised, spec), pictures)["passed"]


def test_a_stage_that_cannot_run_here_is_null_with_its_reason(pictures: list[Picture]) -> None:
    """`passed` speaks of the stages that ran."""
    network, spec = make("unet")
    report = prove(network, spec, None, pictures)
    assert report["stages"][0]["agreement"] is None
    assert report["stages"][0]["reason"] == "no GPU here"
    assert report["passed"]


def test_without_truth_the_change_of_miou_is_null(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    unlabelled = [Picture(picture.image, None) for picture in pictures]
    report = prove(network, spec, Candidate(copy.deepcopy(network), spec), unlabelled)
    assert report["stages"][0]["miou_change"] is None


def test_near_ties_are_pixels_closer_than_the_arithmetic_is_exact() -> None:
    exact = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 0.001, -1.0]]], dtype=torch.float64)
    logits = exact.float() + 0.0006
    logits[0] -= 0.0012
    margin = min(2 * 0.0006, stages.LARGEST_TIE * float(logits.max() - logits.min()))
    gap = (logits[1] - logits[0]).abs()
    np.testing.assert_array_equal(stages.near_ties(logits, exact), (gap < margin).numpy())
    assert stages.near_ties(exact.float(), exact).sum() == 0


def test_rough_arithmetic_does_not_make_everything_a_tie() -> None:
    """The margin is capped at a thousandth of the logits' range, however far float32 is off."""
    exact = torch.tensor([[[0.0, 5.0]], [[10.0, 5.004]]], dtype=torch.float64)
    rough = exact.float()
    rough[0, 0, 0] += 9.0
    np.testing.assert_array_equal(stages.near_ties(rough, exact), [[False, True]])


def test_one_class_has_no_ties() -> None:
    assert not stages.near_ties(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.float64)).any()


def test_pool_ties_show_the_windows_that_float32_cannot_decide() -> None:
    """A window of two all but equal maxima is a tie; one of equal zeros is not, for a zero is a zero anywhere."""
    exact = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    exact[0, 0, :2, :2] = torch.tensor([[1.0, 1.0 + 1e-9], [0.0, 0.0]], dtype=torch.float64)
    exact[0, 0, :2, 2:] = torch.tensor([[1.0, 0.5], [0.1, 0.2]], dtype=torch.float64)
    tied = stages._tied_windows(exact.float(), exact + 1e-8)  # noqa: SLF001 - the rule itself
    assert tied[0, 0].tolist() == [[True, False], [False, False]]


def test_pool_ties_reach_as_far_as_the_decoder_sees() -> None:
    network, spec = make("segnet")
    reaches = network.pooling_reaches()
    assert list(reaches) == sorted(reaches)
    reference = stages.Reference(network, spec)
    flat = np.full((spec.height, spec.width, 3), 100, np.uint8)
    assert reference.pool_ties(flat).shape == (spec.height, spec.width)


def test_agreement_is_said_for_the_boundary_and_for_the_interior(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    broken = copy.deepcopy(network)
    twice_the_scale(broken)
    stage = prove(network, spec, Candidate(broken, spec), pictures)["stages"][0]
    differing = 1 - stage["agreement"]
    assert stage["differing_pixels"] == pytest.approx(differing * stage["pixels"])
    assert 0 <= stage["boundary_agreement"] <= 1
    assert 0 <= stage["interior_agreement"] <= 1


# The certificate


def faulty_stage(pictures: list[Picture], name: str = "unet") -> dict[str, Any]:
    network, spec = make(name)
    broken = copy.deepcopy(network)
    twice_the_scale(broken)
    stage: dict[str, Any] = prove(network, spec, Candidate(broken, spec), pictures)["stages"][0]
    return stage


def test_the_worst_images_are_named_with_what_differs(pictures: list[Picture]) -> None:
    """The most differing pixels first; they add up, for there are fewer images than are named at most."""
    stage = faulty_stage(pictures)
    worst = stage["worst_images"]
    assert {each["image"] for each in worst} == {picture.image.name for picture in pictures}
    counts = [each["differing_pixels"] for each in worst]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == stage["differing_pixels"]
    assert all(0 <= each["boundary_share"] <= 1 for each in worst)
    assert worst[0]["boundary_share"] > 0
    for each in worst:
        assert each["agreement"] == pytest.approx(1 - each["differing_pixels"] * len(pictures) / stage["pixels"])


def test_at_most_ten_images_are_named_and_none_that_agrees(pictures: list[Picture]) -> None:
    network, spec = make("unet")
    assert prove(network, spec, Candidate(copy.deepcopy(network), spec), pictures)["stages"][0]["worst_images"] == []
    assert len(faulty_stage(pictures * 5)["worst_images"]) == stages.MOST_WORST


def test_every_class_has_its_agreement_with_pytorch(pictures: list[Picture]) -> None:
    """IoU of the stage's masks with PyTorch's, truth or none; null for a class that neither draws."""
    network, spec = make("unet")
    same = prove(network, spec, Candidate(copy.deepcopy(network), spec), pictures)["stages"][0]
    assert same["class_agreement"] == {"background": 1.0, "nucleus": 1.0}
    assert same["boundary_f1"] == 1.0
    shifted = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5))
    other = prove(network, spec, Candidate(copy.deepcopy(network), shifted), pictures)["stages"][0]
    assert 0 < other["class_agreement"]["nucleus"] < other["class_agreement"]["background"] < 1
    assert 0 < other["boundary_f1"] < 1
    wide = dataclasses.replace(spec, classes=(*spec.classes, "third"), colours=(*spec.colours, (1, 2, 3)))
    report = prove(network, wide, Candidate(copy.deepcopy(network), wide), pictures[:1])
    assert report["stages"][0]["class_agreement"]["third"] is None


def found(**changes: float | None) -> dict[str, Any]:
    """What a stage that differs nowhere has found."""
    shares = {"agreement": 1.0, "decided_agreement": 1.0, "near_ties": 0.0, "pool_ties": 0.0, "unexplained": 0.0}
    return {**shares, "miou_change": None, **changes}


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"agreement": 0.9998}, "only 99.9800% of the pixels agree, 99.9900% are asked for"),
        ({"near_ties": 0.011}, "near-ties in PyTorch itself, above 1.0000%"),
        ({"pool_ties": 0.00003}, "moved with a pooling tie, above 0.00200%"),
        ({"unexplained": 1e-6}, "0.00010% of the pixels differ and are no near-tie"),
        ({"miou_change": -0.06}, "0.060 points of mIoU are lost, above 0.05"),
    ],
)
def test_each_limit_of_float32_is_held(changes: dict[str, float], reason: str) -> None:
    assert stages.Limits().broken(found()) is None
    assert stages.Limits().broken(found(miou_change=0.5)) is None, "a gain is no loss"
    assert reason in (stages.Limits().broken(found(**changes)) or "")


def test_limits_that_were_asked_for_take_the_place_of_the_precisions_own(pictures: list[Picture]) -> None:
    """A narrow chain's float32 graph stays as exact as it has to be, whatever the narrow one may lose."""
    wide, narrow = stages.Stage("fp32 graph", None), stages.Stage("graph", None, stages.NarrowLimits(0.98, 0.5))
    asked = stages.Asked(min_agreement=0.9, max_drop=2.0, max_unexplained=0.01)
    assert [stage.limits for stage in asked.applied([wide, narrow])] == [
        stages.Limits(max_unexplained=0.01),
        stages.NarrowLimits(0.9, 2.0),
    ]
    assert asked.applied([wide])[0].limits == stages.Limits(min_agreement=0.9, max_drop=2.0, max_unexplained=0.01)
    assert stages.Asked().applied([wide, narrow]) == [wide, narrow]
    network, spec = make("unet")
    broken = copy.deepcopy(network)
    twice_the_scale(broken)
    chain = stages.Asked(min_agreement=0, max_drop=100, max_unexplained=1).applied(
        [stages.Stage("engine", Candidate(broken, spec))]
    )
    report = stages.prove(stages.Reference(network, spec), chain, pictures, done=lambda: None)
    assert report["passed"]
    assert (report["schema"], report["limits"]["max_unexplained"], report["limits"]["min_agreement"]) == (2, 1, 0)
