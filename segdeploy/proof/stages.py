"""Proof in pixels: whether each stage draws the masks that the reference draws.

Pixels that the reference itself cannot decide (near-ties) are counted apart, and so are pixels that a pooling window
moved whose maximum is undecided (pool ties, SegNet alone).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy import certificate, images, metrics
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Limits, Stage, WorstImage
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine
from segdeploy.progress import Progress
from segdeploy.proof import accuracy, limits
from segdeploy.proof.limits import GivenLimits
from segdeploy.proof.reference import Mask, Reference
from segdeploy.spec import Spec

MOST_WORST = 10  # images that are named
ByClass = dict[str, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class StageRun:
    """One link of the chain, to be run, and what it must keep; without an engine, why it cannot run here."""

    name: str
    engine: Engine | None
    limits: Limits = limits.FLOAT32
    reason: str | None = None


def limited(runs: Sequence[StageRun], given: GivenLimits) -> list[StageRun]:
    """The stages with the limits that a caller gave."""
    low = any(not run.limits.are_of_float32 for run in runs)
    return [dataclasses.replace(run, limits=given.in_place_of(run.limits, before_low_precision=low)) for run in runs]


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """`agreement`: of the pixels the reference decides; `miou_drop`: points, None without truth; `ms`: the fastest."""

    agreement: float
    miou_drop: float | None
    ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What the reference says of one picture, for every stage to be compared with."""

    picture: Picture
    expected: metrics.ClassMap
    near_ties: Mask
    band: Mask
    moved_by_pool: Callable[[], Mask]  # asked for by few pictures
    truth: metrics.ClassMap | None


class _Tally:
    """What one stage adds up over the pictures."""

    def __init__(self, run: StageRun, spec: Spec) -> None:
        self.run = run
        self.spec = spec
        self.pixels = self.differing = self.outside = self.by_pool = 0
        self.band = self.band_differing = 0
        self.against_truth = np.zeros((len(spec.classes),) * 2, np.int64)
        self.against_reference = np.zeros_like(self.against_truth)
        self.boundary_f1: list[float] = []
        self.changed: list[WorstImage] = []

    def add(self, seen: _Seen, found: metrics.ClassMap) -> None:
        """Count what one picture's masks have in common, and where they differ."""
        spec, differs = self.spec, found != seen.expected
        self.pixels += differs.size
        self.band += int(np.count_nonzero(seen.band))
        self.against_reference += metrics.confusion(seen.expected, found, classes=len(spec.classes), ignore_index=-1)
        self.against_truth += 0 if seen.truth is None else accuracy.against(seen.truth, found, spec)
        if (score := metrics.boundary_f1(seen.expected, found)) is not None:
            self.boundary_f1.append(score)
        if differs.any():
            self._add_differing(seen, differs)

    def _add_differing(self, seen: _Seen, differs: Mask) -> None:
        count, at_boundary = (int(np.count_nonzero(where)) for where in (differs, differs & seen.band))
        self.differing += count
        self.band_differing += at_boundary
        undecided = differs & ~seen.near_ties
        self.outside += int(np.count_nonzero(undecided))
        if undecided.any() and self.run.limits.are_of_float32:
            self.by_pool += int(np.count_nonzero(undecided & seen.moved_by_pool()))
        worst = WorstImage(
            image=seen.picture.image.name,
            agreement=1 - count / differs.size,
            differing_pixels=count,
            boundary_share=at_boundary / count,
        )
        self.changed.append(worst)

    def stage(self, tied_pixels: int, reference: metrics.Confusion) -> Stage:
        """What was found, judged by the limits. `reference`: the reference's own confusion with the truth."""
        if self.run.engine is None:
            return Stage(name=self.run.name, reason=self.run.reason)
        decided, explains = self.pixels - tied_pixels, self.run.limits.are_of_float32
        change, by_class = _miou_change(reference, self.against_truth, self.spec)
        found = Stage(
            name=self.run.name,
            runtime=self.run.engine.runtime,
            device=self.run.engine.device,
            agreement=1 - self.differing / self.pixels,
            decided_agreement=1 - self.outside / decided if decided else 1.0,
            near_ties=tied_pixels / self.pixels,
            pool_ties=self.by_pool / self.pixels if explains else None,
            unexplained=(self.outside - self.by_pool) / self.pixels if explains else None,
            miou_change=change,
            miou_change_by_class=by_class,
        )
        reason = limits.broken(self.run.limits, found)
        return dataclasses.replace(self._located(found), passed=reason is None, reason=reason)

    def _located(self, found: Stage) -> Stage:
        """With the pixels, classes and pictures that differ; none of this is judged."""
        inside = self.pixels - self.band
        return dataclasses.replace(
            found,
            pixels=self.pixels,
            differing_pixels=self.differing,
            boundary_agreement=1 - self.band_differing / self.band if self.band else None,
            interior_agreement=1 - (self.differing - self.band_differing) / inside if inside else None,
            boundary_f1=float(np.mean(self.boundary_f1)) if self.boundary_f1 else None,
            class_agreement=_by_class(metrics.iou(self.against_reference), self.spec),
            worst_images=tuple(sorted(self.changed, key=lambda each: -each.differing_pixels)[:MOST_WORST]),
        )


