"""What a stage must keep to pass, and why it does not."""

import dataclasses
from pathlib import Path

from segdeploy.certificate import Limits, Stage
from segdeploy.errors import GateFailedError

FLOAT32 = Limits(
    min_agreement=0.9999,
    max_drop=0.05,  # points of mIoU: a rare class may move with a single near-tie
    max_near_ties=0.01,  # above it, too little is left to judge
    max_pool_ties=0.00002,
    max_unexplained=0.0,
)


@dataclasses.dataclass(frozen=True, slots=True)
class GivenLimits:
    """Limits that a caller gives in the place of a stage's own; None keeps them. `max_unexplained` is of float32."""

    min_agreement: float | None = None
    max_drop: float | None = None
    max_unexplained: float | None = None

    def in_place_of(self, limits: Limits, *, before_low_precision: bool) -> Limits:
        """The float32 graph before a stage of low precision keeps its own agreement and drop: those are not its."""
        names = {"min_agreement", "max_drop"}
        if limits.are_of_float32:
            names = {"max_unexplained"} if before_low_precision else {*names, "max_unexplained"}
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None and name in names}
        return dataclasses.replace(limits, **given)


def inconclusive(path: Path, reason: str) -> GateFailedError:
    """What is raised where a proof passed that could not have failed."""
    return GateFailedError(
        f"{path}: the proof is inconclusive, for it could not have failed: {reason}.",
        "Prove it on images that show more classes, with labels (--data DIR), or within narrower limits. "
        "Or go on: --allow-inconclusive",
    )


def broken(limits: Limits, found: Stage) -> str | None:
    """Why a stage fails, or None."""
    if found.not_finite is not None:
        return f"the logits are not finite: {found.not_finite}"
    reason = _broken_in_float32(limits, found) if limits.are_of_float32 else _broken_in_low_precision(limits, found)
    return reason or _lost(limits, found)


def _broken_in_float32(limits: Limits, found: Stage) -> str | None:
    if _above(found.unexplained, limits.max_unexplained):
        reason = f"{found.unexplained:.5%} of the pixels differ and are no near-tie"
        return f"{reason}, above {limits.max_unexplained:.5%}" if limits.max_unexplained else reason
    if found.agreement is not None and found.agreement < limits.min_agreement:
        return f"only {found.agreement:.4%} of the pixels agree, {limits.min_agreement:.4%} are asked for"
    if _above(found.near_ties, limits.max_near_ties):
        ties = f"{found.near_ties:.4%} of the pixels are near-ties in PyTorch itself"
        return f"{ties}, above {limits.max_near_ties:.4%}"
    if _above(found.pool_ties, limits.max_pool_ties):
        return f"{found.pool_ties:.5%} of the pixels moved with a pooling tie, above {limits.max_pool_ties:.5%}"
    return None


def _broken_in_low_precision(limits: Limits, found: Stage) -> str | None:
    if found.decided_agreement is None or found.decided_agreement >= limits.min_agreement:
        return None
    agreement = f"only {found.decided_agreement:.4%} of the pixels that PyTorch decides agree"
    return f"{agreement}, {limits.min_agreement:.4%} are asked for"


def _lost(limits: Limits, found: Stage) -> str | None:
    if found.miou_change is None or -found.miou_change <= limits.max_drop:
        return None
    return f"{-found.miou_change:.3f} points of mIoU are lost, above {limits.max_drop:g}"


def _above(share: float | None, limit: float | None) -> bool:
    return share is not None and limit is not None and share > limit
