"""Finds or makes what a verb needs (checkpoint -> graph -> engine) and proves it on the way. The Python API."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy import artifact, checkpoint, dataset, engines, images, models, palettes, signature
from segdeploy import infer as folder
from segdeploy._watch import Watch, silent
from segdeploy.artifact import Artifact
from segdeploy.engines import BuildOptions, Engine, RunOptions
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from segdeploy.benchmarks.parity import Picture, Reference, Stage
    from segdeploy.narrow import Narrowing, Recipe
    from segdeploy.training.loop import Plan, Progress

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
    watch: Watch = silent,
) -> Engine:
    """An engine, ready: `segdeploy.open("unet", engine="fp32").segment(photo)`.

    `model` is a name, the path of a graph or of a plan, or None for the newest export; what is missing is made and
    proven. `engine` without a runtime is the best usable one on this machine.
    """
    return _open(_found(model, engine, device, watch), options)


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What will be opened, in which runtime, on which device."""

    file: Artifact
    runtime: str
    precision: Precision
    device: str


def _found(model: str | None, engine: str, device: str, watch: Watch) -> _Found:
    """What an engine's name means here; where it leaves the runtime open, the best one, and the log says why."""
    runtime, precision = engines.parse(engine)
    if runtime is None and model is not None and model.endswith(".plan"):
        runtime = _runtime_of(signature.read_manifest(Path(model)))
    if runtime is None:
        runtime, device = _chosen(model, precision, device, watch)
    return _Found(file_for(model, runtime, precision, watch=watch), runtime, precision, device)


def _chosen(model: str | None, precision: Precision, device: str, watch: Watch) -> tuple[str, str]:
    """The best usable runtime and its device; a graph of a form that nothing here runs is the reference's."""
    from segdeploy import choice

    found = choice.candidates(device)
    if model is not None and model.endswith(".onnx") and (form := artifact.read(Path(model)).form) is not None:
        exact = [each for each in found if form == engines.modules()[each.runtime].FORM]
        if all(each.obstacle for each in exact):
            return engines.REFERENCE, device
        found = exact
    chosen = choice.choose(found, lambda name: file_for(model, name, precision, watch=watch), watch=watch)
    log.info("%s runs in %s on %s: %s.", precision, chosen.runtime, chosen.device, chosen.why)
    return chosen.runtime, chosen.device


def _open(found: _Found, options: RunOptions) -> Engine:
    _require_not_refuted(found.file)
    return engines.open_engine(found.file, runtime=found.runtime, device=found.device, options=options)


def file_for(model: str | None, runtime: str, precision: Precision, *, watch: Watch = silent) -> Artifact:
    """What a runtime opens for a model: the checkpoint (at the graph's size, where there is one), graph or plan."""
    module = engines.modules()[runtime]
    if module.OPENS == "plan":
        return _plan_for(model, runtime, precision, watch)
    if module.OPENS == "graph":
        return graph_for(model, precision, form=_form(runtime, precision), watch=watch)
    if precision is not Precision.FP32:
        raise InvalidRequestError(f"{runtime} is the reference, in fp32.", "Choose another runtime, such as ort.")
    graph = _known_graph(model, Precision.FP32, None)
    if graph is None:
        return weights_for(model or DEFAULT_MODEL).checkpoint
    return dataclasses.replace(origin(graph), spec=dataclasses.replace(graph.spec, output="class_map"))


def _form(runtime: str, precision: Precision) -> str | None:
    return engines.modules()[runtime].FORM if precision is Precision.INT8 else None


