"""Finds or makes what a verb needs (checkpoint -> graph -> engine) and proves it on the way. The Python API."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy import artifact, engines, images, models, palettes, signature
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.data import dataset
from segdeploy.data.dataset import Picture
from segdeploy.engines import BuildOptions, Engine, RunOptions
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, MissingRuntimeError, SegdeployError
from segdeploy.inference import run as folder
from segdeploy.progress import Progress, silent
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    import onnx

    from segdeploy.proof.bisection import Run
    from segdeploy.proof.stages import Reference, Stage
    from segdeploy.quantization.search import Narrowing, Recipe
    from segdeploy.training.loop import Plan, TrainingProgress

EXPORTS = Path("export")
ENGINES = Path("engines")
CHECKPOINTS = Path("checkpoints")
PACKAGED = Path(__file__).parent / "weights"
DEFAULT_MODEL = "unet"
PROOF_IMAGES = {"packaged": 8, "file": 8, "random": 1}  # on every export; `parity` takes all of a folder
RANDOM_SIZE = (360, 480)
RANDOM_SEED = 0
RANDOM_STATISTICS = 4  # images that set the normalisation of untrained networks

log = logging.getLogger("segdeploy")


def open(  # noqa: A001 - `segdeploy.open("unet").segment(photo)`
    model: str | None = None,
    *,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    progress: Progress = silent,
) -> Engine:
    """An engine, ready: `segdeploy.open("unet", engine="fp32").segment(photo)`.

    `model` is a name, the path of a graph or of a plan, or None for the newest export; what is missing is made and
    proven. `engine` without a runtime is the best usable one on this machine.
    """
    return _open(find(model, engine, device, progress), options)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What will be opened, in which runtime, on which device."""

    file: Artifact
    runtime: str
    precision: Precision
    device: str


def find(model: str | None, engine: str, device: str, progress: Progress) -> Found:
    """What an engine's name means here; where it leaves the runtime open, the best one, and the log says why."""
    runtime, precision = engines.parse(engine)
    if runtime is None and model is not None and model.endswith(".plan"):
        runtime = _runtime_of(signature.read_manifest(Path(model)))
    if runtime is None:
        runtime, device = _chosen(model, precision, device, progress)
    return Found(file_for(model, runtime, precision, progress=progress), runtime, precision, device)


def _chosen(model: str | None, precision: Precision, device: str, progress: Progress) -> tuple[str, str]:
    """The best usable runtime and its device; a graph of a form that nothing here runs is the reference's."""
    from segdeploy.timing import runtime_selection

    found = runtime_selection.candidates(device)
    if model is not None and model.endswith(".onnx") and (form := artifact.read(Path(model)).form) is not None:
        exact = [each for each in found if form == engines.modules()[each.runtime].FORM]
        if all(each.obstacle for each in exact):
            return engines.REFERENCE, device
        found = exact
    chosen = runtime_selection.choose(
        found, lambda name: file_for(model, name, precision, progress=progress), progress=progress
    )
    log.info("%s runs in %s on %s: %s.", precision, chosen.runtime, chosen.device, chosen.why)
    return chosen.runtime, chosen.device


def _open(found: Found, options: RunOptions) -> Engine:
    _require_not_refuted(found.file)
    return engines.open_engine(found.file, runtime=found.runtime, device=found.device, options=options)


def file_for(model: str | None, runtime: str, precision: Precision, *, progress: Progress = silent) -> Artifact:
    """What a runtime opens for a model: the checkpoint (at the graph's size, where there is one), graph or plan."""
    module = engines.modules()[runtime]
    if module.OPENS == "plan":
        return _plan_for(model, runtime, precision, progress)
    if module.OPENS == "graph":
        return graph_for(model, precision, form=_form(runtime, precision), progress=progress)
    if precision is not Precision.FP32:
        raise InvalidRequestError(f"{runtime} is the reference, in fp32.", "Choose another runtime, such as ort.")
    graph = _known_graph(model, Precision.FP32, None)
    if graph is None:
        return weights_for(model or DEFAULT_MODEL).checkpoint
    return dataclasses.replace(origin(graph), spec=dataclasses.replace(graph.spec, output="class_map"))


def _form(runtime: str, precision: Precision) -> str | None:
    return engines.modules()[runtime].FORM if precision is Precision.INT8 else None


