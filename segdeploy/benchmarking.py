"""Engines timed against each other in one interleaved run, each with the accuracy of the very file that is timed."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, engines, images, making
from segdeploy.artifact import Artifact
from segdeploy.data import dataset
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, RunOptions
from segdeploy.errors import InvalidRequestError, SegdeployError
from segdeploy.making import Found
from segdeploy.progress import Progress, silent
from segdeploy.proof import accuracy, executed
from segdeploy.spec import Precision
from segdeploy.timing import latency, layers, machine, memory, results, runtime_selection
from segdeploy.timing.latency import Effort

EFFORT = Effort()
DEFAULT = ("fp32",)
PROFILED_RUNS = 10
MOST_PROVING = 32  # pictures of a folder
SHOWN = 6  # pictures in a result file
COPIED = (
    "model",
    "engine",
    "runtime",
    "precision",
    "device",
    "delivered",
    "delivered_share",
    "wider",
    "sha256",
    "height",
    "width",
    "threads",
    "miou",
    "miou_reason",
    "agreement",
    "agreement_reason",
    "memory",
)

log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True)
class _Subject:
    """An engine that is timed; `facts` is what a result says of it besides its times."""

    found: Found
    engine: Engine
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.facts["id"])


def run(
    model: str | None = None,
    *,
    engine_names: Sequence[str] = DEFAULT,
    every: bool = False,
    data: Path | None = None,
    batches: Sequence[int] = (1,),
    effort: Effort = EFFORT,
    device: str = "auto",
    options: RunOptions = engines.RUN,
    profile: bool = False,
    save: Path | None = None,
    compare: Path | None = None,
    max_regression: float = 0.05,
    require_delivered: bool = False,
    require_faster: bool = False,
    command: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time engines on the device, from memory (host) and from image file to mask, all of them in one interleaved run.

    `every`: each runtime and precision that this machine can use, in place of `engine_names`. With a labelled folder
    mIoU and the certificate are those of its validation images. A narrow engine is compared with fp32 in the same
    runtime where that is timed as well; `require_faster` has it timed. `profile` adds the time of each layer. `save`
    writes the result, and keeps the files that were timed beside it; `compare` runs what an earlier result kept in
    the same interleaved run. `failures` says which engine computes wider than it should, is slower than fp32, or
    slower than it was by more than `max_regression` (a share), as far as the 95 % intervals support it.
    """
    earlier = None if compare is None else results.read(compare)
    pictures = making.pictures_of(data)
    asked, skipped = _asked(model, engine_names, device, progress, every=every, with_fp32=require_faster)
    with contextlib.ExitStack() as stack:
        subjects = [
            _subject(stack, each, options, pictures, data, batch=max(batches), progress=progress) for each in asked
        ]
        if profile:
            subjects = [_profiled(each, pictures, options, batch=max(batches), progress=progress) for each in subjects]
        rivals = _Rivals(stack, subjects, earlier, compare, options)
        timing = functools.partial(_Timed, subjects, rivals, effort, max_regression=max_regression, progress=progress)
        with machine.conditions() as conditions:
            timed = [timing(_cycled(pictures, batch)) for batch in batches]
        shown = _shown(subjects, pictures, progress) if save is not None else []
    document = {
        "schema": results.SCHEMA,
        "kind": results.KIND,
        "made_at": artifact.now(),
        "command": command,
        **machine.provenance(),
        "machine": machine.describe(),
        "conditions": conditions.report(),
        "data": None if data is None else data.name,
        "images": len(pictures),
        "skipped": skipped,
        "subjects": [dict(subject.facts) for subject in subjects],
        **_found(timed, compare, rivals, max_regression),
        "pictures": shown,
    }
    document["failures"] = _failures(document, require_delivered=require_delivered, require_faster=require_faster)
    if save is not None:
        results.save(document, save, {subject.name: subject.found.file for subject in subjects})
    return document


def _cycled(pictures: Sequence[Picture], count: int) -> list[Path]:
    return [pictures[index % len(pictures)].image for index in range(count)]