def _plan_for(model: str | None, runtime: str, precision: Precision, watch: Watch) -> Artifact:
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
            with _as_it_was_written(plan):
                if _is_current(plan):
                    return plan
                options = _options_of(plan)
    return build(name, engine=f"{runtime}:{precision}", options=options, watch=watch)


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
    watch: Watch = silent,
) -> Artifact:
    """Compile a plan into `engines/`, signed, and prove it where this machine has the GPU for it.

    A runtime that compiles nothing gives the graph or the checkpoint that it opens.
    """
    runtime, precision = engines.parse(engine)
    if runtime is None:
        raise InvalidRequestError(f"{engine!r} names no runtime to build for.", f"Give it, such as trt:{precision}.")
    if engines.modules()[runtime].OPENS != "plan":
        return file_for(model, runtime, precision, watch=watch)
    engines.compiling(runtime).capability(options)  # what cannot be met is said before the work
    signature.make_key()
    graph = graph_for(model, precision, form=_form(runtime, precision), watch=watch)
    _require_not_refuted(graph)
    plan = engines.compiling(runtime).compile(graph, ENGINES, options, watch=watch)
    if (reason := _unprovable(plan, graph)) is not None:
        plan = dataclasses.replace(plan, parity=_without_engine(graph.parity, reason))
        signature.publish(plan)
        return plan
    pictures = _pictures(None)[: PROOF_IMAGES[graph.made_by["weights"]["kind"]]]
    plan, report = _prove(graph, plan, runtime, pictures, device="cuda", watch=watch)
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
    model: str | None, precision: Precision = Precision.FP32, *, form: str | None = None, watch: Watch = silent
) -> Artifact:
    """The graph of a model, made and proven where it is missing or older than what it is made from."""
    known = _known_graph(model, precision, form)
    if known is not None:
        return known
    name = model or _newest_export() or DEFAULT_MODEL
    if precision is Precision.FP32:
        return export(name, watch=watch)
    (graph,) = narrow(name, Narrow(precision, [form] if form else []), watch=watch)
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
    with _as_it_was_written(graph):
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
    with _as_it_was_written(graph):
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
def _as_it_was_written(graph: Artifact) -> Iterator[None]:
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
    watch: Watch = silent,
) -> Artifact:
    """Write the graph of a model into `export/`, prove it on real images, and give it with its proof.

    Raise GateFailedError, with the graph left in place and its failed proof in the manifest, where it is not the
    same network.
    """
    from segdeploy.export.to_onnx import to_onnx

    engines.modules()[engines.REFERENCE].import_runtime()  # the proof is no option: say so before the work
    source = weights_for(model, weights, options=options, size=size)
    network, spec = checkpoint.load(source.checkpoint.path)
    height, width = size or (spec.height, spec.width)
    spec = Spec.from_dict({**dataclasses.asdict(spec), "height": height, "width": width, "output": output})
    suffix = "" if output == "class_map" else f".{output}"
    with watch(f"Exporting {model}", 1) as done:
        path = EXPORTS / f"{model}.fp32{suffix}.onnx"
        graph = to_onnx(network, spec, path, weights=source.described_for(EXPORTS))
        done()
    pictures = _pictures(data) if data is not None else _pictures(None)[: PROOF_IMAGES[source.kind]]
    proven, report = _prove(graph, graph, engines.REFERENCE, pictures, device="cpu", watch=watch)
    _require_passed(report, proven)
    return proven


def parity(
    model: str | None = None,
    *,
    engine: str = "fp32",
    data: Path | None = None,
    device: str = "auto",
    options: RunOptions = engines.RUN,
    watch: Watch = silent,
) -> dict[str, Any]:
    """Compare PyTorch, the graph and an engine pixel by pixel; the proof goes into the manifest of what was opened.

    The report's `passed` says whether it holds; nothing is raised when it does not.
    """
    pictures = _pictures(data)
    found = _found(model, engine, device, watch)
    graph = _graph_of(found, model, watch)
    _, report = _prove(graph, found.file, found.runtime, pictures, device=found.device, options=options, watch=watch)
    return report


def _graph_of(found: _Found, model: str | None, watch: Watch) -> Artifact:
    """The graph whose proof an engine's is: the one it opens, the one it was built from, or the reference's."""
    if found.file.kind == "graph":
        return found.file
    if found.file.kind == "checkpoint":
        return graph_for(model, watch=watch)
    with _as_it_was_written(found.file):
        source = found.file.made_by["graph"]
        graph = artifact.read(found.file.path.parent / source["path"])
        if graph.sha256 != source["sha256"]:
            raise InvalidFileError(
                f"{graph.path} is no longer the graph that {found.file.path} was built from.",
                f"Build again: segdeploy build --model {graph.spec.model} --engine {found.runtime}:{found.precision}",
            )
    return graph


