"""What a stage must keep: each limit alone breaks it, and those that a caller gives take the place of its own."""

import dataclasses
from typing import Any

import pytest

from segdeploy.certificate import Limits, Stage
from segdeploy.proof import limits, stages
from segdeploy.proof.limits import FLOAT32, GivenLimits
from segdeploy.proof.stages import StageRun

AGREEING = Stage(name="graph", agreement=1.0, decided_agreement=1.0, near_ties=0.0, pool_ties=0.0, unexplained=0.0)


def found(**changes: Any) -> Stage:  # noqa: ANN401 - the fields of Stage
    """What is found at a stage that differs nowhere, but for the changes."""
    return dataclasses.replace(AGREEING, **changes)


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
    assert limits.broken(FLOAT32, found()) is None
    assert limits.broken(FLOAT32, found(miou_change=0.5)) is None, "a gain is no loss"
    assert reason in (limits.broken(FLOAT32, found(**changes)) or "")


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"decided_agreement": 0.979}, "only 97.9000% of the pixels that PyTorch decides agree, 98.0000% are asked"),
        ({"miou_change": -0.6}, "0.600 points of mIoU are lost, above 0.5"),
    ],
)
def test_low_precision_may_move_pixels_that_no_tie_explains(changes: dict[str, float], reason: str) -> None:
    """As many as its budget spares: not the ties are counted, but the pixels that PyTorch decides."""
    budget = Limits(min_agreement=0.98, max_drop=0.5)
    assert limits.broken(budget, found(agreement=0.97, decided_agreement=0.98, near_ties=0.5, miou_change=-0.5)) is None
    assert reason in (limits.broken(budget, found(**changes)) or "")


def test_limits_that_were_given_take_the_place_of_the_precisions_own() -> None:
    """The float32 graph before one of low precision stays as exact as it has to be, whatever that one may lose."""
    wide = StageRun("fp32 graph", None)
    low = StageRun("graph", None, Limits(min_agreement=0.98, max_drop=0.5))
    given = GivenLimits(min_agreement=0.9, max_drop=2.0, max_unexplained=0.01)
    assert [run.limits for run in stages.limited([wide, low], given)] == [
        dataclasses.replace(FLOAT32, max_unexplained=0.01),
        Limits(min_agreement=0.9, max_drop=2.0),
    ]
    alone = dataclasses.replace(FLOAT32, min_agreement=0.9, max_drop=2.0, max_unexplained=0.01)
    assert stages.limited([wide], given)[0].limits == alone
    assert stages.limited([wide, low], GivenLimits()) == [wide, low]