def certify(
    graph: Artifact, reference: Reference, runs: Sequence[StageRun], pictures: Sequence[Picture], *, progress: Progress
) -> Certificate:
    """Run every stage on every picture and compare with the reference; `graph` is what the certificate is about."""
    with progress(f"Proving {graph.path.stem}", len(pictures)) as done:
        stages = prove(reference, runs, pictures, done=done)
    passed, failing, proven_to = certificate.verdict(stages)
    weights = "file" if graph.origin.weights is None else graph.origin.weights.kind
    return Certificate(
        model=graph.spec.model,
        precision=graph.precision,
        form=graph.form,
        weights=weights,
        gated=weights != "random",
        passed=passed,
        first_failing_stage=failing,
        proven_to=proven_to,
        images=len(pictures),
        stages=stages,
        limits=runs[-1].limits,
    )


def prove(
    reference: Reference, runs: Sequence[StageRun], pictures: Sequence[Picture], *, done: Callable[[], None]
) -> tuple[Stage, ...]:
    """What was found at each stage; `done` is called after each picture."""
    spec = reference.spec
    tallies = [_Tally(run, spec) for run in runs]
    truth_of_reference = np.zeros((len(spec.classes),) * 2, np.int64)
    tied_pixels = 0
    for picture in pictures:
        image = images.prepared(images.read(picture.image), spec)
        seen = _seen(reference, picture, image)
        truth_of_reference += 0 if seen.truth is None else accuracy.against(seen.truth, seen.expected, spec)
        tied_pixels += int(np.count_nonzero(seen.near_ties))
        for tally in tallies:
            if tally.run.engine is not None:
                tally.add(seen, tally.run.engine.classify(image[None])[0])
        done()
    return tuple(tally.stage(tied_pixels, truth_of_reference) for tally in tallies)


def _seen(reference: Reference, picture: Picture, image: NDArray[np.uint8]) -> _Seen:
    expected, near_ties = reference.class_map(image)
    moved_by_pool = functools.cache(functools.partial(reference.pool_ties, image))
    band = metrics.boundary_band(expected)
    return _Seen(picture, expected, near_ties, band, moved_by_pool, _truth(picture, reference.spec))


class Judge:
    """Measures candidates on the same pictures; the reference sees each of them once."""

    def __init__(self, reference: Reference, pictures: Sequence[Picture], *, done: Callable[[], None]) -> None:
        self.spec = spec = reference.spec
        self._seen = []
        self._reference = np.zeros((len(spec.classes),) * 2, np.int64)
        for picture in pictures:
            image = images.prepared(images.read(picture.image), spec)
            expected, tied = reference.class_map(image)
            truth = _truth(picture, spec)
            self._reference += 0 if truth is None else accuracy.against(truth, expected, spec)
            self._seen.append((image, expected, tied, truth))
            done()

    def measure(self, engine: Engine) -> Measured:
        decided = differing = 0
        counts = np.zeros_like(self._reference)
        milliseconds = []
        for image, expected, tied, truth in self._seen:
            started = time.perf_counter()
            found = engine.classify(image[None])[0]
            milliseconds.append(1000 * (time.perf_counter() - started))
            decided += int(np.count_nonzero(~tied))
            differing += int(np.count_nonzero((found != expected) & ~tied))
            counts += 0 if truth is None else accuracy.against(truth, found, self.spec)
        change, _ = _miou_change(self._reference, counts, self.spec)
        agreement = 1 - differing / decided if decided else 1.0
        return Measured(agreement, None if change is None else -change, min(milliseconds))


def _miou_change(
    reference: metrics.Confusion, candidate: metrics.Confusion, spec: Spec
) -> tuple[float | None, ByClass | None]:
    """Points of mIoU, candidate minus reference, over all and by class; None without truth."""
    before, after = metrics.miou(reference), metrics.miou(candidate)
    if before is None or after is None:
        return None, None
    each = 100 * (metrics.iou(candidate) - metrics.iou(reference))
    return 100 * (after - before), _by_class(each, spec)


def _by_class(values: NDArray[np.float64], spec: Spec) -> ByClass:
    return {name: None if np.isnan(each) else float(each) for name, each in zip(spec.classes, values, strict=True)}


def _truth(picture: Picture, spec: Spec) -> metrics.ClassMap | None:
    return picture.truth(classes=len(spec.classes), ignore_index=spec.ignore_index)