def _prove(
    graph: Artifact,
    file: Artifact,
    runtime: str,
    pictures: "Sequence[Picture]",
    *,
    device: str,
    options: RunOptions = engines.RUN,
    watch: Watch,
) -> tuple[Artifact, dict[str, Any]]:
    """Prove what a runtime opens, along the chain of its graph; the proof goes into its manifest, if it has one."""
    source = origin(graph)
    if file.kind == "checkpoint":
        file = dataclasses.replace(source, spec=graph.spec)
    with contextlib.ExitStack() as stack:
        engine = None
        if file.form in {None, engines.modules()[runtime].FORM}:
            opened = engines.open_engine(file, runtime=runtime, device=device, options=options)
            engine = stack.enter_context(opened)
        stages = _stages(graph, engine, with_graph=file.kind != "checkpoint")
        report = _report(graph, stages, pictures, reference=_reference(source, graph.spec), watch=watch)
    if file.kind == "checkpoint":
        return graph, report
    file = dataclasses.replace(file, parity=report)
    _write_proof(file)
    return file, report


def _write_proof(file: Artifact) -> None:
    """Into the manifest; a plan's is signed again, and where there is no key the proof stands beside it."""
    if file.kind != "plan":
        artifact.write_manifest(file)
    elif signature.is_signed(file.path):
        signature.publish(file)
    else:
        beside = file.path.with_name(f"{file.path.name}.parity.json")
        artifact.write_atomically(beside, (json.dumps(file.parity, indent=1) + "\n").encode())
        log.warning("The manifest is not signed with a key of this user: the proof stands in %s.", beside)


def _stages(graph: Artifact, engine: Engine | None, *, with_graph: bool) -> "list[Stage]":
    from segdeploy.benchmarks.parity import Stage
    from segdeploy.engines import ort

    if graph.precision is not Precision.FP32:
        with _as_it_was_written(graph):
            stages: list[Stage] = _narrowing_module().stages(graph, _sibling(graph), engine)
            return stages
    as_written = [Stage("graph", ort.open(graph, device="cpu", optimised=False))] if with_graph else []
    return [*as_written, Stage("engine", engine)]


def _sibling(graph: Artifact) -> Artifact:
    """The float32 graph that a narrow one was made from, once it is still the same file."""
    fp32 = artifact.read(graph.path.with_name(graph.made_by["graph"]["path"]))
    if fp32.sha256 != graph.made_by["graph"]["sha256"]:
        raise InvalidFileError(
            f"{fp32.path} is no longer the graph that {graph.path} was made from.",
            f"Export again: segdeploy export --model {graph.spec.model} --precision {graph.precision}",
        )
    return fp32


def _reference(source: Artifact, spec: Spec) -> "Reference":
    from segdeploy.benchmarks.parity import Reference

    network, _ = checkpoint.load(source.path)
    return Reference(network, spec)


def _report(
    graph: Artifact, stages: "Sequence[Stage]", pictures: "Sequence[Picture]", *, reference: "Reference", watch: Watch
) -> dict[str, Any]:
    from segdeploy.benchmarks import parity as proof

    with watch(f"Proving {graph.path.stem}", len(pictures)) as done:
        report = proof.prove(reference, stages, pictures, done=done)
    weights = graph.made_by["weights"]["kind"]
    return {
        **report,
        "model": graph.spec.model,
        "precision": graph.precision,
        "form": graph.form,
        "weights": weights,
        "gated": weights != "random",
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
    watch: Watch = silent,
) -> list[Artifact]:
    """The fp16 graph, or the int8 graph in each form, inside the budget and proven.

    Raise GateFailedError, and leave an earlier graph in place, where the budget cannot be met.
    """
    fp32 = _fp32_for_narrowing(model, weights, size, options, watch)
    narrowing, recipes = _narrowing(fp32, wanted, watch)
    make = narrowing.measured if _is_random(fp32) else narrowing.within_budget
    return [_with_delivered(make(recipe)) for recipe in recipes]


def sensitivity(model: str | None, wanted: Narrow, *, watch: Watch = silent) -> dict[str, Any]:
    """What each layer gives back when it alone is float32, and what that costs: the most for its cost first."""
    fp32 = graph_for(model, watch=watch)
    _require_not_refuted(fp32)
    narrowing, recipes = _narrowing(fp32, wanted, watch)
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
    watch: Watch,
) -> Artifact:
    """The float32 graph at hand, where nothing else was asked for; a refuted one is made narrower for nobody."""
    if weights or size or options:
        return export(model, weights=weights, size=size, options=options, watch=watch)
    fp32 = graph_for(model, watch=watch)
    _require_not_refuted(fp32)
    return fp32