def _found(timed: "Sequence[_Timed]", compare: Path | None, rivals: "_Rivals", max_regression: float) -> dict[str, Any]:
    return {
        "rows": [row for each in timed for row in each.rows()],
        "ratios": [ratio for each in timed for ratio in each.ratios()],
        "comparison": None if compare is None else _comparison(compare, rivals, timed, max_regression),
    }


def _failures(document: Mapping[str, Any], *, require_delivered: bool, require_faster: bool) -> list[dict[str, str]]:
    """Every gate that was not passed."""
    failures = _not_delivered(document["rows"], always=require_delivered)
    failures += _slower(document["rows"], document["ratios"]) if require_faster else []
    return failures + _regressions(document["comparison"])


def _asked(
    model: str | None,
    engine_names: Sequence[str],
    device: str,
    progress: Progress,
    *,
    every: bool,
    with_fp32: bool,
) -> tuple[list[Found], list[dict[str, str]]]:
    """What will be timed, each once; a narrow engine's own fp32 before it, where that is asked for."""
    if every:
        return _every(model, device, progress)
    found = [making.find(_own_fp32(model, name), name, device, progress) for name in engine_names]
    if with_fp32:
        names = [(f"{each.runtime}:fp32", each.device) for each in found]
        found = [*(making.find(_own_fp32(model, name), name, where, progress) for name, where in names), *found]
    return _distinct(found), []


def _every(model: str | None, device: str, progress: Progress) -> tuple[list[Found], list[dict[str, str]]]:
    """Every runtime and precision that is usable here; what cannot be made is left out, with the reason."""
    usable = [each for each in runtime_selection.candidates(device) if each.obstacle is None]
    named = [(f"{each.runtime}:{precision}", each.device) for precision in Precision for each in usable]
    found, skipped = [], []
    for name, where in [("torch:fp32", device), *named]:
        try:
            found.append(making.find(_own_fp32(model, name), name, where, progress))
        except SegdeployError as error:
            log.warning("%s is left out: %s %s", name, error.what, error.remedy)
            skipped.append({"engine": name, "reason": error.what})
    if not found:
        raise InvalidRequestError("no engine can be timed here.", "See segdeploy doctor.")
    return _distinct(found), skipped


def _distinct(found: Sequence[Found]) -> list[Found]:
    return list({(each.runtime, each.precision, each.device): each for each in found}.values())


def _own_fp32(model: str | None, engine: str) -> str | None:
    """Where a narrow graph is named by its path and fp32 is timed: the float32 graph that it was made from."""
    runtime, precision = engines.parse(engine)
    if model is None or not model.endswith(".onnx") or precision is not Precision.FP32 or runtime == "torch":
        return model
    named = artifact.read(Path(model))
    if named.precision is precision:
        return model
    with making.as_it_was_written(named):
        return str(making.sibling(named).path)


def _subject(
    stack: contextlib.ExitStack,
    found: Found,
    options: RunOptions,
    pictures: Sequence[Picture],
    data: Path | None,
    *,
    batch: int,
    progress: Progress,
) -> _Subject:
    """Opened, and everything measured of it but its times."""
    file = found.file
    opened = engines.open_engine(file, runtime=found.runtime, device=found.device, options=options)
    engine = stack.enter_context(opened)
    name = f"{file.spec.model} {found.runtime}:{found.precision} {engine.device}"
    with progress(f"Looking at {name}", 1) as done:
        computed = executed.delivered(file, runtime=found.runtime, device=engine.device)
        peak = memory.peak(file, runtime=found.runtime, device=engine.device, batch=batch, options=options)
        done()
    facts = {
        "id": name,
        **_described(found, engine, options),
        **computed,
        **_accuracy(engine, data, progress),
        **_certified(found, engine, pictures, data, progress),
        "memory": peak,
        "search": _search(file),
        "profile": None,
    }
    return _Subject(found, engine, facts)


