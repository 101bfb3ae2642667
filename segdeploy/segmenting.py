"""What `infer` does: finds the images and the engine, then segments the folder, or counts what there is to do."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from segdeploy import admission, artifact, engines, fitting, making
from segdeploy.data import layouts
from segdeploy.engines import Engine, EngineFile, RunOptions
from segdeploy.inference import naming, outputs, ray_cluster, reports, run, sources, store_run, stores
from segdeploy.inference.options import FOLDER, ORIGINAL, FolderOptions
from segdeploy.inference.outputs import OutputOptions
from segdeploy.inference.ray_job import RayJob
from segdeploy.inference.report import EngineUsed, Report
from segdeploy.inference.resuming import Resuming
from segdeploy.inference.source_list import SourceList
from segdeploy.inference.store_run import Mirror, StoreJob, StoreResuming
from segdeploy.inference.work import Task, Work
from segdeploy.progress import Progress, silent
from segdeploy.spec import Precision, Spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a user asks for: images, where their outputs go, and the engine, as `api.infer` takes them."""

    inputs: Sequence[str]
    out: str
    model: str | None
    engine: str
    device: str
    write: Sequence[str]
    names: str


def segment(asked: Asked, running: RunOptions, folder: FolderOptions, progress: Progress) -> Report:
    """As `api.infer` says; the report is also kept beside the journal."""
    kinds, _ = outputs.require(asked.write), naming.require(asked.names)
    outputs.require_installed(kinds)
    outputs.require_used(
        kinds, [name for name in ("opacity", "values") if getattr(folder, name) != getattr(FOLDER, name)]
    )
    if folder.ray is not None:
        ray_cluster.require_installed()  # before the work
    if stores.is_url(asked.out) or any(map(stores.is_url, asked.inputs)):
        store_run.require(asked.inputs, asked.out, folder)
        with store_run.mirrored(asked.out) as mirror:
            return _of_stores(asked, mirror, running, folder, progress)
    images, skipped = sources.find(
        asked.inputs, leave_out=Path(asked.out), include=folder.include, exclude=folder.exclude
    )
    found = making.find(asked.model, asked.engine, asked.device, progress)
    spec = _fitted(found, folder)
    task = _task(asked, images, found, spec, folder)
    if folder.dry_run:
        with progress("Counting", len(images)) as done:
            return run.counted(task, done=done).report(_used(found, spec, found.device, None), skipped=skipped)
    if folder.ray is not None:
        return _with_ray(folder.ray, found, spec, task, running, skipped=skipped, progress=progress)
    running = _shared(found, running)
    with (
        _opened(found, spec, running, progress) as engine,
        progress("Segmenting", len(images)) as done,
    ):
        used = _used(found, spec, engine.device, engine.delivered)

        def keep(ended: run.Ended) -> None:
            reports.keep(ended.summary.report(used, skipped=skipped), ended, found.file.spec)

        return run.run(engine, task, done=done, keep=keep).report(used, skipped=skipped)


def _task(asked: Asked, images: SourceList, found: EngineFile, spec: Spec, folder: FolderOptions) -> Task:
    return Task(
        sources=images,
        out=Path(asked.out),
        made_with=_drawn_by(found, spec, folder),
        outputs=outputs.require(asked.write),
        names=asked.names,
        options=folder,
        output_options=_output_options(folder, found.file.spec),
    )


