"""Proof in pixels: whether each stage draws the masks that the reference draws.

Pixels that the reference itself cannot decide (near-ties) are counted apart, and so are pixels that a pooling window
moved whose maximum is undecided (pool ties, SegNet alone).
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy import certificate, engines, metrics
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Limits, Stage, WorstImage
from segdeploy.engines import Engine
from segdeploy.errors import GateFailedError
from segdeploy.progress import Progress
from segdeploy.proof import accuracy, limits
from segdeploy.proof.limits import GivenLimits
from segdeploy.proof.reference import Mask, Reference
from segdeploy.proof.samples import Sample, Samples
from segdeploy.spec import Spec

FP32_STAGE = "fp32 graph"  # in front of a graph of low precision
GRAPH_BATCHES = (3,)  # besides one image alone; a graph takes any number
MOST_WORST = 10  # images that are named
ByClass = dict[str, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class StageRun:
    """One link of the chain, to be run, and what it must keep; without an engine, why it cannot run here.

    `batches`: how many images go in at once, besides one alone. `locate` names, for an image (H, W, 3), the first layer
    whose output is not finite. `hardware` and `runtime_version`: what the engine computes with.
    """

    name: str
    engine: Engine | None
    limits: Limits = limits.FLOAT32
    reason: str | None = None
    batches: tuple[int, ...] = ()
    locate: Callable[[NDArray[np.uint8]], str] | None = None
    runtime_version: str | None = None
    hardware: str | None = None

    @property
    def each_batch(self) -> "tuple[StageRun, ...]":
        """This stage, and the same with several images at once."""
        named = [dataclasses.replace(self, name=f"{self.name}, batch {size}", batches=(size,)) for size in self.batches]
        return (dataclasses.replace(self, batches=(1,)), *named)


def engine_stage(engine: Engine | None, *, reason: str | None = None, batches: Sequence[int] = ()) -> StageRun:
    """The last link: the engine as it will be run, alone and with so many images at once."""
    several = tuple(sorted(set(batches) - {1}))
    if engine is None:
        return StageRun(certificate.ENGINE, None, reason=reason)
    here = engines.computes_with(engine.runtime, engine.device)
    return StageRun(
        certificate.ENGINE,
        engine,
        batches=several,
        runtime_version=here.runtime_version,
        hardware=here.hardware,
    )


def limited(found: Certificate, given: GivenLimits) -> Certificate:
    """The same measurements, judged by the limits that a caller gave."""
    low = not found.limits.are_of_float32
    stages = []
    for stage in found.stages:
        own = limits.FLOAT32 if stage.name == FP32_STAGE or not low else found.limits
        theirs = given.in_place_of(own, before_low_precision=low)
        reason = limits.broken(theirs, stage)
        ran = stage.passed is not None
        stages.append(dataclasses.replace(stage, passed=reason is None, reason=reason) if ran else stage)
    passed, failing, proven_to = certificate.verdict(tuple(stages))
    return dataclasses.replace(
        found,
        stages=tuple(stages),
        limits=given.in_place_of(found.limits, before_low_precision=False),
        passed=passed,
        first_failing_stage=failing,
        proven_to=proven_to,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """`agreement`: of the pixels the reference decides; `miou_drop`: points, None without truth; `ms`: the fastest."""

    agreement: float
    miou_drop: float | None
    ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What the reference says of the photograph in one sample, for every stage to be compared with."""

    sample: Sample
    expected: metrics.ClassMap
    near_ties: Mask
    band: Mask
    moved_by_pool: Callable[[], Mask]  # asked for by few samples


