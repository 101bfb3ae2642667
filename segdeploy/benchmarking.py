"""Finds, makes and proves the engines that are asked for, and has them timed against each other."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from segdeploy import admission, artifact, claims, cores, engines, extras, making, proving, workspace
from segdeploy import precision as precisions
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate
from segdeploy.data import check
from segdeploy.data.dataset import DataFolder, Picture
from segdeploy.engines import RUN, Engine, EngineFile, EngineName, RunOptions
from segdeploy.errors import InvalidRequestError, MissingRuntimeError, SegdeployError
from segdeploy.making import ExportOptions
from segdeploy.paths import hold_paths
from segdeploy.progress import Progress, silent
from segdeploy.proof import accuracy, executed
from segdeploy.proving import ProofOptions
from segdeploy.quantization import sensitivity
from segdeploy.spec import Precision
from segdeploy.timing import contest, gates, intervals, layers, machine, memory, results, runtime_selection
from segdeploy.timing import pictures as shown_pictures
from segdeploy.timing.contest import Contestant, TimedBatch
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Result, Search, Skipped, Subject

EFFORT = Effort()
PROFILED_RUNS = 10
MOST_PROVING = 32  # pictures of a folder

log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is timed, on what, and what is made of the result.

    `engines`: names such as ort:fp16; with `every`, each runtime and precision that this machine can use takes their
    place. `data`: a folder; its images are timed, and with masks mIoU and the certificate are of its validation images.
    `force`: lets warnings about its labels pass. `profile`: adds the time of each layer. `save`: writes the result
    there, and keeps the files that were timed beside it; `compare`: runs what an earlier result kept in the same
    interleaved run. An engine that has become slower by more than `max_regression`, a share, fails. So does one that
    computes in a wider type than it was asked for, where this machine could do better or with `require_delivered`; and
    with `require_faster` a low-precision engine that is slower than fp32 in the same runtime, which is then timed as
    well. `allow_inconclusive` lets a proof count that could not have failed. `command`: what the result says it was
    made by.
    """

    engines: Sequence[str] = ("fp32",)
    every: bool = False
    data: DataFolder | Path | None = None
    force: bool = False
    batches: Sequence[int] = (1,)
    effort: Effort = EFFORT
    device: str = "auto"
    run: RunOptions = RUN
    profile: bool = False
    save: Path | None = None
    compare: Path | None = None
    max_regression: float = 0.05
    require_delivered: bool = False
    require_faster: bool = False
    allow_inconclusive: bool = False
    command: str | None = None

    def __post_init__(self) -> None:
        hold_paths(self, "data", "save", "compare")
        judges = self.compare is not None or self.require_faster
        if judges and self.effort.runs is not None and self.effort.runs < intervals.FEWEST:
            what = f"{self.effort.runs} runs give no interval, by which engines are held against each other."
            raise InvalidRequestError(what, f"Take {intervals.FEWEST} or more, or leave --runs out.")


DEFAULT = BenchOptions()


def run(model: str | None = None, options: BenchOptions = DEFAULT, *, progress: Progress = silent) -> Result:
    """Time engines on the device, from memory (host) and from image file to mask, all of them in one interleaved run.

    Each has the accuracy of the very file that is timed. `failures` of the result says which gates were not passed.
    """
    earlier = None if options.compare is None else results.read(options.compare)
    pictures = workspace.pictures_of(options.data)
    asked, skipped = _asked(model, options, progress)
    check.require_for(asked[0].file, options.data, force=options.force, progress=progress)
    with contextlib.ExitStack() as stack:
        contestants = [
            _contestant(stack, each, options=options, pictures=pictures, progress=progress) for each in asked
        ]
        if earlier is not None and options.compare is not None:
            contestants = contest.against(contestants, earlier, options.compare, stack=stack, options=options.run)
        timed = functools.partial(
            contest.timed, contestants, effort=options.effort, max_regression=options.max_regression, progress=progress
        )
        with machine.conditions() as conditions:
            batches = [timed(_cycled(pictures, batch)) for batch in options.batches]
        drawn = shown_pictures.drawn(contestants, pictures, progress=progress) if options.save is not None else ()
    found = dataclasses.replace(
        _result(contestants, batches, options),
        conditions=conditions.report(),
        images=len(pictures),
        skipped=tuple(skipped),
        pictures=drawn,
    )
    if options.save is None:
        return found
    files = {each.subject.id: file.file for each, file in zip(contestants, asked, strict=True)}
    return results.save(found, options.save, files)


def _cycled(pictures: Sequence[Picture], count: int) -> list[Path]:
    return [pictures[index % len(pictures)].image for index in range(count)]