def _plan_for(model: str | None, runtime: str, precision: Precision, progress: Progress) -> Artifact:
    """The plan for this machine's GPU; built where it is missing, and again where its graph is another one now.

    A plan whose graph is not at hand is taken as it is: a machine that only runs it has neither graph nor PyTorch.
    """
    if model is not None and model.endswith(".plan"):
        return _of_engine(signature.read_manifest(Path(model)), runtime, precision)
    name = model or _newest_export() or DEFAULT_MODEL
    options = engines.BUILD
    if not name.endswith(".onnx"):
        models.require(name)
        path = artifact.plan_path(ENGINES, name, runtime, precision, engines.compiling(runtime).capability())
        if os.path.lexists(path):
            plan = _of_model(_of_engine(signature.read_manifest(path), runtime, precision), name)
            with as_it_was_written(plan):
                if _is_current(plan):
                    return plan
                options = _options_of(plan)
    return build(name, engine=f"{runtime}:{precision}", options=options, progress=progress)


def _is_current(plan: Artifact) -> bool:
    """Whether a plan is of the graph that would be built now, as far as there is one here to tell."""
    name = plan.spec.model
    path, wide = (
        artifact.graph_path(EXPORTS, name, *kind) for kind in ((plan.precision, plan.form), (Precision.FP32,))
    )
    if not path.is_file():
        return True
    graph = artifact.read(path)
    return graph.sha256 == plan.made_by["graph"]["sha256"] and not (wide.is_file() and _is_stale(graph))


def _of_engine(plan: Artifact, runtime: str, precision: Precision) -> Artifact:
    made_for = f"{_runtime_of(plan)}:{plan.precision}"
    if made_for != f"{runtime}:{precision}":
        raise InvalidFileError(
            f"{plan.path} is a plan of {made_for}; {runtime}:{precision} was asked for.", f"Give --engine {made_for}."
        )
    return plan


def _runtime_of(plan: Artifact) -> str:
    runtime = plan.made_by.get("runtime")
    if runtime not in [name for name, module in engines.modules().items() if module.OPENS == "plan"]:
        raise InvalidFileError(f"{plan.path} is a plan of {runtime!r}, which is none of ours.", "Build it again.")
    return str(runtime)


def _options_of(plan: Artifact) -> BuildOptions:
    kept = plan.made_by["options"]
    fields = {field.name: kept[field.name] for field in dataclasses.fields(BuildOptions)}
    cache = fields["timing_cache"]
    return BuildOptions(**{**fields, "timing_cache": None if cache is None else Path(cache)})


def build(
    model: str | None = None,
    *,
    engine: str,
    options: BuildOptions = engines.BUILD,
    progress: Progress = silent,
) -> Artifact:
    """Compile a plan into `engines/`, signed, and prove it where this machine has the GPU for it.

    A runtime that compiles nothing gives the graph or the checkpoint that it opens.
    """
    runtime, precision = engines.parse(engine)
    if runtime is None:
        raise InvalidRequestError(f"{engine!r} names no runtime to build for.", f"Give it, such as trt:{precision}.")
    if engines.modules()[runtime].OPENS != "plan":
        return file_for(model, runtime, precision, progress=progress)
    engines.compiling(runtime).capability(options)  # what cannot be met is said before the work
    signature.make_key()
    graph = graph_for(model, precision, form=_form(runtime, precision), progress=progress)
    _require_not_refuted(graph)
    plan = engines.compiling(runtime).compile(graph, ENGINES, options, progress=progress)
    if (reason := _unprovable(plan, graph)) is not None:
        plan = dataclasses.replace(plan, parity=_without_engine(graph.parity, reason))
        signature.publish(plan)
        return plan
    pictures = pictures_of(None)[: PROOF_IMAGES[graph.made_by["weights"]["kind"]]]
    report = _judged(graph, plan, runtime, pictures, device="cuda", progress=progress)
    plan = _with_proof(plan, report)
    _require_passed(report, plan)
    return plan


def _unprovable(plan: Artifact, graph: Artifact) -> str | None:
    """What keeps this machine from proving a plan that it can build."""
    if plan.made_by["gpu"] is None:
        return f"there is no GPU of compute capability {plan.made_by['compute_capability']} here"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed here"
    try:
        origin(graph)
    except SegdeployError as error:
        return error.what
    return None