class _Tally:
    """What one stage, with so many images at once, adds up over the samples."""

    def __init__(self, run: StageRun, spec: Spec) -> None:
        self.run = run
        self.spec = spec
        self.batch = run.batches[0]
        self.waiting: list[_Seen] = []
        self.first: list[NDArray[np.uint8]] = []  # images that fill the last batch
        self.not_finite: str | None = None
        self.pixels = self.differing = self.outside = self.by_pool = self.tied = 0
        self.band = self.band_differing = 0
        self.against_truth = np.zeros((len(spec.classes),) * 2, np.int64)
        self.of_reference = np.zeros_like(self.against_truth)  # the reference's own confusion with the truth
        self.against_reference = np.zeros_like(self.against_truth)
        self.boundary_f1: list[float] = []
        self.changed: list[WorstImage] = []

    def see(self, seen: _Seen) -> None:
        """Run the stage on a sample, once enough others wait for it."""
        if self.run.engine is None:
            return
        if len(self.first) < self.batch:
            self.first.append(seen.sample.image)
        self.waiting.append(seen)
        if len(self.waiting) == self.batch:
            self.flush()

    def flush(self) -> None:
        """Run what waits in one call, in an order that no stage can expect; earlier images fill what is missing."""
        if not self.waiting or self.run.engine is None:
            return
        missing = self.batch - len(self.waiting)
        filling = [self.first[index % len(self.first)] for index in range(missing)]
        given = [*(seen.sample.image for seen in self.waiting), *filling]
        order = np.random.default_rng(self.pixels).permutation(self.batch)
        class_maps = self.run.engine.classify(np.stack([given[index] for index in order]))
        if not self.run.engine.finite and self.not_finite is None:
            self.not_finite = self._where(self.waiting[0].sample)
        place = np.argsort(order)
        for index, seen in enumerate(self.waiting):
            self.add(seen, class_maps[place[index]])
        self.waiting.clear()

    def _where(self, sample: Sample) -> str:
        layer = "" if self.run.locate is None else f", from {self.run.locate(sample.image)} on"
        return f"{sample.name}{layer}"

    def add(self, seen: _Seen, found: metrics.ClassMap) -> None:
        """Count what one sample's masks have in common, and where they differ."""
        spec, truth = self.spec, seen.sample.truth
        if (drawn := int(found.max())) >= len(spec.classes):
            raise GateFailedError(
                f"the {self.run.name} draws class {drawn} in {seen.sample.name}, of {len(spec.classes)} classes.",
                "Make the file again: it is not this network.",
            )
        found = found[seen.sample.inside]
        differs = found != seen.expected
        self.pixels += differs.size
        self.tied += int(np.count_nonzero(seen.near_ties))
        self.band += int(np.count_nonzero(seen.band))
        self.against_reference += metrics.confusion(seen.expected, found, classes=len(spec.classes), ignore_index=-1)
        if truth is not None:
            self.against_truth += accuracy.against(truth, found, spec)
            self.of_reference += accuracy.against(truth, seen.expected, spec)
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
            image=seen.sample.name,
            agreement=1 - count / differs.size,
            differing_pixels=count,
            boundary_share=at_boundary / count,
        )
        self.changed.append(worst)

    def stage(self, images: int) -> Stage:
        """What was found on so many distinct images, judged by the limits."""
        run = self.run
        if run.engine is None:
            return Stage(name=run.name, batch=self.batch, reason=run.reason)
        if self.batch > 1 and images == 1:
            return Stage(name=run.name, batch=self.batch, reason="one image cannot show that a batch mixes none")
        decided, explains = self.pixels - self.tied, run.limits.are_of_float32
        change, by_class = _miou_change(self.of_reference, self.against_truth, self.spec)
        found = Stage(
            name=run.name,
            batch=self.batch,
            runtime=run.engine.runtime,
            device=run.engine.device,
            runtime_version=run.runtime_version,
            hardware=run.hardware,
            not_finite=self.not_finite,
            agreement=1 - self.differing / self.pixels,
            decided_agreement=1 - self.outside / decided if decided else 1.0,
            near_ties=self.tied / self.pixels,
            pool_ties=self.by_pool / self.pixels if explains else None,
            unexplained=(self.outside - self.by_pool) / self.pixels if explains else None,
            miou_change=change,
            miou_change_by_class=by_class,
        )
        reason = limits.broken(run.limits, found)
        return dataclasses.replace(self._located(found), passed=reason is None, reason=reason)

    def _located(self, found: Stage) -> Stage:
        """With the pixels, classes and samples that differ; none of this is judged."""
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


