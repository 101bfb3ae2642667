"""What is known of a graph or an engine in low precision: what may be lost, what stays in float32, what is executed."""

import dataclasses
import math
from collections.abc import Mapping

from segdeploy.certificate import Limits
from segdeploy.errors import InvalidRequestError
from segdeploy.spec import Precision
from segdeploy.typed_json import Number, Positive, Share


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """What may be lost: `min_agreement` is of the pixels that the reference decides, `max_drop` in points of mIoU."""

    min_agreement: float
    max_drop: Number

    def __post_init__(self) -> None:
        if not (0 <= self.min_agreement <= 1 and 0 <= self.max_drop < math.inf):
            raise InvalidRequestError(
                f"a budget of {self.min_agreement} agreement and {self.max_drop} points is none.",
                "Give --min-agreement in 0..1 and --max-drop of 0 or more.",
            )

    def limits(self) -> Limits:
        """The budget as limits of a stage."""
        return Limits(min_agreement=self.min_agreement, max_drop=self.max_drop)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """One graph that a search measured: the layers it leaves in float32, how it does, and its share of low precision.

    `agreement`: of the pixels that the reference decides. `miou_drop`: points lost, None without labels. `ms`: of one
    image, None where the runtime of its form is not here. `accepted`: its proof held. `front`: no other has at once a
    larger share of low precision and a better agreement.
    """

    in_float: tuple[str, ...]
    agreement: Share
    miou_drop: Number | None
    ms: Positive | None
    low_share: Share
    accepted: bool
    front: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """The type that a runtime really computes the layers in, read from what it compiled.

    `delivered`: the type that did at least nine tenths of the work that the graph gives to a low precision, else
    fp32; None where the runtime does not say, and `reason` then says why. `delivered_share`: of that work. `wider`: the
    layers that run in a wider type than they were given, the most work first.
    """

    delivered: Precision | None
    delivered_share: float | None
    wider: tuple[str, ...] = ()
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LowPrecision:
    """How a float32 graph became one of low precision.

    `in_float`: the layers that stay in float32, and why. `low_share`: the share in low precision of the multiply-adds
    of all convolutions and matrix products. `asked`: the share that the graph gives to each type. `executed`: by
    runtime, what it computes.
    """

    budget: Budget
    in_float: Mapping[str, str]
    low_share: float
    asked: Mapping[str, float]
    executed: Mapping[str, Executed]