def _narrowing(fp32: Artifact, wanted: Narrow, watch: Watch) -> "tuple[Narrowing, list[Recipe]]":
    narrowing = _narrowing_module()
    kind = fp32.made_by["weights"]["kind"]
    packaged = None if kind == "file" else packaged_images()
    parts = narrowing.parts_of(packaged=packaged, calibrate=wanted.calibrate, data=wanted.data)
    if kind == "random":
        some = parts.prove[: PROOF_IMAGES[kind]]
        parts = dataclasses.replace(parts, calibrate=parts.calibrate[:RANDOM_STATISTICS], prove=some)
    budget = dataclasses.replace(narrowing.BUDGETS[wanted.precision], **wanted.budget())
    recipes = narrowing.recipes(
        fp32, wanted.precision, wanted.forms, parts, method=wanted.method, cache=wanted.cache, watch=watch
    )
    reference = _reference(origin(fp32), fp32.spec)
    report = functools.partial(_report, reference=reference, watch=watch)
    return narrowing.Narrowing(parts, budget, reference, report, watch=watch), recipes


def _narrowing_module() -> ModuleType:
    try:
        from segdeploy import narrow as module
    except ImportError as error:
        raise checkpoint.missing_torch() from error
    return module


def _with_delivered(graph: Artifact) -> Artifact:
    """The same, its manifest saying what the runtimes at hand compute in the type that was asked for."""
    import onnx

    from segdeploy.benchmarks import delivered

    at_hand = {}
    for runtime, module in engines.modules().items():
        if module.OPENS == "graph" and graph.form in {None, module.FORM} and engines.installed(module.PACKAGES):
            at_hand[runtime] = delivered.delivered(graph, runtime=runtime, device="cpu")
    facts = {"asked": delivered.asked(onnx.load(graph.path)), "delivered": at_hand}
    graph = dataclasses.replace(graph, made_by={**graph.made_by, **facts})
    artifact.write_manifest(graph)
    return graph


def _require_not_refuted(file: Artifact) -> None:
    """A graph that failed its proof can be looked into and timed, but draws no masks for anybody."""
    if file.parity is not None:
        with _as_it_was_written(file):
            _require_passed(file.parity, file)


def _require_passed(report: Mapping[str, Any], graph: Artifact) -> None:
    if report["passed"] or not report["gated"]:
        return
    stage = next(stage for stage in report["stages"] if stage["name"] == report["first_failing_stage"])
    raise GateFailedError(
        f"{graph.path} does not draw PyTorch's masks from the stage {stage['name']!r} on: {stage['reason']}.",
        f"Give another --size, or look closer: segdeploy parity --model {graph.spec.model} --data DIR",
    )


def evaluate(
    model: str | None = None,
    *,
    data: Path,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    watch: Watch = silent,
) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU by class of an engine over a labelled folder's validation images."""
    from segdeploy.benchmarks import accuracy

    samples = dataset.open_folder(data).val
    found = _found(model, engine, device, watch)
    with (
        engines.open_engine(found.file, runtime=found.runtime, device=found.device, options=options) as opened,
        watch(f"Evaluating {found.file.spec.model}", len(samples)) as done,
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


def _described(found: _Found, opened: Engine) -> dict[str, Any]:
    return {
        "model": found.file.spec.model,
        "runtime": found.runtime,
        "device": opened.device,
        "precision": found.precision,
        "delivered": opened.delivered,
        "random_weights": _is_random(found.file),
    }


def bench(
    model: str | None = None,
    *,
    engine_names: Sequence[str] = ("fp32",),
    data: Path | None = None,
    batches: Sequence[int] = (1,),
    runs: int = 50,
    device: str = "auto",
    options: RunOptions = engines.RUN,
    require_delivered: bool = False,
    require_faster: bool = False,
    watch: Watch = silent,
) -> dict[str, Any]:
    """Time engines against each other in one interleaved run, at host level and image to mask.

    With a labelled folder, the mIoU of the very file that was timed stands in the same row. A narrow engine is compared
    with fp32 in the same runtime where that is timed as well; `require_faster` has it timed. `failures` says which
    engine computes wider than it should, or is slower than fp32.
    """
    from segdeploy.benchmarks import delivered, latency, machine

    pictures = dataset.image_files(data) if data is not None else packaged_images()
    asked = _timed(model, engine_names, device, watch, with_fp32=require_faster)
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(
                engines.open_engine(each.file, runtime=each.runtime, device=each.device, options=options)
            )
            for each in asked
        ]
        scores = [_miou(engine, data, watch) for engine in opened]
        computed = [
            delivered.delivered(each.file, runtime=each.runtime, device=engine.device)
            for each, engine in zip(asked, opened, strict=True)
        ]
        rows: list[dict[str, Any]] = []
        ratios: list[dict[str, Any]] = []
        for batch in batches:
            chosen = [pictures[i % len(pictures)] for i in range(batch)]
            tasks, labels = _tasks(opened, chosen)
            with watch(f"Timing batch {batch}", runs * len(tasks)) as done:
                samples = latency.interleaved(tasks, runs=runs, done=done)
            for (index, level), kept in zip(labels, samples, strict=True):
                row = _row(asked[index], opened[index], batch=batch, threads=options.threads)
                facts = {"level": level, **row, **computed[index]}
                rows.append({**facts, **latency.summary(kept, batch=batch), **scores[index]})
            ratios += _ratios(asked, dict(zip(labels, samples, strict=True)), batch)
    failures = _not_delivered(rows, always=require_delivered)
    failures += _slower(rows, ratios) if require_faster else []
    report = {"schema": latency.SCHEMA, "rows": rows, "ratios": ratios, "failures": failures}
    return {**report, "runs": runs, "machine": machine.describe()}