class _Evidence:
    """The distinct images, and what an engine that draws one class everywhere would have reached on them."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.digests: set[str] = set()
        self.decided = np.zeros(len(spec.classes), np.int64)  # pixels by the class that the reference draws
        self.of_reference = np.zeros((len(spec.classes),) * 2, np.int64)

    def see(self, seen: _Seen) -> None:
        self.digests.add(hashlib.sha256(seen.sample.image.tobytes()).hexdigest())
        drawn = seen.expected[~seen.near_ties]
        self.decided += np.bincount(drawn, minlength=len(self.decided))
        if seen.sample.truth is not None:
            self.of_reference += accuracy.against(seen.sample.truth, seen.expected, self.spec)

    @property
    def images_sha256(self) -> str:
        return hashlib.sha256("".join(sorted(self.digests)).encode()).hexdigest()

    def inconclusive(self, limit: Limits) -> str | None:
        """Why the proof could not have failed, or None: whether one class everywhere would have passed as well."""
        total, commonest = int(self.decided.sum()), int(self.decided.argmax())
        share = float(self.decided[commonest] / total) if total else 1.0
        if share < (1.0 if limit.are_of_float32 else limit.min_agreement):
            return None
        constant = np.zeros_like(self.of_reference)
        constant[:, commonest] = self.of_reference.sum(axis=1)
        change, _ = _miou_change(self.of_reference, constant, self.spec)
        if change is not None and -change > limit.max_drop:
            return None
        drawn = f"the reference draws {self.spec.classes[commonest]!r} in {share:.2%} of the pixels that it decides"
        return f"{drawn}: an engine that draws nothing else would pass as well"


def certify(
    graph: Artifact, reference: Reference, runs: Sequence[StageRun], samples: Samples, *, progress: Progress
) -> Certificate:
    """Run every stage on every sample and compare with the reference; `graph` is what the certificate is about."""
    with progress(f"Proving {graph.path.stem}", len(samples)) as done:
        stages, evidence = _prove(reference, runs, samples, done=done)
    passed, failing, proven_to = certificate.verdict(stages)
    weights = "file" if graph.origin.weights is None else graph.origin.weights.kind
    return Certificate(
        model=graph.spec.name,
        precision=graph.precision,
        form=graph.form,
        weights=weights,
        gated=weights != "random",
        passed=passed,
        first_failing_stage=failing,
        proven_to=proven_to,
        images=len(evidence.digests),
        images_sha256=evidence.images_sha256,
        reference=reference.kind,
        inconclusive=evidence.inconclusive(runs[-1].limits),
        stages=stages,
        limits=runs[-1].limits,
    )


def _prove(
    reference: Reference, runs: Sequence[StageRun], samples: Samples, *, done: Callable[[], None]
) -> tuple[tuple[Stage, ...], _Evidence]:
    """What was found at each stage, and on what; `done` is called after each sample."""
    tallies = [_Tally(each, reference.spec) for run in runs for each in run.each_batch]
    evidence = _Evidence(reference.spec)
    for sample in samples:
        seen = _seen(reference, sample)
        evidence.see(seen)
        for tally in tallies:
            tally.see(seen)
        done()
    for tally in tallies:
        tally.flush()
    return tuple(tally.stage(len(evidence.digests)) for tally in tallies), evidence


def _seen(reference: Reference, sample: Sample) -> _Seen:
    expected, near_ties = _decided(reference, sample)
    moved_by_pool = functools.cache(lambda: reference.pool_ties(sample.image)[sample.inside])
    return _Seen(sample, expected, near_ties, metrics.boundary_band(expected), moved_by_pool)


def _decided(reference: Reference, sample: Sample) -> tuple[metrics.ClassMap, Mask]:
    """The class map of the photograph in a sample, and its near-ties."""
    class_map, near_ties = reference.class_map(sample.image)
    return class_map[sample.inside], near_ties[sample.inside]


class Judge:
    """Measures candidates on the same samples; the reference sees each of them once."""

    def __init__(self, reference: Reference, samples: Samples, *, done: Callable[[], None]) -> None:
        self.spec = spec = reference.spec
        self._seen = []
        self._reference = np.zeros((len(spec.classes),) * 2, np.int64)
        for sample in samples:
            expected, tied = _decided(reference, sample)
            self._reference += 0 if sample.truth is None else accuracy.against(sample.truth, expected, spec)
            self._seen.append((sample, expected, tied))
            done()

    def measure(self, engine: Engine) -> Measured:
        decided = differing = 0
        counts = np.zeros_like(self._reference)
        milliseconds = []
        for sample, expected, tied in self._seen:
            started = time.perf_counter()
            found = engine.classify(sample.image[None])[0][sample.inside]
            milliseconds.append(1000 * (time.perf_counter() - started))
            decided += int(np.count_nonzero(~tied))
            differing += int(np.count_nonzero((found != expected) & ~tied))
            counts += 0 if sample.truth is None else accuracy.against(sample.truth, found, self.spec)
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
