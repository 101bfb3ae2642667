"""What a stage must keep: each limit alone breaks it, and those that a caller gives take the place of its own."""

import dataclasses
from typing import Any

import pytest

from segdeploy.certificate import Certificate, Limits, Stage
from segdeploy.proof import limits, stages
from segdeploy.proof.limits import FLOAT32, GivenLimits
from segdeploy.spec import Precision

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


def measured(limit: Limits, *names: str) -> Certificate:
    """A certificate of stages that agree well enough for nobody's own limits."""
    ran = tuple(found(name=name, agreement=0.95, decided_agreement=0.95, unexplained=0.05) for name in names)
    failed = tuple(dataclasses.replace(stage, passed=False, reason="as measured") for stage in ran)
    return Certificate(
        model="unet",
        precision=Precision.FP32,
        form=None,
        weights="file",
        gated=True,
        passed=False,
        first_failing_stage=names[0],
        proven_to=names[-1],
        images=1,
        stages=failed,
        limits=limit,
    )


def test_limits_that_were_given_take_the_place_of_the_precisions_own() -> None:
    """The float32 graph before one of low precision stays as exact as it has to be, whatever that one may lose."""
    budget, given = Limits(min_agreement=0.98, max_drop=0.5), GivenLimits(min_agreement=0.9, max_drop=2.0)
    asked = stages.limited(measured(budget, "fp32 graph", "graph"), given)
    assert [stage.passed for stage in asked.stages] == [False, True]
    assert (asked.passed, asked.first_failing_stage) == (False, "fp32 graph")
    assert asked.limits == Limits(min_agreement=0.9, max_drop=2.0)
    assert asked.stages[0].reason == "5.00000% of the pixels differ and are no near-tie"


@pytest.mark.parametrize(
    "given,passed",
    [
        (GivenLimits(min_agreement=0.9, max_unexplained=0.05), True),
        (GivenLimits(min_agreement=0.9), False),
        (GivenLimits(max_unexplained=0.05), False),
        (GivenLimits(), False),
    ],
)
def test_limits_that_were_given_judge_float32_anew(given: GivenLimits, *, passed: bool) -> None:
    asked = stages.limited(measured(FLOAT32, "graph", "engine"), given)
    assert asked.passed is passed
    assert asked.first_failing_stage == (None if passed else "graph")


def test_a_stage_that_did_not_run_is_judged_by_no_limit() -> None:
    """Nor does it pass under limits that everything passes."""
    ran = measured(FLOAT32, "graph")
    both = dataclasses.replace(ran, stages=(*ran.stages, Stage(name="engine", reason="no GPU here")))
    asked = stages.limited(both, GivenLimits(min_agreement=0.0, max_unexplained=1.0))
    assert [stage.passed for stage in asked.stages] == [True, None]
    assert asked.proven_to == "graph"


def test_logits_that_are_not_finite_fail_whatever_agrees() -> None:
    """NaN and NaN draw the same class: the masks agree in every pixel."""
    broken = found(not_finite="0.png, from down.0/Conv on")
    for limit in (FLOAT32, Limits(min_agreement=0.0, max_drop=100.0)):
        assert limits.broken(limit, broken) == "the logits are not finite: 0.png, from down.0/Conv on"