def _result(contestants: Sequence[Contestant], batches: Sequence[TimedBatch], options: BenchOptions) -> Result:
    """What was timed, and the gates that it did not pass."""
    about = machine.provenance()
    comparison = None
    if options.compare is not None:
        comparison = contest.comparison(contestants, batches, options.compare, max_regression=options.max_regression)
    found = Result(
        made_at=artifact.now(),
        command=options.command,
        version=about.version,
        commit=about.commit,
        machine=machine.describe(),
        data=None if options.data is None else DataFolder.of(options.data).path.name,
        subjects=tuple(each.subject for each in contestants),
        rows=tuple(row for each in batches for row in each.rows(contestants)),
        ratios=tuple(ratio for each in batches for ratio in each.ratios_to_fp32(contestants)),
        comparison=comparison,
    )
    failures = gates.failures(found, require_delivered=options.require_delivered, require_faster=options.require_faster)
    return dataclasses.replace(found, failures=failures)


# What is timed


def _asked(model: str | None, options: BenchOptions, progress: Progress) -> tuple[list[EngineFile], list[Skipped]]:
    """What will be timed, each once; with `require_faster`, the fp32 of each runtime comes first."""
    if options.every:
        return _every(model, options, progress)
    found = [_found(model, engines.parse(name), options.device, progress, options=options) for name in options.engines]
    if options.require_faster:
        fp32 = [
            _found(model, EngineName(each.runtime, Precision.FP32), each.device, progress, options=options)
            for each in found
        ]
        found = [*fp32, *found]
    return _distinct(found), []


def _every(model: str | None, options: BenchOptions, progress: Progress) -> tuple[list[EngineFile], list[Skipped]]:
    """Every runtime and precision that is usable here; what cannot be made is left out, with the reason."""
    device = options.device
    usable = [each for each in runtime_selection.candidates(device) if each.obstacle is None]
    named = [
        (EngineName(each.runtime, precision), each.device)
        for precision in Precision
        for each in usable
        if each.device == "cuda" or not _needs_gpu(precision)
    ]
    found, obstacles = [], dict[EngineName, SegdeployError]()
    for name, where in [(EngineName("torch", Precision.FP32), device), *named]:
        try:
            found.append(_found(model, name, where, progress, options=options))
        except SegdeployError as error:
            obstacles[name] = error
    if not found:
        _refuse(obstacles)
    for name, obstacle in obstacles.items():
        log.warning("%s is left out: %s %s", name, obstacle.what, obstacle.remedy)
    return _distinct(found), [Skipped(engine=str(name), reason=each.what) for name, each in obstacles.items()]


def _refuse(obstacles: Mapping[EngineName, SegdeployError]) -> NoReturn:
    """Say in one error why no engine can be timed: what to do is what the last one says, which came closest."""
    reasons = [f"{name}: {error.what}" for name, error in obstacles.items()]
    *_, closest = obstacles.values()
    raise MissingRuntimeError(f"no engine can be timed here. {' '.join(reasons)}", closest.remedy)


def _needs_gpu(precision: Precision) -> bool:
    """Whether only GPUs from some compute capability on compute in it."""
    return precision is not Precision.FP32 and precisions.module(precision).LEAST_COMPUTE_CAPABILITY is not None


def _distinct(found: Sequence[EngineFile]) -> list[EngineFile]:
    return list({(each.runtime, each.precision, each.device): each for each in found}.values())


@extras.named_where_missing()
def _found(
    model: str | None, name: EngineName, device: str, progress: Progress, *, options: BenchOptions
) -> EngineFile:
    """The file of an engine; for fp32, where `model` is a graph of low precision, the graph that it was made from."""
    if model is not None and model.endswith(".onnx") and name.precision is Precision.FP32 and name.runtime != "torch":
        named = artifact.read(Path(model))
        if named.precision is not Precision.FP32:
            model = str(workspace.fp32_graph_of(named).path)
    return making.find(
        model, str(name), device, progress, options=ExportOptions(data=options.data, force=options.force)
    )


# What is known of it


def _contestant(
    stack: contextlib.ExitStack,
    found: EngineFile,
    *,
    options: BenchOptions,
    pictures: Sequence[Picture],
    progress: Progress,
) -> Contestant:
    """Opened, with everything that is measured of it but its latency."""
    engine = stack.enter_context(
        engines.open_engine(found.file, runtime=found.runtime, device=found.device, options=options.run)
    )
    subject = _described(found, engine, options=options, progress=progress)
    subject = _with_accuracy(subject, engine, data=options.data, pictures=pictures, progress=progress)
    subject = _with_certificate(subject, found, engine=engine, options=options, pictures=pictures, progress=progress)
    contestant = Contestant(subject, engine)
    if not options.profile:
        return contestant
    files = [picture.image for picture in pictures[: max(options.batches)]]
    return _with_profile(contestant, found, files=files, options=options.run, progress=progress)


def _described(found: EngineFile, engine: Engine, *, options: BenchOptions, progress: Progress) -> Subject:
    """The file, the precision that it is executed in, and the memory that it takes."""
    file, spec, device = found.file, found.file.spec, engine.device
    name = f"{spec.name} {found.name} {device}"
    batch = max(options.batches)
    with progress(f"Looking at {name}", 1) as done:
        computed = executed.executed(file, runtime=found.runtime, device=device)
        peak = memory.peak(file, runtime=found.runtime, device=device, batch=batch, options=options.run)
        done()
    return Subject(
        id=name,
        model=spec.name,
        engine=str(found.name),
        runtime=found.runtime,
        precision=found.precision,
        form=file.form,
        device=device,
        asked=_asked_types(file),
        in_float=file.low_precision.in_float if file.low_precision else {},
        path=str(file.path),
        sha256=file.sha256,
        size_mb=file.path.stat().st_size / 1e6,
        height=spec.height,
        width=spec.width,
        threads=options.run.threads or cores.usable(),
        classes=spec.classes,
        colours=spec.colours,
        random_weights=file.has_random_weights,
        delivered=computed.delivered,
        delivered_share=computed.delivered_share,
        wider=computed.wider,
        memory=peak,
        search=_search(file),
    )