def _described(found: Found, engine: Engine, options: RunOptions) -> dict[str, Any]:
    file, spec = found.file, found.file.spec
    return {
        "model": spec.model,
        "engine": f"{found.runtime}:{found.precision}",
        "runtime": found.runtime,
        "precision": found.precision,
        "form": file.form,
        "device": engine.device,
        "peer": False,
        "asked": file.made_by.get("asked"),
        "in_float": file.made_by.get("in_float", {}),
        "path": str(file.path),
        "sha256": file.sha256,
        "size_mb": file.path.stat().st_size / 1e6,
        "height": spec.height,
        "width": spec.width,
        "threads": options.threads or len(os.sched_getaffinity(0)),
        "classes": list(spec.classes),
        "colours": [list(colour) for colour in spec.colours],
        "random_weights": making.is_random(file),
    }


def _accuracy(engine: Engine, data: Path | None, progress: Progress) -> dict[str, Any]:
    if data is None:
        return {"miou": None, "iou_by_class": None, "miou_reason": "no labelled folder was given: --data DIR"}
    if not (data / "masks").is_dir():
        return {"miou": None, "iou_by_class": None, "miou_reason": f"{data} has no masks/"}
    samples = dataset.open_folder(data).val
    with progress(f"Evaluating {engine.spec.model} in {engine.runtime}", len(samples)) as done:
        scores = accuracy.report(accuracy.confusion(engine, samples, done=done), engine.spec)
    return {"miou": scores["miou"], "iou_by_class": scores["classes"], "miou_reason": None}


def _certified(
    found: Found, engine: Engine, pictures: Sequence[Picture], data: Path | None, progress: Progress
) -> dict[str, Any]:
    """The proof of this very file in this runtime: what `parity` left, or measured now; null with the reason."""
    if found.file.kind == "checkpoint":
        return {"agreement": 1.0, "agreement_reason": "PyTorch is the reference", "certificate": None}
    with making.as_it_was_written(found.file):
        report = found.file.parity if data is None and _is_of(found.file.parity, engine) else None
    reason = None
    if report is None:
        try:
            report = making.judged(found, _some(pictures, data), progress=progress)
        except SegdeployError as error:
            reason = error.what
    if not _is_of(report, engine):
        return {"agreement": None, "agreement_reason": reason or "the engine was not compared", "certificate": report}
    return {"agreement": _engine_stage(report or {})["agreement"], "agreement_reason": None, "certificate": report}