def _without_engine(report: Mapping[str, Any] | None, reason: str) -> dict[str, Any] | None:
    """What was proven of a graph, said of an engine made from it that cannot run here."""
    if report is None:
        return None
    stages = [stage for stage in report["stages"] if stage["name"] != "engine"]
    failing = next((stage["name"] for stage in stages if stage["passed"] is False), None)
    engine = {"name": "engine", "agreement": None, "passed": None, "reason": reason}
    return {
        **report,
        "stages": [*stages, engine],
        "passed": failing is None,
        "first_failing_stage": failing,
        "proven_to": stages[-1]["name"] if stages else None,
    }


def graph_for(
    model: str | None, precision: Precision = Precision.FP32, *, form: str | None = None, progress: Progress = silent
) -> Artifact:
    """The graph of a model, made and proven where it is missing or older than what it is made from."""
    known = _known_graph(model, precision, form)
    if known is not None:
        return known
    name = model or _newest_export() or DEFAULT_MODEL
    if precision is Precision.FP32:
        return export(name, progress=progress)
    (graph,) = narrow(name, Narrow(precision, [form] if form else []), progress=progress)
    return graph


def _known_graph(model: str | None, precision: Precision, form: str | None) -> Artifact | None:
    if model is None:
        newest = _newest_export()
        return None if newest is None else _known_graph(newest, precision, form)
    if model.endswith(".onnx"):
        return _of_precision(artifact.read(Path(model)), precision)
    if model.endswith(".safetensors") or os.sep in model:
        raise InvalidRequestError(
            f"{model} is no graph: --model takes a name or a .onnx file.",
            f"Export it first: segdeploy export --model NAME --weights {model}",
        )
    models.require(model)
    path = artifact.graph_path(EXPORTS, model, precision, form)
    if not path.is_file() or not artifact.manifest_path(path).is_file():
        return None
    graph = artifact.read(path)
    return None if _is_stale(graph) else graph


def _is_stale(graph: Artifact) -> bool:
    """Older than the checkpoint that training left, or made from another float32 graph than the one at hand."""
    if graph.precision is Precision.FP32:
        trained = CHECKPOINTS / f"{graph.spec.model}.safetensors"
        return trained.is_file() and checkpoint.read(trained).made_at > graph.made_at
    fp32 = _known_graph(graph.spec.model, Precision.FP32, None)
    with as_it_was_written(graph):
        return fp32 is None or bool(graph.made_by["graph"]["sha256"] != fp32.sha256)


def _of_precision(graph: Artifact, precision: Precision) -> Artifact:
    if graph.precision is not precision:
        raise InvalidFileError(
            f"{graph.path} is an {graph.precision} graph; {precision} was asked for.",
            f"Give --engine {graph.precision}.",
        )
    return graph


def _newest_export() -> str | None:
    graphs = [path for path in EXPORTS.glob("*.onnx") if artifact.manifest_path(path).is_file()]
    manifests = [artifact.read_manifest(path) for path in graphs]
    listed = [manifest for manifest in manifests if manifest.spec.output == "class_map"]
    newest = max(listed, key=lambda manifest: manifest.made_at, default=None)
    return None if newest is None else newest.spec.model


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint and where it came from: packaged, file or random."""

    kind: str
    checkpoint: Artifact

    def described_for(self, folder: Path) -> dict[str, Any]:
        """What a manifest in `folder` says of them; the path is relative, so that the project can move."""
        path = self.checkpoint.path
        named = path.name if self.kind == "packaged" else os.path.relpath(path, folder)
        return {"kind": self.kind, "path": named, "sha256": self.checkpoint.sha256}


def weights_for(
    model: str,
    given: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
) -> Weights:
    """`given`: a path, "random", or None for what training left here, else what comes with the package."""
    models.require(model)
    if given == "random":
        return Weights("random", _random_checkpoint(model, options or {}, size or RANDOM_SIZE))
    if options:
        raise InvalidRequestError(
            "--option builds a new network; trained weights have theirs.", "Leave it out, or add --weights random."
        )
    trained, packaged = CHECKPOINTS / f"{model}.safetensors", PACKAGED / f"{model}.safetensors"
    if given is not None:
        return Weights("file", _of_model(checkpoint.read(Path(given)), model))
    if trained.is_file():
        return Weights("file", _of_model(checkpoint.read(trained), model))
    if packaged.is_file():
        return Weights("packaged", checkpoint.read(packaged))
    raise InvalidRequestError(
        f"there are no weights for {model}.", f"Train some: segdeploy train --model {model} --data DIR"
    )


def origin(graph: Artifact) -> Artifact:
    """The checkpoint a graph was made from, once it is still the same file."""
    with as_it_was_written(graph):
        weights = graph.made_by["weights"]
        base = PACKAGED if weights["kind"] == "packaged" else graph.path.parent
        path, sha256 = base / weights["path"], weights["sha256"]
    found = checkpoint.read(path)
    if found.sha256 != sha256:
        raise InvalidFileError(
            f"{found.path} is no longer the checkpoint that {graph.path} was made from.",
            f"Export again: segdeploy export --model {graph.spec.model}",
        )
    return found


@contextlib.contextmanager
def as_it_was_written(graph: Artifact) -> Iterator[None]:
    """Manifests are text, and people edit text."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidFileError(
            f"{artifact.manifest_path(graph.path)} is not as segdeploy wrote it: {error!r}.",
            f"Export again: segdeploy export --model {graph.spec.model}",
        ) from error