def _timed(
    model: str | None, engine_names: Sequence[str], device: str, watch: Watch, *, with_fp32: bool
) -> list[_Found]:
    """What will be timed, each once; a narrow engine's own fp32 before it, where that is asked for."""
    found = [_found(_own_fp32(model, name), name, device, watch) for name in engine_names]
    if with_fp32:
        wide = [
            _found(_own_fp32(model, f"{each.runtime}:fp32"), f"{each.runtime}:fp32", each.device, watch)
            for each in found
        ]
        found = [*wide, *found]
    return list({(each.runtime, each.precision, each.device): each for each in found}.values())


def _own_fp32(model: str | None, engine: str) -> str | None:
    """Where a narrow graph is named by its path and fp32 is timed: the float32 graph that it was made from."""
    runtime, precision = engines.parse(engine)
    if model is None or not model.endswith(".onnx") or precision is not Precision.FP32 or runtime == "torch":
        return model
    named = artifact.read(Path(model))
    if named.precision is precision:
        return model
    with _as_it_was_written(named):
        return str(_sibling(named).path)


def _ratios(
    asked: Sequence[_Found], samples: Mapping[tuple[int, str], Sequence[float]], batch: int
) -> list[dict[str, Any]]:
    """Each narrow engine's time over that of fp32 in the same runtime, where both were timed."""
    from segdeploy.benchmarks import latency

    wide = {each.runtime: index for index, each in enumerate(asked) if each.precision is Precision.FP32}
    found = []
    for index, each in enumerate(asked):
        if each.precision is not Precision.FP32 and each.runtime in wide:
            ratio = latency.ratio(samples[index, "host"], samples[wide[each.runtime], "host"])
            found.append({"engine": f"{each.runtime}:{each.precision}", "batch": batch, **ratio})
    return found


def _not_delivered(rows: Sequence[Mapping[str, Any]], *, always: bool) -> list[dict[str, str]]:
    """Engines that compute wider than asked, where the machine could do better or `always`."""
    from segdeploy.benchmarks import delivered

    failures = {}
    for row in rows:
        precision, name = Precision(row["precision"]), f"{row['runtime']}:{row['precision']}"
        if row["delivered"] not in {None, precision} and (always or delivered.has_units(precision, row["device"])):
            layers = ", ".join(row["wider"][:5])
            what = f"{name} does {row['delivered_share']:.1%} of its {precision} work in {precision}; wider: {layers}."
            failures[name] = {"what": what, "remedy": "Choose another runtime, or ask for what it delivers."}
    return list(failures.values())