def _asked_types(file: Artifact) -> dict[str, float] | None:
    """The share of the multiply-adds that the graph gives to each type; None for float32."""
    facts = file.low_precision or file.plan
    return None if facts is None else dict(facts.asked)


def _search(file: Artifact) -> Search | None:
    """What the search for layers to leave in float32 measured, where there was one for this graph."""
    path = file.path.with_suffix(".pareto.json")
    record = sensitivity.read_record(path)
    if record is None or file.low_precision is None:
        return None
    return Search(budget=file.low_precision.budget, record=str(path), steps=record.steps)


def _with_accuracy(
    subject: Subject, engine: Engine, *, data: DataFolder | Path | None, pictures: Sequence[Picture], progress: Progress
) -> Subject:
    """With the mIoU of the very file on the labelled pictures, or the reason why there is none."""
    if data is None:
        return dataclasses.replace(subject, miou_reason="no labelled folder was given: --data DIR")
    if any(picture.mask is None for picture in pictures):
        return dataclasses.replace(subject, miou_reason=f"{DataFolder.of(data).path} has no masks/")
    with progress(f"Evaluating {subject.model} in {subject.runtime}", len(pictures)) as done:
        scores = accuracy.scores(accuracy.confusion(engine, pictures, done=done), engine.spec)
    return dataclasses.replace(subject, miou=scores.miou, iou_by_class=scores.classes)


def _with_certificate(
    subject: Subject,
    found: EngineFile,
    *,
    engine: Engine,
    options: BenchOptions,
    pictures: Sequence[Picture],
    progress: Progress,
) -> Subject:
    """With the proof of this very file in this runtime and in the batch sizes that are timed, made where there is none.

    It is made on the labelled folder, where PyTorch is here. Raise GateFailedError where it could not have failed.
    """
    if found.file.kind == "checkpoint":
        return dataclasses.replace(subject, agreement=1.0, agreement_reason="PyTorch is the reference")
    on_data = options.data is not None and admission.reference_is_here(found.file)
    batches = () if found.file.has_random_weights else options.batches
    proof = None if on_data else claims.covering(found, engine.device, batches)
    if proof is None:
        shown = _some(pictures) if on_data else None
        proof = _proven_now(found, engine, options=options, pictures=shown, progress=progress)
    if proof.gated and proof.passed:
        proving.require_passed(proof, found.file)  # inconclusive; one that failed is timed, and says so
    agreement = None if proof.engine is None else proof.engine.agreement
    reason = "the engine was not compared" if agreement is None else None
    return dataclasses.replace(subject, agreement=agreement, agreement_reason=reason, certificate=proof)


def _proven_now(
    found: EngineFile, engine: Engine, *, options: BenchOptions, pictures: Sequence[Picture] | None, progress: Progress
) -> Certificate:
    """The proof on these pictures; on those that the file has, and kept, where there are none."""
    asked = ProofOptions(batches=tuple(options.batches), allow_inconclusive=options.allow_inconclusive, run=options.run)
    if pictures is not None:
        return proving.judged(found, pictures, options=asked, progress=progress)
    proof = admission.without_pytorch(found, options=asked, progress=progress)
    if proof is None:
        shown = workspace.proof_images_of(workspace.graph_behind(found.file))
        proof = proving.judged(found, shown, options=asked, progress=progress)
    if proof.gated:
        claims.keep_here(found, engine.device, proof)
    return proof


def _some(pictures: Sequence[Picture]) -> Sequence[Picture]:
    """Spread over the folder: PyTorch in float64 is slow, and mIoU is measured on all of them."""
    return pictures[:: max(1, -(-len(pictures) // MOST_PROVING))]


def _with_profile(
    contestant: Contestant, found: EngineFile, *, files: Sequence[Path], options: RunOptions, progress: Progress
) -> Contestant:
    """With the time of each layer, where the runtime can say it."""
    subject, engine = contestant.subject, contestant.engine
    files, spent = files[:1] if engine.alone else files, None
    with progress(f"Profiling {subject.id}", 1) as done:
        try:
            spent = layers.profile(
                found.file,
                runtime=found.runtime,
                device=engine.device,
                images=contest.stacked(engine, files),
                runs=PROFILED_RUNS,
                options=options,
            )
        except SegdeployError as error:
            log.warning("%s has no profile: %s %s", subject.id, error.what, error.remedy)
        done()
    return dataclasses.replace(contestant, subject=dataclasses.replace(subject, profile=spent))