def packaged_images() -> list[Path]:
    """Thirty-two small photographs of the data that the packaged weights were trained on."""
    return sorted((PACKAGED / "calibration").glob("*.png"))


def export(
    model: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    output: str = "class_map",
    options: Mapping[str, Any] | None = None,
    data: Path | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Write the graph of a model into `export/`, prove it on real images, and give it with its proof.

    Raise GateFailedError, with the graph left in place and its failed proof in the manifest, where it is not the
    same network.
    """
    from segdeploy.graphs.to_onnx import to_onnx

    engines.modules()[engines.REFERENCE].import_runtime()  # the proof is no option: say so before the work
    source = weights_for(model, weights, options=options, size=size)
    network, spec = checkpoint.load(source.checkpoint.path)
    height, width = size or (spec.height, spec.width)
    spec = Spec.from_dict({**dataclasses.asdict(spec), "height": height, "width": width, "output": output})
    suffix = "" if output == "class_map" else f".{output}"
    with progress(f"Exporting {model}", 1) as done:
        path = EXPORTS / f"{model}.fp32{suffix}.onnx"
        graph = to_onnx(network, spec, path, weights=source.described_for(EXPORTS))
        done()
    pictures = pictures_of(data) if data is not None else pictures_of(None)[: PROOF_IMAGES[source.kind]]
    report = _judged(graph, graph, engines.REFERENCE, pictures, device="cpu", progress=progress)
    proven = _with_proof(graph, report)
    _require_passed(report, proven)
    return proven


def parity(
    model: str | None = None,
    *,
    engine: str = "fp32",
    data: Path | None = None,
    device: str = "auto",
    options: RunOptions = engines.RUN,
    limits: Mapping[str, float | None] | None = None,
    bisect: bool = False,
    require_engine: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare PyTorch, the graph and an engine pixel by pixel; the proof goes into the manifest of what was opened.

    The report's `passed` says whether it holds; nothing is raised when it does not. `limits` take the place of the
    precision's own: `min_agreement`, `max_drop` (points of mIoU), of float32 `max_unexplained`. `bisect` looks for the
    first layer that departs in the first failing stage, or in the last one where none fails. `require_engine` raises
    MissingRuntimeError where the engine cannot run on this machine.
    """
    pictures = pictures_of(data)
    found = find(model, engine, device, progress)
    if require_engine:
        _require_engine(found)
    if bisect and found.file.kind == "checkpoint":
        raise InvalidRequestError("--bisect looks into graphs; torch runs a checkpoint.", "Give --engine ort:fp32.")
    graph = _graph_of(found, model, progress)
    judge = functools.partial(
        _judged, device=found.device, options=options, limits=limits, bisect=bisect, progress=progress
    )
    report = judge(graph, found.file, found.runtime, pictures)
    if found.file.kind != "checkpoint":
        _with_proof(found.file, report)
    return report


def _require_engine(found: Found) -> None:
    form, runs = found.file.form, engines.modules()[found.runtime].FORM
    if form not in {None, runs}:
        raise MissingRuntimeError(
            f"{found.file.path}: no runtime on this machine runs the {form} form exactly.",
            "Leave out --require-engine to prove the graph alone, or prove it on a machine with the GPU it is for.",
        )


def _graph_of(found: Found, model: str | None, progress: Progress) -> Artifact:
    """The graph whose proof an engine's is: the one it opens, the one it was built from, or the reference's."""
    if found.file.kind == "graph":
        return found.file
    if found.file.kind == "checkpoint":
        return graph_for(model, progress=progress)
    with as_it_was_written(found.file):
        source = found.file.made_by["graph"]
        graph = artifact.read(found.file.path.parent / source["path"])
        if graph.sha256 != source["sha256"]:
            raise InvalidFileError(
                f"{graph.path} is no longer the graph that {found.file.path} was built from.",
                f"Build again: segdeploy build --model {graph.spec.model} --engine {found.runtime}:{found.precision}",
            )
    return graph


def judged(found: Found, pictures: Sequence[Picture], *, progress: Progress = silent) -> dict[str, Any]:
    """The proof of a graph or a plan in its runtime; it is written nowhere."""
    graph = _graph_of(found, None, progress)
    kind = graph.made_by["weights"]["kind"]
    some = pictures[: PROOF_IMAGES[kind]] if kind == "random" else pictures
    return _judged(graph, found.file, found.runtime, some, device=found.device, progress=progress)


def _judged(
    graph: Artifact,
    file: Artifact,
    runtime: str,
    pictures: Sequence[Picture],
    *,
    device: str,
    options: RunOptions = engines.RUN,
    limits: Mapping[str, float | None] | None = None,
    bisect: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """The proof of what a runtime opens, along the chain of its graph."""
    _require_torch()
    source = origin(graph)
    if file.kind == "checkpoint":
        file = dataclasses.replace(source, spec=graph.spec)
    with contextlib.ExitStack() as stack:
        engine = None
        if file.form in {None, engines.modules()[runtime].FORM}:
            opened = engines.open_engine(file, runtime=runtime, device=device, options=options)
            engine = stack.enter_context(opened)
        stages = _limited(_stages(graph, engine, with_graph=file.kind != "checkpoint"), limits)
        reference = _reference(source, graph.spec)
        report = _report(graph, stages, pictures, reference=reference, progress=progress)
        if bisect:
            report["departure"] = _departure(
                graph, file, stages, report, pictures, reference=reference, progress=progress
            )
    return report


def _require_torch() -> None:
    try:
        from segdeploy.proof import stages  # noqa: F401 - it judges, in PyTorch
    except ImportError as error:
        raise checkpoint.missing_torch() from error


def _with_proof(file: Artifact, report: Mapping[str, Any]) -> Artifact:
    """The same with its proof in its manifest; a plan is signed again, or the proof put beside it without a key."""
    file = dataclasses.replace(file, parity=report)
    if file.kind != "plan":
        artifact.write_manifest(file)
    elif signature.is_signed(file.path):
        signature.publish(file)
    else:
        beside = file.path.with_name(f"{file.path.name}.parity.json")
        artifact.write_atomically(beside, (json.dumps(file.parity, indent=1) + "\n").encode())
        log.warning("The manifest is not signed with a key of this user: the proof stands in %s.", beside)
    return file


def _stages(graph: Artifact, engine: Engine | None, *, with_graph: bool) -> "list[Stage]":
    from segdeploy.engines import ort
    from segdeploy.proof.stages import Stage

    if graph.precision is not Precision.FP32:
        with as_it_was_written(graph):
            stages: list[Stage] = _narrowing_module().stages(graph, sibling(graph), engine)
            return stages
    as_written = [Stage("graph", ort.open(graph, device="cpu", optimised=False))] if with_graph else []
    return [*as_written, Stage("engine", engine)]


def _limited(stages: "Sequence[Stage]", limits: Mapping[str, float | None] | None) -> "Sequence[Stage]":
    from segdeploy.proof.stages import Asked

    return Asked(**(limits or {})).applied(stages)


def _departure(
    graph: Artifact,
    file: Artifact,
    stages: "Sequence[Stage]",
    report: Mapping[str, Any],
    pictures: Sequence[Picture],
    *,
    reference: "Reference",
    progress: Progress,
) -> dict[str, Any]:
    """What the first failing stage does otherwise than PyTorch, or the last one that ran, on its worst image."""
    from segdeploy.proof import bisection

    name = report["first_failing_stage"] or report["proven_to"]
    stage = next(stage for stage in stages if stage.name == name)
    worst = next(each["worst_images"] for each in report["stages"] if each["name"] == name)
    picture = next((each for each in pictures if worst and each.image.name == worst[0]["image"]), pictures[0])
    image = images.prepared(images.read(picture.image), graph.spec)
    with progress(f"Looking into {file.path.stem}", 1) as done:
        looked_into, model, run = _debugged(graph, file, stage)
        found = bisection.look(reference.network, graph.spec, model, image, run=run)
        done()
    drawn = None if stage.engine is None else stage.engine.classify(image[None])[0]
    otherwise = bisection.none_found(found, drawn, reference.class_map(image)[0], passed=report["passed"])
    departure = bisection.departure(
        found, stage=name, precision=looked_into.precision, image=picture.image.name, otherwise=otherwise
    )
    if file.kind == "plan" and name == "engine":
        about = "A plan cannot be looked into without building another: this is of the graph it was built from."
        departure = dataclasses.replace(departure, text=f"{departure.text} {about}")
    return dataclasses.asdict(departure)


def _debugged(graph: Artifact, file: Artifact, stage: "Stage") -> "tuple[Artifact, onnx.ModelProto, Run]":
    """What a stage runs, as a graph, and what gives all of a copy's outputs in the arithmetic of that stage."""
    import onnx

    from segdeploy.engines import ort

    narrowing = _narrowing_module()
    if stage.name == narrowing.FP32_STAGE:
        graph = sibling(graph)
    model = onnx.load(graph.path)
    if stage.name == "engine" and stage.engine is not None and file.kind == "graph":
        tensors = engines.of_graphs(stage.engine.runtime).tensors
        return graph, model, functools.partial(tensors, device=stage.engine.device)
    model, optimised = narrowing.arithmetic(graph, model, as_written=True)
    return graph, model, functools.partial(ort.tensors, device="cpu", optimised=optimised)


def sibling(graph: Artifact) -> Artifact:
    """The float32 graph that a narrow one was made from, once it is still the same file."""
    fp32 = artifact.read(graph.path.with_name(graph.made_by["graph"]["path"]))
    if fp32.sha256 != graph.made_by["graph"]["sha256"]:
        raise InvalidFileError(
            f"{fp32.path} is no longer the graph that {graph.path} was made from.",
            f"Export again: segdeploy export --model {graph.spec.model} --precision {graph.precision}",
        )
    return fp32


def _reference(source: Artifact, spec: Spec) -> "Reference":
    return _kept_reference(source.path, source.sha256, spec.to_json())


@functools.lru_cache(maxsize=1)
def _kept_reference(path: Path, _sha256: str, spec: str) -> "Reference":
    """Several engines of one network are compared with the same masks: PyTorch draws them once."""
    from segdeploy.proof.stages import Reference

    network, _ = checkpoint.load(path)
    return Reference(network, Spec.from_json(spec))


def _report(
    graph: Artifact,
    stages: "Sequence[Stage]",
    pictures: Sequence[Picture],
    *,
    reference: "Reference",
    progress: Progress,
) -> dict[str, Any]:
    from segdeploy.proof import stages as proof

    with progress(f"Proving {graph.path.stem}", len(pictures)) as done:
        report = proof.prove(reference, stages, pictures, done=done)
    weights = graph.made_by["weights"]["kind"]
    return {
        **report,
        "model": graph.spec.model,
        "precision": graph.precision,
        "form": graph.form,
        "weights": weights,
        "gated": weights != "random",
        "departure": None,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Narrow:
    """A narrower type that was asked for, and what may be lost on the way to it.

    `forms`: of int8, all where none is named. `calibrate`: a folder of images for calibration or the range of fp16;
    `cache`: a calibration cache of TensorRT in their place. `data`: images that decide and prove; with masks/, mIoU is
    part of the budget. `max_drop`: points of mIoU; `min_agreement`: share of the pixels that PyTorch decides.
    """

    precision: Precision
    forms: Sequence[str] = ()
    calibrate: Path | None = None
    method: str | None = None
    cache: Path | None = None
    data: Path | None = None
    min_agreement: float | None = None
    max_drop: float | None = None

    def budget(self) -> dict[str, float]:
        """The limits that were given; the others are the precision's own."""
        given = {"min_agreement": self.min_agreement, "max_drop": self.max_drop}
        return {name: value for name, value in given.items() if value is not None}


def narrow(
    model: str,
    wanted: Narrow,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[Artifact]:
    """The fp16 graph, or the int8 graph in each form, inside the budget and proven.

    Raise GateFailedError, and leave an earlier graph in place, where the budget cannot be met.
    """
    fp32 = _fp32_for_narrowing(model, weights, size, options, progress)
    narrowing, recipes = _narrowing(fp32, wanted, progress)
    make = narrowing.measured if is_random(fp32) else narrowing.within_budget
    return [_with_delivered(make(recipe)) for recipe in recipes]


def sensitivity(model: str | None, wanted: Narrow, *, progress: Progress = silent) -> dict[str, Any]:
    """What each layer gives back when it alone is float32, and what that costs: the most for its cost first."""
    fp32 = graph_for(model, progress=progress)
    _require_not_refuted(fp32)
    narrowing, recipes = _narrowing(fp32, wanted, progress)
    recipe = recipes[-1]
    search = narrowing.search(recipe)
    ranking = narrowing.ranking(recipe, search)
    return {
        "schema": 1,
        "model": fp32.spec.model,
        "precision": wanted.precision,
        "form": recipe.form,
        "images": len(narrowing.parts.rank),
        "narrow": dataclasses.asdict(search.quality()),
        "always_float": dict(recipe.always),
        "cost_unit": "multiply-adds" if search.quality().ms is None else "ms",
        "layers": [{**dataclasses.asdict(each), "score": each.score} for each in ranking],
        "record": str(search.record.path),
    }


def _fp32_for_narrowing(
    model: str,
    weights: str | None,
    size: tuple[int, int] | None,
    options: Mapping[str, Any] | None,
    progress: Progress,
) -> Artifact:
    """The float32 graph at hand, where nothing else was asked for; a refuted one is made narrower for nobody."""
    if weights or size or options:
        return export(model, weights=weights, size=size, options=options, progress=progress)
    fp32 = graph_for(model, progress=progress)
    _require_not_refuted(fp32)
    return fp32


def _narrowing(fp32: Artifact, wanted: Narrow, progress: Progress) -> "tuple[Narrowing, list[Recipe]]":
    narrowing = _narrowing_module()
    kind = fp32.made_by["weights"]["kind"]
    packaged = None if kind == "file" else packaged_images()
    parts = narrowing.parts_of(packaged=packaged, calibrate=wanted.calibrate, data=wanted.data)
    if kind == "random":
        some = parts.prove[: PROOF_IMAGES[kind]]
        parts = dataclasses.replace(parts, calibrate=parts.calibrate[:RANDOM_STATISTICS], prove=some)
    budget = dataclasses.replace(narrowing.BUDGETS[wanted.precision], **wanted.budget())
    recipes = narrowing.recipes(
        fp32, wanted.precision, wanted.forms, parts, method=wanted.method, cache=wanted.cache, progress=progress
    )
    reference = _reference(origin(fp32), fp32.spec)
    report = functools.partial(_report, reference=reference, progress=progress)
    return narrowing.Narrowing(parts, budget, reference, report, progress=progress), recipes


def _narrowing_module() -> ModuleType:
    try:
        from segdeploy.quantization import search as module
    except ImportError as error:
        raise checkpoint.missing_torch() from error
    return module


def _with_delivered(graph: Artifact) -> Artifact:
    """The same, its manifest saying what the runtimes at hand compute in the type that was asked for."""
    import onnx

    from segdeploy.proof import executed

    at_hand = {}
    for runtime, module in engines.modules().items():
        if module.OPENS == "graph" and graph.form in {None, module.FORM} and engines.installed(module.PACKAGES):
            at_hand[runtime] = executed.delivered(graph, runtime=runtime, device="cpu")
    facts = {"asked": executed.asked(onnx.load(graph.path)), "delivered": at_hand}
    graph = dataclasses.replace(graph, made_by={**graph.made_by, **facts})
    artifact.write_manifest(graph)
    return graph


def _require_not_refuted(file: Artifact) -> None:
    """A graph that failed its proof can be looked into and timed, but draws no masks for anybody."""
    if file.parity is not None:
        with as_it_was_written(file):
            _require_passed(file.parity, file)


def _require_passed(report: Mapping[str, Any], graph: Artifact) -> None:
    if report["passed"] or not report["gated"]:
        return
    stage = next(stage for stage in report["stages"] if stage["name"] == report["first_failing_stage"])
    raise GateFailedError(
        f"{graph.path} does not draw PyTorch's masks from the stage {stage['name']!r} on: {stage['reason']}.",
        f"Give another --size, or see where: segdeploy parity --model {graph.path} --engine {graph.precision} --bisect",
    )


def evaluate(
    model: str | None = None,
    *,
    data: Path,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    progress: Progress = silent,
) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU by class of an engine over a labelled folder's validation images."""
    from segdeploy.proof import accuracy

    samples = dataset.open_folder(data).val
    found = find(model, engine, device, progress)
    with (
        engines.open_engine(found.file, runtime=found.runtime, device=found.device, options=options) as opened,
        progress(f"Evaluating {found.file.spec.model}", len(samples)) as done,
    ):
        counts = accuracy.confusion(opened, samples, done=done)
    return {
        "schema": accuracy.SCHEMA,
        **_described(found, opened),
        "sha256": found.file.sha256,
        "data": str(data),
        "images": len(samples),
        **accuracy.report(counts, found.file.spec),
    }


def _described(found: Found, opened: Engine) -> dict[str, Any]:
    return {
        "model": found.file.spec.model,
        "runtime": found.runtime,
        "device": opened.device,
        "precision": found.precision,
        "delivered": opened.delivered,
        "random_weights": is_random(found.file),
    }


def infer(
    inputs: Sequence[str],
    *,
    out: Path = Path("masks"),
    model: str | None = None,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    overlay: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Masks for every image below the inputs; the report says what was done, skipped and failed, and why."""
    sources, skipped = folder.find(inputs, leave_out=out)
    found = find(model, engine, device, progress)
    threads = 1 if engines.modules()[found.runtime].CONCURRENT else None
    with (
        _open(found, dataclasses.replace(options, threads=threads, hint="throughput")) as opened,
        progress("Segmenting", len(sources)) as done,
    ):
        summary = folder.run(opened, sources, out, overlay=overlay, done=done)
    summary.skipped = skipped
    return {**summary.report(), **_described(found, opened), "file": str(found.file.path)}


def train(
    model: str,
    *,
    data: Path,
    plan: "Plan",
    size: tuple[int, int],
    options: Mapping[str, Any],
    out: Path = CHECKPOINTS,
    ignore_index: int = 255,
    resume: bool = False,
    progress: "TrainingProgress",
) -> Path:
    """Train a network on a labelled folder; give the path of the best checkpoint."""
    labelled = dataset.open_folder(data)
    classes, colours = dataset.classes_of(labelled, ignore_index=ignore_index)
    margin = models.build(model, len(classes), **options).margin
    spec = Spec(model, dict(options), classes, colours, *size, ignore_index=ignore_index, margin=margin)
    from segdeploy.training import loop

    return loop.train(labelled, spec, plan, out, resume=resume, progress=progress)


def is_random(file: Artifact) -> bool:
    return file.made_by.get("command") == "random" or file.made_by.get("weights", {}).get("kind") == "random"


def pictures_of(data: Path | None) -> list[Picture]:
    """Validation images with masks of a labelled folder, all images of an unlabelled one, or the packaged ones."""
    if data is None:
        return [Picture(image, None) for image in packaged_images()]
    if (data / "masks").is_dir():
        return [Picture(sample.image, sample.mask) for sample in dataset.open_folder(data).val]
    return [Picture(image, None) for image in dataset.image_files(data)]


def _of_model(found: Artifact, model: str) -> Artifact:
    if found.spec.model != model:
        raise InvalidFileError(
            f"{found.path} holds a {found.spec.model}, not a {model}.", f"Give --model {found.spec.model}."
        )
    return found


def _random_checkpoint(model: str, options: Mapping[str, Any], size: tuple[int, int]) -> Artifact:
    """An untrained network, seeded, whose normalisation statistics come from real images: good for timing alone."""
    try:
        import torch
    except ImportError as error:
        raise checkpoint.missing_torch() from error
    palette = palettes.named["voc"]
    torch.manual_seed(RANDOM_SEED)
    network = models.build(model, len(palette.classes), **options)
    network.check_size(*size)
    spec = Spec(model, dict(options), palette.classes, palette.colours, *size, margin=network.margin)
    photos = [images.prepared(images.read(path), spec) for path in packaged_images()[:RANDOM_STATISTICS]]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average over what follows
    with torch.no_grad():
        models.deployed(network.train(), spec)(torch.tensor(np.stack(photos)))
    path = EXPORTS / f"{model}.random.safetensors"
    checkpoint.save(path, network.state_dict(), spec, made_by={"command": "random", "seed": RANDOM_SEED})
    return checkpoint.read(path)