def _slower(rows: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Narrow engines whose whole interval lies above that of fp32."""
    wider = {f"{row['runtime']}:{row['precision']}": row["wider"] for row in rows}
    failures = []
    for ratio in ratios:
        if ratio["interval"][0] > 1:
            layers = ", ".join(wider[ratio["engine"]][:5]) or "none: every layer is computed in the type asked for"
            what = f"{ratio['engine']} takes {ratio['ratio']:.2f} of the time of fp32. Layers computed wider: {layers}."
            failures.append({"what": what, "remedy": "Use fp32 in this runtime, or another runtime."})
    return failures


def _tasks(
    opened: Sequence[Engine], pictures: Sequence[Path]
) -> tuple[list[Callable[[], None]], list[tuple[int, str]]]:
    from segdeploy.benchmarks import latency

    tasks, labels = [], []
    for index, engine in enumerate(opened):
        stacked = np.stack([images.prepared(images.read(picture), engine.spec) for picture in pictures])
        tasks += [latency.host(engine, stacked), latency.image_to_mask(engine, pictures)]
        labels += [(index, "host"), (index, "image_to_mask")]
    return tasks, labels


def _row(found: _Found, engine: Engine, *, batch: int, threads: int | None) -> dict[str, Any]:
    file = found.file
    return {
        "model": file.spec.model,
        "runtime": engine.runtime,
        "precision": found.precision,
        "device": engine.device,
        "batch": batch,
        "threads": threads or len(os.sched_getaffinity(0)),
        "height": file.spec.height,
        "width": file.spec.width,
        "sha256": file.sha256,
        **_stored_agreement(file, engine),
    }


def _stored_agreement(file: Artifact, engine: Engine) -> dict[str, Any]:
    """What `parity` measured of this file in this runtime; null with the reason where it did not."""
    if file.kind == "checkpoint":
        return {"agreement": 1.0, "agreement_reason": "PyTorch is the reference"}
    with _as_it_was_written(file):
        for stage in (file.parity or {"stages": []})["stages"]:
            ran = stage["name"] == "engine" and stage["passed"] is not None
            if ran and (stage["runtime"], stage["device"]) == (engine.runtime, engine.device):
                return {"agreement": stage["agreement"], "agreement_reason": None}
    return {"agreement": None, "agreement_reason": f"not measured for {engine.runtime} on {engine.device}: run parity"}


def _miou(engine: Engine, data: Path | None, watch: Watch) -> dict[str, Any]:
    from segdeploy import metrics
    from segdeploy.benchmarks import accuracy

    if data is None:
        return {"miou": None, "miou_reason": "no labelled folder was given: --data DIR"}
    if not (data / "masks").is_dir():
        return {"miou": None, "miou_reason": f"{data} has no masks/"}
    samples = dataset.open_folder(data).val
    with watch(f"Evaluating {engine.spec.model} in {engine.runtime}", len(samples)) as done:
        return {"miou": metrics.miou(accuracy.confusion(engine, samples, done=done)), "miou_reason": None}


def infer(
    inputs: Sequence[str],
    *,
    out: Path = Path("masks"),
    model: str | None = None,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    overlay: bool = False,
    watch: Watch = silent,
) -> dict[str, Any]:
    """Masks for every image below the inputs; the report says what was done, skipped and failed, and why."""
    sources, skipped = folder.find(inputs, leave_out=out)
    found = _found(model, engine, device, watch)
    threads = 1 if engines.modules()[found.runtime].CONCURRENT else None
    with (
        _open(found, dataclasses.replace(options, threads=threads, hint="throughput")) as opened,
        watch("Segmenting", len(sources)) as done,
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
    progress: "Progress",
) -> Path:
    """Train a network on a labelled folder; give the path of the best checkpoint."""
    labelled = dataset.open_folder(data)
    classes, colours = dataset.classes_of(labelled, ignore_index=ignore_index)
    margin = models.build(model, len(classes), **options).margin
    spec = Spec(model, dict(options), classes, colours, *size, ignore_index=ignore_index, margin=margin)
    from segdeploy.training import loop

    return loop.train(labelled, spec, plan, out, resume=resume, progress=progress)


def _is_random(file: Artifact) -> bool:
    return file.made_by.get("command") == "random" or file.made_by.get("weights", {}).get("kind") == "random"


def _pictures(data: Path | None) -> "list[Picture]":
    """Validation images with masks of a labelled folder, all images of an unlabelled one, or the packaged ones."""
    try:
        from segdeploy.benchmarks.parity import Picture
    except ImportError as error:
        raise checkpoint.missing_torch() from error
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
