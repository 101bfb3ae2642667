"""What was proven of a file: which stages draw the reference's masks, on how many images, within which limits."""

import dataclasses
from collections.abc import Mapping
from typing import Final, Literal

from segdeploy.spec import Precision
from segdeploy.typed_json import Count, Share

SCHEMA: Final = 4
ENGINE: Final = "engine"  # the last stage; "engine, batch 4" is the same with four images at once
WeightsKind = Literal["packaged", "file", "random"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a stage must keep. Shares are of all pixels, in 0..1, but for `min_agreement` in low precision.

    `max_unexplained`: pixels that differ where neither a near-tie nor a pooling tie explains it. It is None in low
    precision, which moves pixels that no tie explains; `min_agreement` then is the share of the pixels that the
    reference decides, those outside near-ties. `max_drop` is in points of mIoU and counts where there are labels.
    """

    min_agreement: float
    max_drop: float
    max_near_ties: float | None = None
    max_pool_ties: float | None = None
    max_unexplained: float | None = None

    @property
    def are_of_float32(self) -> bool:
        """Whether every pixel that differs has to be explained by a tie."""
        return self.max_unexplained is not None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorstImage:
    """An image with differing pixels; `boundary_share` of them lie in the boundary band."""

    image: str
    agreement: Share
    differing_pixels: Count
    boundary_share: Share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What was found at one stage of the chain; every measurement is None, and `reason` says why, where it did not run.

    `batch`: how many images went in at once. `hardware`: the instruction set of the processor, or the GPU: what was
    found holds for that and for that version of the runtime. `not_finite`: in which image, from which layer on, logits
    were NaN or infinite, None where that was not seen. Shares are of pixels, in 0..1: `agreement` of all,
    `decided_agreement` of those outside near-ties, `boundary_agreement` within three pixels of a class boundary,
    `interior_agreement` outside. `miou_change` is in points, candidate minus reference, None without labels.
    `class_agreement` is the IoU with the reference's masks.
    """

    name: str
    batch: Count = 1
    runtime: str | None = None
    device: str | None = None
    runtime_version: str | None = None
    hardware: str | None = None
    passed: bool | None = None
    reason: str | None = None
    not_finite: str | None = None
    agreement: Share | None = None
    decided_agreement: Share | None = None
    near_ties: Share | None = None
    pool_ties: Share | None = None
    unexplained: Share | None = None
    miou_change: float | None = None
    miou_change_by_class: Mapping[str, float | None] | None = None
    pixels: Count | None = None
    differing_pixels: Count | None = None
    boundary_agreement: Share | None = None
    interior_agreement: Share | None = None
    boundary_f1: Share | None = None
    class_agreement: Mapping[str, Share | None] | None = None
    worst_images: tuple[WorstImage, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """Where a stage departs from the reference: a layer, or the nodes before one; `text` says it in words.

    `error` is the relative RMS error that was found there, None where it is not finite.
    """

    stage: str
    kind: Literal["before a layer", "layer", "logits", "class map", "none found"]
    layer: str | None
    between: tuple[str, ...] | None
    error: float | None
    tolerance: float
    image: str
    layers_compared: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The verdict on a graph or an engine, stage by stage.

    `gated` is False for random weights: those are measured and judge nothing. `proven_to` names the last stage that
    ran; `limits` are those of the last stage. `images` counts distinct ones, and `images_sha256` is over their pixels
    at network size. `reference`: where the masks came from that all are compared with. `selected_among`: how many
    candidates were judged on these images until one passed; 1 is none but this. `inconclusive`: why this proof could
    not have failed, None where it could; `inconclusive_allowed`: somebody let it count all the same.
    """

    schema: Literal[4] = SCHEMA
    model: str
    precision: Precision
    form: str | None
    weights: WeightsKind
    gated: bool
    passed: bool
    first_failing_stage: str | None
    proven_to: str | None
    images: int
    images_sha256: str | None = None
    reference: Literal["PyTorch", "ONNX Runtime", "proof kit"] = "PyTorch"
    selected_among: Count = 1
    inconclusive: str | None = None
    inconclusive_allowed: bool = False
    stages: tuple[Stage, ...]
    limits: Limits
    departure: Departure | None = None

    @property
    def engine(self) -> Stage | None:
        """The stage of the engine, once it was compared with the reference."""
        return next((stage for stage in self.stages if stage.name == ENGINE and stage.agreement is not None), None)

    @property
    def failing(self) -> Stage | None:
        """The first stage that failed."""
        return next((stage for stage in self.stages if stage.name == self.first_failing_stage), None)

    @property
    def refutes(self) -> bool:
        """Whether the file is known to draw other masks than the reference."""
        return self.gated and not self.passed

    @property
    def proves(self) -> bool:
        """Whether what ran is proven: it passed, and could have failed."""
        return self.gated and self.passed and (self.inconclusive is None or self.inconclusive_allowed)

    @property
    def batches(self) -> frozenset[int]:
        """The batch sizes in which the engine was compared with the reference, and passed."""
        ran = (stage for stage in self.stages if stage.name.startswith(ENGINE) and stage.agreement is not None)
        return frozenset(stage.batch for stage in ran if stage.passed)


def verdict(stages: tuple[Stage, ...]) -> tuple[bool, str | None, str | None]:
    """Whether the stages that ran passed, the first that failed, the last that ran."""
    ran = [stage for stage in stages if stage.passed is not None]
    failed = [stage.name for stage in ran if not stage.passed]
    return not failed, failed[0] if failed else None, ran[-1].name.partition(",")[0] if ran else None


def without_engine(certificate: Certificate | None, reason: str) -> Certificate | None:
    """What was proven of a graph, said of an engine made from it that cannot run here."""
    if certificate is None:
        return None
    kept = tuple(stage for stage in certificate.stages if not stage.name.startswith(ENGINE))
    passed, failing, _ = verdict(kept)
    return dataclasses.replace(
        certificate,
        stages=(*kept, Stage(name=ENGINE, reason=reason)),
        passed=passed,
        first_failing_stage=failing,
        proven_to=kept[-1].name if kept else None,
    )