def _of_stores(asked: Asked, mirror: Mirror, running: RunOptions, folder: FolderOptions, progress: Progress) -> Report:
    """The same run from store to store."""
    images, skipped = store_run.find(mirror, asked.inputs, folder)
    found = making.find(asked.model, asked.engine, asked.device, progress)
    spec = _fitted(found, folder)
    task = dataclasses.replace(_task(asked, images, found, spec, folder), out=mirror.out)
    resuming_of = functools.partial(StoreResuming, mirror)
    if folder.dry_run:
        with progress("Counting", len(images)) as done:
            summary = run.counted(task, done=done, resuming_of=resuming_of)
        return mirror.report(summary.report(_used(found, spec, found.device, None), skipped=skipped))
    with (
        store_run.locked(mirror, folder) as lock,
        _opened(found, spec, _shared(found, running), progress) as engine,
        progress("Segmenting", len(images)) as done,
    ):
        used = _used(found, spec, engine.device, engine.delivered)
        jobs: list[StoreJob] = []

        def job_of(work: Work, resuming: Resuming) -> StoreJob:
            store_run.require_spared(mirror, work)
            jobs.append(StoreJob(engine, mirror, lock, work=work, resuming=resuming, done=done))
            return jobs[0]

        def keep(ended: run.Ended) -> None:
            report = mirror.report(ended.summary.report(used, skipped=skipped))
            reports.keep(report, ended, spec)
            jobs[0].put_reports()

        summary = run.carried_out(task, job_of, keep=keep, resuming_of=resuming_of)
        return mirror.report(summary.report(used, skipped=skipped))


def _fitted(found: EngineFile, folder: FolderOptions) -> Spec:
    """The network's Spec, with the fit that was asked for."""
    spec = fitting.with_fit(found.file.spec, folder.fit, folder.overlap)
    fitting.least_decoded(spec, folder.decode)  # before the work
    return spec


def _shared(found: EngineFile, running: RunOptions) -> RunOptions:
    """For an engine that serves a thread for each core."""
    threads = 1 if engines.modules()[found.runtime].CONCURRENT else None
    return dataclasses.replace(running, threads=threads, hint="throughput")


def _opened(found: EngineFile, spec: Spec, running: RunOptions, progress: Progress) -> Engine:
    """The proven engine, which photographs meet as `spec` says."""
    engine = admission.opened(found, running, progress)
    engine.spec = spec
    return engine


def _with_ray(
    address: str,
    found: EngineFile,
    spec: Spec,
    task: Task,
    running: RunOptions,
    *,
    skipped: int,
    progress: Progress,
) -> Report:
    """The same run, by actors that each open the engine, proven on their machine."""
    module, asked = engines.modules()[found.runtime], task.options.ray_actors
    found = dataclasses.replace(found, device=engines.device_of(found.file, found.runtime, found.device))
    opened = functools.partial(_opened, found, spec, _shared(found, running), silent)
    with ray_cluster.connected(address, actors=asked), progress("Segmenting", len(task.sources)) as done:
        size = ray_cluster.size(device=found.device, concurrent=module.CONCURRENT, actors=asked)
        jobs: list[RayJob] = []

        def job_of(work: Work, resuming: Resuming) -> RayJob:
            jobs.append(RayJob(opened, size, spec, work=work, resuming=resuming, done=done))
            return jobs[0]

        def report() -> Report:
            used = _used(found, spec, found.device, None if jobs[0].used is None else jobs[0].used.delivered)
            return jobs[0].summary.report(used, skipped=skipped)

        run.carried_out(task, job_of, keep=lambda ended: reports.keep(report(), ended, spec))
        return report()


def _drawn_by(found: EngineFile, spec: Spec, folder: FolderOptions) -> str:
    """The digest of what decides, with the photograph, which class a pixel gets."""
    fit = [spec.fit, spec.fill, spec.overlap]
    return artifact.digest([found.file.sha256, found.runtime, *fit, folder.decode, run.DRAWS])


def _output_options(folder: FolderOptions, spec: Spec) -> OutputOptions:
    """Raise InvalidRequestError where the original values of the classes are asked for, and nobody knows them."""
    values = layouts.published_values(spec.classes) if folder.values == ORIGINAL else None
    is_index = values == tuple(range(len(spec.classes)))
    return OutputOptions(opacity=folder.opacity, values=None if is_index else values)


def _used(found: EngineFile, spec: Spec, device: str, delivered: Precision | None) -> EngineUsed:
    return EngineUsed(
        model=found.file.spec.name,
        runtime=found.runtime,
        device=device,
        precision=found.precision,
        delivered=delivered,
        fit=spec.fit,
        own_fit=found.file.spec.fit,
        random_weights=found.file.has_random_weights,
        file=found.file.path,
    )