def _some(pictures: Sequence[Picture], data: Path | None) -> Sequence[Picture]:
    """Spread over the folder: PyTorch in float64 is slow, and mIoU is measured on all of them."""
    most = MOST_PROVING if data is not None else making.PROOF_IMAGES["packaged"]
    return pictures[:: max(1, -(-len(pictures) // most))] if data is not None else pictures[:most]


def _is_of(report: Mapping[str, Any] | None, engine: Engine) -> bool:
    """Whether a proof is one of this runtime on this device."""
    stage = _engine_stage(report or {})
    return stage.get("agreement") is not None and (stage["runtime"], stage["device"]) == (engine.runtime, engine.device)


def _engine_stage(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((stage for stage in report.get("stages", []) if stage["name"] == "engine"), {})


def _search(file: Artifact) -> dict[str, Any] | None:
    """What the search for layers to leave in float32 measured, where there was one for this graph."""
    record = file.path.with_suffix(".pareto.json")
    try:
        document = json.loads(record.read_bytes())
        return {"budget": file.made_by["budget"], "record": str(record), "steps": document["steps"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _profiled(
    subject: _Subject, pictures: Sequence[Picture], options: RunOptions, *, batch: int, progress: Progress
) -> _Subject:
    found, stacked = subject.found, _batch(subject.engine, [picture.image for picture in pictures[:batch]])
    where = {"runtime": found.runtime, "device": subject.engine.device}
    spent = None
    with progress(f"Profiling {subject.name}", 1) as done:
        try:
            spent = layers.profile(found.file, **where, images=stacked, runs=PROFILED_RUNS, options=options)
        except SegdeployError as error:
            log.warning("%s has no profile: %s", subject.name, error.what)
        done()
    return dataclasses.replace(subject, facts={**subject.facts, "profile": spent})


def _batch(engine: Engine, files: Sequence[Path]) -> NDArray[np.uint8]:
    return np.stack([images.prepared(images.read(file), engine.spec) for file in files])


class _Rivals:
    """What an earlier result kept of the same subjects, opened again; `reasons` says why not of the others."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        subjects: Sequence[_Subject],
        earlier: Mapping[str, Any] | None,
        path: Path | None,
        options: RunOptions,
    ) -> None:
        self.engines: dict[str, Engine] = {}
        self.reasons: dict[str, str] = {}
        if earlier is None or path is None:
            return
        kept = {known["id"]: known for known in earlier["subjects"]}
        for subject in subjects:
            try:
                self.engines[subject.name] = stack.enter_context(self._open(subject, kept, path, options))
            except SegdeployError as error:
                self.reasons[subject.name] = error.what

    def _open(self, subject: _Subject, kept: Mapping[str, Any], path: Path, options: RunOptions) -> Engine:
        name, found = subject.name, subject.found
        if name not in kept:
            raise InvalidRequestError(f"{path} has no {name}.", "Save it first: segdeploy bench --save FILE")
        results.require_same_work(kept[name], subject.facts)
        old = results.kept(kept[name], path, found.file.spec)
        return engines.open_engine(old, runtime=found.runtime, device=subject.engine.device, options=options)


class _Timed:
    """One interleaved run over all engines and levels at one batch size, those of an earlier result among them."""

    def __init__(
        self,
        subjects: Sequence[_Subject],
        rivals: _Rivals,
        effort: Effort,
        files: Sequence[Path],
        *,
        max_regression: float,
        progress: Progress,
    ) -> None:
        self._subjects = {subject.name: subject for subject in subjects}
        self.batch = len(files)
        tasks: dict[tuple[str, str, str], latency.Task] = {}
        for name, subject in self._subjects.items():
            pair = {"new": subject.engine, "old": rivals.engines.get(name)}
            for when, engine in pair.items():
                if engine is not None:
                    tasks |= {(name, level, when): task for level, task in _levels(engine, files)}
        self._labels = list(tasks)

        def enough(samples: latency.Samples) -> bool:
            compared = self._compared(samples)
            alone = [kept for label, kept in zip(self._labels, samples, strict=True) if label[:2] not in compared]
            narrow = all(latency.half_width(kept) < effort.half_width for kept in alone)
            return narrow and all(_width(each) < max_regression / 2 for each in compared.values())

        with progress(f"Timing batch {self.batch}", latency.WHOLE) as percent:
            samples = latency.interleaved(list(tasks.values()), effort, enough=enough, percent=percent)
        self._half_width = effort.half_width
        self._samples = dict(zip(self._labels, samples, strict=True))
        self.compared = self._compared(samples)

    def _compared(self, samples: latency.Samples) -> dict[tuple[str, str], dict[str, Any]]:
        """By subject and level: the time of the file at hand over that of the one that was kept."""
        kept = dict(zip(self._labels, samples, strict=True))
        return {
            (name, level): latency.ratio(kept[name, level, "new"], old)
            for (name, level, when), old in kept.items()
            if when == "old"
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        for (name, level, when), ms in self._samples.items():
            if when == "new":
                facts = {key: self._subjects[name].facts[key] for key in COPIED}
                times = latency.summary(ms, batch=self.batch, half_width_at_most=self._half_width)
                yield {"subject": name, "level": level, "batch": self.batch, **facts, **times}

    def ratios(self) -> Iterator[dict[str, Any]]:
        """Each narrow engine's time over that of fp32 in the same runtime, where both were timed."""
        founds = {name: subject.found for name, subject in self._subjects.items()}
        wide = {found.runtime: name for name, found in founds.items() if found.precision is Precision.FP32}
        for name, found in founds.items():
            if found.precision is not Precision.FP32 and found.runtime in wide:
                ms = [self._samples[each, "host", "new"] for each in (name, wide[found.runtime])]
                facts = {"engine": f"{found.runtime}:{found.precision}", "batch": self.batch}
                yield {**facts, **latency.ratio(*ms)}


def _levels(engine: Engine, files: Sequence[Path]) -> Iterator[tuple[str, latency.Task]]:
    batch = _batch(engine, files)
    if (on_device := latency.device(engine, batch)) is not None:
        yield "device", on_device
    yield "host", latency.host(engine, batch)
    yield "image_to_mask", latency.image_to_mask(engine, files)


def _width(ratio: Mapping[str, Any]) -> float:
    low, high = ratio["interval"]
    return float(high - low) / 2


def _comparison(path: Path, rivals: _Rivals, timed: Sequence[_Timed], max_regression: float) -> dict[str, Any]:
    """What was compared with an earlier result, and why the rest was not."""
    rows: list[dict[str, Any]] = [
        {"subject": name, "level": None, "batch": None, "ratio": None, "interval": None, "reason": reason}
        for name, reason in rivals.reasons.items()
    ]
    for each in timed:
        for (name, level), ratio in each.compared.items():
            rows.append({"subject": name, "level": level, "batch": each.batch, **ratio, "reason": None})
    for row in rows:
        row["comparable"] = row["reason"] is None
        row["regression"] = row["comparable"] and row["interval"][0] > 1 + max_regression
    return {"with": str(path), "max_regression": max_regression, "rows": rows}


def _regressions(comparison: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if comparison is None:
        return []
    failures = []
    for row in comparison["rows"]:
        if row["regression"]:
            low, high = row["interval"]
            where = f"{row['subject']}, {row['level']}, batch {row['batch']},"
            times = f"takes {row['ratio']:.3f} (95 %: {low:.3f} to {high:.3f}) of the time of the file in"
            what = f"{where} {times} {comparison['with']}: more than {1 + comparison['max_regression']:.3f}."
            failures.append({"what": what, "remedy": "Ship the earlier file, or raise --max-regression."})
    return failures


def _not_delivered(rows: Sequence[Mapping[str, Any]], *, always: bool) -> list[dict[str, str]]:
    """Engines that compute wider than asked, where the machine could do better or `always`."""
    failures = {}
    for row in rows:
        precision, name = Precision(row["precision"]), f"{row['runtime']}:{row['precision']}"
        if row["delivered"] not in {None, precision} and (always or executed.has_units(precision, row["device"])):
            wider = ", ".join(row["wider"][:5])
            what = f"{name} does {row['delivered_share']:.1%} of its {precision} work in {precision}; wider: {wider}."
            failures[name] = {"what": what, "remedy": "Choose another runtime, or ask for what it delivers."}
    return list(failures.values())


def _slower(rows: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Narrow engines whose whole interval lies above that of fp32."""
    wider = {row["engine"]: row["wider"] for row in rows}
    failures = []
    for ratio in ratios:
        if ratio["interval"][0] > 1:
            names = ", ".join(wider[ratio["engine"]][:5]) or "none: every layer is computed in the type asked for"
            what = f"{ratio['engine']} takes {ratio['ratio']:.2f} of the time of fp32. Layers computed wider: {names}."
            failures.append({"what": what, "remedy": "Use fp32 in this runtime, or another runtime."})
    return failures


def _shown(subjects: Sequence[_Subject], pictures: Sequence[Picture], progress: Progress) -> list[dict[str, Any]]:
    """The pictures on which the engines differ most, with every engine's mask."""
    worst: dict[str, float] = {}
    for subject in subjects:
        for image in _engine_stage(subject.facts["certificate"] or {}).get("worst_images", []):
            worst[image["image"]] = min(worst.get(image["image"], 1.0), image["agreement"])
    chosen = sorted(pictures, key=lambda picture: worst.get(picture.image.name, 1.0))[:SHOWN]
    with progress("Drawing", len(chosen)) as done:
        return [_picture(subjects, picture, done) for picture in chosen]


def _picture(subjects: Sequence[_Subject], picture: Picture, done: Callable[[], None]) -> dict[str, Any]:
    photo = images.read(picture.image)
    masks = {subject.name: subject.engine.segment(photo) for subject in subjects}
    reference = masks[next((s.name for s in subjects if s.found.runtime == "torch"), subjects[0].name)]
    spec = subjects[0].engine.spec
    truth = None
    if picture.mask is not None:
        truth = dataset.read_truth(picture.mask, classes=len(spec.classes), ignore_index=spec.ignore_index)
    agreement = {name: float(np.mean(mask == reference)) for name, mask in masks.items()}
    done()
    return {"name": picture.image.name, **results.drawn(photo, truth, masks, spec.colours), "agreement": agreement}
